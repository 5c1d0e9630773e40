"""`ddib model tune` and `ddib model gate`: what is learned and measured of a finished model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.options import THREADS
from ddib_fed.cli.output import lines, print_json
from ddib_fed.terminal import bar

if TYPE_CHECKING:
    from ddib_fed.models.sidecars import Allowances, Tuned, TunedLeg

NUMBERS = (12, 16, 20)


@command()
@click.argument("folder", metavar="MODEL", type=click.Path(file_okay=False, path_type=Path))
@click.argument("further", metavar="[NUMBER]...", nargs=-1, type=click.IntRange(2, 64))
@click.option(
    "--evaluations",
    type=click.IntRange(2, 64),
    multiple=True,
    show_default="12 16 20",
    help="Network evaluations of a leg to learn steps for; several numbers may follow.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Folder of pictures of the model's domain, or a .npy file of its points; default: the domain that ships.",
)
@click.option(
    "--soften-sigma",
    "soften",
    type=click.FloatRange(0, 1),
    help="Softening of the pictures that are encoded; default: the model's own.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of noise and batches."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Device to compute on.",
)
@THREADS
@options.FORMAT
def tune(
    *,
    folder: Path,
    further: tuple[int, ...],
    evaluations: tuple[int, ...],
    data: Path | None,
    soften: float | None,
    seed: int,
    device: str,
    threads: int,
    output_format: str,
) -> None:
    """Learn where the solver steps on a model, so that fewer evaluations are as exact.

    The steps are learned for encoding and for decoding, from this model alone, and written into steps.json beside its
    weights with their error on held-out samples; the model's digest does not change. `--grid learned` uses them, with
    one of the numbers learned: for example `ddib model tune models/a --evaluations 12 16 20`. Steps of encoding belong
    to one softening. MODEL is the bundle's folder.
    """
    from ddib_fed.networks.placement import torch_threads
    from ddib_fed.training.tune import tune_bundle

    counts = tuple(sorted({*evaluations, *further})) or NUMBERS
    numbers = " ".join(map(str, counts))
    command = " ".join(["ddib model tune MODEL --evaluations", numbers, *_others(data, soften, seed)])
    with bar("tuning") as show, torch_threads(threads):
        tuned = tune_bundle(
            folder,
            counts,
            data=data,
            soften_sigma=soften,
            seed=seed,
            command=command,
            device=device,
            say=lambda what, done, total: show(done, total, what),
        )
    if output_format == "json":
        print_json(tuned.values())
        return
    lines({"steps": tuned.digest(), **dict(tuned_figures(tuned))})


def tuned_figures(tuned: Tuned) -> list[tuple[str, str]]:
    return [(_name(leg), _said(leg)) for leg in tuned.legs]


def _name(leg: TunedLeg) -> str:
    return f"{leg.stage} in {leg.evaluations}" + (f", softened {leg.sigma:g}" if leg.sigma else "")


def _said(leg: TunedLeg) -> str:
    error, before, full = leg.error, leg.default_error, leg.yardstick_error
    return (
        f"error mean {error.mean:.1e} ({error.low:.1e} to {error.high:.1e}), median {error.median:.1e}, p99 "
        f"{error.p99:.1e}; default at {leg.evaluations}: {before.mean:.1e}, at {leg.yardstick}: {full.mean:.1e}"
    )


def _others(data: Path | None, soften: float | None, seed: int) -> list[str]:
    words = [] if data is None else ["--data PATH"]
    words += [] if soften is None else [f"--soften-sigma {soften:g}"]
    return words + ([f"--seed {seed}"] if seed else [])


@command()
@click.argument("folder", metavar="MODEL", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Folder of pictures of the model's domain that it was not trained on; default: the domain that ships.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of softening.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Device to compute on.",
)
@THREADS
@options.FORMAT
def gate(
    *, folder: Path, data: Path | None, seed: int, device: str, threads: int, output_format: str
) -> None:
    """Measure what a model's own latents of pictures look like, so that others are looked at before they are sent.

    Latents of held-out pictures set the bounds. A latent beyond them is encoded again before it leaves, and refused if
    the two differ. The numbers are written into gate.json beside the weights; the model's digest does not change.
    Training does this by itself where at least 40 pictures are held out. MODEL is the bundle's folder.
    """
    from ddib_fed.networks.placement import torch_threads
    from ddib_fed.training.tune import put_allowances

    words = [
        "ddib model gate MODEL",
        *(["--data PATH"] if data else []),
        *([f"--seed {seed}"] if seed else []),
    ]
    with bar("encoding") as show, torch_threads(threads):
        found = put_allowances(
            folder,
            data,
            command=" ".join(words),
            device=device,
            seed=seed,
            tell=lambda done, total: show(done, total, ""),
        )
    if output_format == "json":
        print_json(found.figures())
        return
    lines({"gate": found.digest(), "bounds": said(found)})


def said(allowances: Allowances) -> str:
    """What was measured, in words."""
    return (
        f"measured on {allowances.measured} latents; of {allowances.checked} others {allowances.beyond} are beyond, "
        "and would be encoded again"
    )
