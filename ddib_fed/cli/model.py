"""`ddib model`: train, sample, import and show models. Heavy imports wait until a command runs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.bars import bar, lines
from ddib_fed.cli.picture_options import SAMPLING, with_options
from ddib_fed.errors import AlreadyExists, UsageError

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.training.presets import TrainConfig

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
MODEL_METAVAR = "MODEL"
MODEL_HELP = "A domain's name or the paper's index (0 to 5) for the model that ships, or a bundle's folder."


def seconds(text: str) -> float:
    """Seconds from text such as 90, 90s, 2m or 1h30m; ValueError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms]?)", text.strip().lower())
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip().lower() or not total > 0:
        raise ValueError(text)
    return total


def _duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Callback of --time."""
    try:
        return None if value is None else seconds(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no time: write 90, 90s, 2m or 1h30m.", ctx, param) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def model() -> None:
    """Train, sample, show and import models."""


THREADS = click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Threads of torch; more may be slower.",
)


@model.command()
@click.option("--domain", metavar="NAME", help="A synthetic domain, by name or by the paper's index 0 to 5.")
@click.option(
    "--data",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Points (N, D) of one's own, .npy.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The bundle's folder.",
)
@click.option(
    "--name", metavar="NAME", help="What the bundle calls its domain, if not the domain's or file's name."
)
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps; 2,000 without --steps and --time.")
@click.option(
    "--time", "time_s", callback=_duration, metavar="2m", help="Take as many steps as fit into this time."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="All randomness follows from it."
)
@click.option("--batch", type=click.IntRange(1), default=2048, show_default=True, help="Points a step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=2e-3,
    show_default=True,
    help="Its peak.",
)
@click.option("--width", type=click.IntRange(1, 4096), default=160, show_default=True, help="Hidden units.")
@click.option("--blocks", type=click.IntRange(1, 64), default=4, show_default=True, help="Residual blocks.")
@THREADS
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of matrix products; bfloat16 is faster only on CPUs that have it.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of stored weights.",
)
@click.option("--resume", is_flag=True, help="Go on with the unfinished run in --out.")
@click.option("--force", is_flag=True, help="Start again, whatever is in --out.")
def train(*, out: Path, resume: bool, force: bool, **settings: Any) -> None:
    """Train a model and write its bundle, with progress.csv, loss curve, samples and checkpoints in DIR/run.

    A run that was killed and is resumed ends bit for bit as one that was not.
    """
    from ddib_fed.training.run import train as run

    config = _train_config(settings)
    with bar("training") as show:
        done = run(
            config,
            out,
            lambda p: show(p.step, p.steps, f"loss {p.loss:.4f}  {p.rate:.1f} steps/s"),
            resume=resume,
            force=force,
        )
    click.echo(f"{out}: {_summary(done)}")


def _train_config(settings: dict[str, Any]) -> TrainConfig:
    """The options as a config; what contradicts itself is a usage error."""
    from pydantic import ValidationError

    from ddib_fed.data.synthetic import domain_name
    from ddib_fed.training.presets import TrainConfig

    if settings["domain"] is not None:
        settings["domain"] = domain_name(settings["domain"])
    batch = settings["batch"]
    parts = {"levels": _divisor(batch, 256), "reference": _divisor(batch, 1024)}
    try:
        return TrainConfig(**settings, **parts, command=shlex.join(["ddib", *sys.argv[1:]])[:2000])
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"the options contradict each other: {message}", hint="ddib model train --help"
        ) from error


def _divisor(batch: int, most: int) -> int:
    """The largest divisor of the batch up to `most`."""
    return next(k for k in range(min(most, batch), 0, -1) if batch % k == 0)


def _summary(bundle: Bundle) -> str:
    figures = bundle.manifest.training.figures
    text = f"{bundle.manifest.parameters:,} parameters"
    if "sliced_w2" in figures:
        text += f", sliced-W2 {figures['sliced_w2']:.4f} (floor {figures['sliced_w2_floor']:.4f})"
    return f"{text}, digest {bundle.digest[:16]}"


@model.command()
@click.argument("which", metavar=MODEL_METAVAR)
@options.OUT_RESULTS
@click.option(
    "--n", "count", type=click.IntRange(1), help="How many to draw; without it 10,000 points or 64 pictures."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise.")
@options.STEPS
@options.SOLVER
@options.GRID
@options.ORDER
@with_options(SAMPLING)
@THREADS
@options.FORCE
def sample(
    *,
    which: str,
    out: Path,
    count: int | None,
    seed: int,
    steps: int,
    solver: str,
    grid: str,
    order: int,
    force: bool,
    threads: int,
    **of_pictures: Any,
) -> None:
    """Draw points or pictures from a model.

    Points: samples.npy, latent.npy, samples.png and report.json. Pictures: sample_0.png and on, sheet.png and
    report.json.

    MODEL is a domain's name or index for the model that ships, or a bundle's folder.
    """
    from ddib_fed.cli import pictures
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.evaluation import experiment

    refuse_overwriting(out, force=force)
    settings = SolverSettings(solver, order, steps, grid)
    bundle = open_model(which)
    if bundle.manifest.sample_kind == "picture":
        pictures.sample(bundle, out, count or 64, seed, settings, threads=threads, **of_pictures)
        return
    with bar("sampling") as show:
        report = experiment.draw(
            bundle,
            count or 10_000,
            seed,
            settings,
            out,
            on_step=lambda done, total: show(done, total, ""),
            threads=threads,
        )
    cloud = report["target_cloud"]
    lines({"points": str(out / "samples.npy"), **({"sliced-W2": _distance(cloud)} if cloud else {})})


def _distance(cloud: dict[str, float]) -> str:
    return f"{cloud['sliced_w2']:.4f} (floor {cloud['sliced_w2_floor']:.4f})"


@model.command("import")
@click.option(
    "--synthetic",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.pt",
    help="A state dict of the public DDIB code's 2-D network.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The bundle's folder.",
)
@click.option(
    "--domain",
    default="imported",
    show_default=True,
    metavar="NAME",
    help="What the bundle calls its domain.",
)
@click.option(
    "--noise-schedule",
    type=click.Choice(["linear", "cosine"]),
    default="linear",
    show_default=True,
    help="As it was trained.",
)
@click.option(
    "--diffusion-steps", type=click.IntRange(2), default=4000, show_default=True, help="As it was trained."
)
@click.option("--rescale-timesteps", is_flag=True, help="It was trained with rescaled timesteps.")
@click.option("--predict-xstart", is_flag=True, help="It predicts x0 instead of the noise.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
def import_(*, synthetic: Path, out: Path, force: bool, **as_trained: Any) -> None:
    """Make a bundle of a checkpoint of the public code. Pickles are read with weights_only=True."""
    from ddib_fed.models.bundle import save_bundle
    from ddib_fed.models.importers import import_synthetic

    bundle = import_synthetic(synthetic, **as_trained)
    saved = save_bundle(out, bundle.manifest, bundle.state, overwrite=force)
    click.echo(f"{out}: {_summary(saved)}")


@model.command()
@click.argument("which", metavar=MODEL_METAVAR)
@options.FORMAT
def show(*, which: str, output_format: str) -> None:
    """Verify a model and print what its manifest says.

    MODEL is a domain's name or index for the model that ships, or a bundle's folder.
    """
    from ddib_fed.cli.output import print_json

    bundle = open_model(which)
    manifest = bundle.manifest.model_dump(mode="json")
    if output_format == "json":
        print_json({"digest": bundle.digest, **manifest})
        return
    training = manifest.pop("training")
    flat = {key: _text(value) for key, value in manifest.items() if value not in (None, "")}
    lines(
        {
            "digest": bundle.digest,
            **flat,
            **{f"training {key}": _text(value) for key, value in training.items()},
        }
    )


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return str(value)


def open_model(which: str) -> Bundle:
    """The shipped model of a domain given by name or index, else the bundle in a folder.

    Raises:
        ModelNotFound: There is neither.
        BundleInvalid: The bundle fails its checks.
    """
    from ddib_fed.data.synthetic import domain_name
    from ddib_fed.errors import DomainNotFound
    from ddib_fed.models.bundle import load_bundle, pretrained

    try:
        domain = domain_name(which)
    except DomainNotFound:
        return load_bundle(Path(which))
    return pretrained(domain)


def refuse_overwriting(out: Path, *, force: bool) -> None:
    """Stop before computing when results are there already.

    Raises:
        AlreadyExists: `out` holds a report and `force` is not given.
    """
    if (out / "report.json").exists() and not force:
        raise AlreadyExists(f"{out} holds results already", hint="choose another folder, or --force")
