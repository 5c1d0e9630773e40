"""`ddib privacy`: attacks on a model's own latents and samples. Heavy imports wait until the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import completing, options
from ddib_fed.cli.help import group
from ddib_fed.cli.model_options import THREADS
from ddib_fed.cli.output import lines, print_json
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.models.privacy import Figure, Membership, PrivacyReport, Reading


@group(context_settings={"help_option_names": ["-h", "--help"]})
def privacy() -> None:
    """Attack a model's own latents and samples, and report what an attacker recovers."""


@privacy.command()
@click.option(
    "--model",
    "which",
    required=True,
    metavar="MODEL",
    shell_complete=completing.models,
    help="A bundle's folder, whose privacy.json is written; or the name of a shipped model, which is only attacked.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Folder of pictures of the domain that the model was not trained on, or a .npy file of such points; default: "
    "the domain that ships.",
)
@click.option(
    "--training",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The same for its training data, for the attacks on membership; default: the domain that ships.",
)
@click.option(
    "--samples",
    type=click.IntRange(96, 10_000),
    default=256,
    show_default=True,
    help="Samples that the attacker knows; half as many are attacked.",
)
@click.option(
    "--surrogate-seconds",
    type=click.FloatRange(0, 86_400),
    default=60.0,
    show_default=True,
    help="How long the attacker trains a model of their own; 0 for none.",
)
@click.option(
    "--evaluations",
    type=click.IntRange(4, 1_000),
    default=24,
    show_default=True,
    help="Evaluations of encoding.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=41, show_default=True, help="Seed of all random draws."
)
@THREADS
@options.FORMAT
def report(
    *,
    which: str,
    data: Path | None,
    training: Path | None,
    samples: int,
    surrogate_seconds: float,
    evaluations: int,
    seed: int,
    threads: int,
    output_format: str,
) -> None:
    """Attack the latents of your own data, and the samples of your model, and print what an attacker gets.

    The attacker knows other samples with their latents, like anybody who sent some through your node, and fits
    inverters to them; then trains a model of the domain on these samples and decodes with it. The result is a lower
    bound: with more samples or more time an attacker recovers more. The figures are written into privacy.json beside
    the weights; the digest does not change.
    """
    from ddib_fed.bridge.threads import torch_threads
    from ddib_fed.cli.models.opening import open_model
    from ddib_fed.models.bundle import put_beside
    from ddib_fed.models.privacy import PRIVACY_FILE
    from ddib_fed.models.shipped import shipped_name
    from ddib_fed.runs.privacy.report import Wanted, privacy_report

    command = _command(data, training, samples, surrogate_seconds, evaluations, seed)
    wanted = Wanted(data, training, samples, evaluations, surrogate_seconds, seed, command)
    with torch_threads(threads):
        found = privacy_report(open_model(which), wanted, say=lambda what: say(what, err=True))
    if shipped_name(which) is None:
        put_beside(Path(which), PRIVACY_FILE, found.text())
    if output_format == "json":
        print_json(found.values())
        return
    lines(dict(figures(found)))


def _command(
    data: Path | None, training: Path | None, samples: int, seconds: float, evaluations: int, seed: int
) -> str:
    words = ["ddib privacy report --model MODEL"]
    words += ["--data PATH"] if data else []
    words += ["--training PATH"] if training else []
    return " ".join(
        [
            *words,
            f"--samples {samples} --surrogate-seconds {seconds:g} --evaluations {evaluations} --seed {seed}",
        ]
    )


def figures(found: PrivacyReport) -> list[tuple[str, str]]:
    """A line for each kind of latent and each attack."""
    rows = [(_name(each), _read(each, found.sample_kind)) for each in found.readings]
    rows += [(f"membership, softened {each.soften_sigma:g}", _told(each)) for each in found.membership]
    if found.copies is not None:
        near, held_out = found.copies.samples.value, found.copies.held_out.value
        said = (
            f"nearest at {near:.2f} of the distance from the mean picture, held-out pictures at {held_out:.2f}; "
            f"{found.copies.near.value:.0%} nearer than 99 in 100 held-out pictures"
        )
        rows.append(("training pictures drawn again", said))
    return [
        ("attacked", f"{found.attacked} latents, of as many candidates; {found.known} samples known"),
        *rows,
    ]


def _name(each: Reading) -> str:
    softened = f"softened {each.soften_sigma:g}" if each.soften_sigma else "not softened"
    return f"{each.encoder}, depth {each.depth:g}, {softened}"


def _read(each: Reading, kind: str) -> str:
    unit = "dB" if kind == "picture" else "deviations off"
    said = (
        f"correlation {_number(each.correlation)}, found by it {_number(each.found_by_correlation)}; {each.surrogate} "
        f"reads {_number(each.read)} {unit}, found {_number(each.found_by_reading)}"
    )
    if each.model_read is None or each.found_by_model is None:
        return said
    return f"{said}; a model of the attacker {_number(each.model_read)} {unit}, found {_number(each.found_by_model)}"


def _told(each: Membership) -> str:
    return f"area under the curve by the latent's norm {_number(each.norm)}, by the loss {_number(each.loss)}"


def _number(figure: Figure) -> str:
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"
