"""`ddib bridge`: the paper's experiments in one process, without nodes. Heavy imports wait until a command runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.bars import bar
from ddib_fed.cli import completing, options
from ddib_fed.cli.help import group
from ddib_fed.cli.model_options import (
    BATCH,
    DEPTH,
    DEVICE,
    DTYPE,
    SOFTEN,
    THREADS,
    TRANSLATING,
)
from ddib_fed.cli.models.opening import open_model, refuse_overwriting
from ddib_fed.cli.options import with_options
from ddib_fed.cli.output import lines, outcome
from ddib_fed.cli.public_code import PUBLIC_CODE, take_settings
from ddib_fed.errors import UsageError

if TYPE_CHECKING:
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.samples.points import Array

_FILE = click.Path(dir_okay=False, path_type=Path)
_SOURCE = click.option(
    "--source",
    required=True,
    metavar="MODEL",
    shell_complete=completing.models,
    help=f"Model that encodes. {options.MODEL_HELP}",
)

_OPTIONS = (
    click.argument("folder", required=False, type=click.Path(path_type=Path), metavar="[FOLDER]"),
    _SOURCE,
    click.option(
        "--target",
        required=True,
        metavar="MODEL",
        shell_complete=completing.models,
        help=f"Model that decodes. {options.MODEL_HELP}",
    ),
    click.option("--input", "points", type=_FILE, metavar="FILE", help="Points (N, D) to translate, .npy."),
    click.option(
        "--n",
        "count",
        type=click.IntRange(1),
        default=10_000,
        show_default=True,
        help="Points to draw if there is no --input.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of drawn points, of softening noise for pictures, and of the noise of --eta.",
    ),
    click.option(
        "--reference",
        type=_FILE,
        metavar="FILE",
        help="Points of the target's data to compare with, .npy.",
    ),
    options.EVALUATIONS,
    options.SOLVER,
    options.GRID,
    options.QUALITY,
    options.ORDER,
    *PUBLIC_CODE,
    options.CLIP,
    *TRANSLATING,
    THREADS,
    options.OUT_RESULTS,
    options.FORCE,
    options.OUTCOME,
)
_shared = with_options(_OPTIONS)


@group(context_settings={"help_option_names": ["-h", "--help"]})
def bridge() -> None:
    """Translate between two models in one process, without nodes."""


@bridge.command()
@_shared
def translate(**given: Any) -> None:
    """Translate points, or a folder of pictures, from one domain to another.

    Points: writes each stage (source, latent, target) as .npy, scatter and heat map, translation.png and report.json.

    Pictures: writes each as PNG at its own size under its own name, a record beside it (NAME.json), sheet.png and
    report.json. The same command continues a killed run.
    """
    _run(cycle=False, **given)


@bridge.command()
@_shared
def cycle(**given: Any) -> None:
    """Translate points, or a folder of pictures, to another domain and back.

    Points: writes each stage (source, latent, target, latent again, source again) as .npy, scatter and heat map,
    cycle.png and report.json with the cycle error.

    Pictures: as `ddib bridge translate`, with each returned picture (NAME.returned.png) and its cycle error.
    """
    _run(cycle=True, **given)


@bridge.command()
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@_SOURCE
@click.option(
    "--target",
    metavar="MODEL",
    shell_complete=completing.models,
    help="Model that decodes, as for --source; default: the source.",
)
@click.option(
    "--frames",
    type=click.IntRange(2),
    default=9,
    show_default=True,
    help="Number of pictures, both ends included.",
)
@click.option(
    "--way",
    type=click.Choice(["slerp", "lerp"]),
    default="slerp",
    show_default=True,
    help="Interpolate on the sphere or on the straight line.",
)
@click.option("--source-class", metavar="CLASS", help="Class of the two pictures, by number or name.")
@click.option("--target-class", metavar="CLASS", help="Class of the decoded pictures.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the softening.")
@with_options((DEPTH, SOFTEN, BATCH, DTYPE, DEVICE))
@options.EVALUATIONS
@options.SOLVER
@options.GRID
@options.ORDER
@THREADS
@options.OUT_RESULTS
@options.FORCE
@options.OUTCOME
def interpolate(
    *,
    first: Path,
    second: Path,
    source: str,
    target: str | None,
    out: Path,
    force: bool,
    evaluations: int,
    solver: str,
    grid: str,
    order: int,
    **given: Any,
) -> None:
    """Decode the latents between those of two pictures: frame_0.png and on, sheet.png and report.json."""
    from ddib_fed.cli.models import pictures
    from ddib_fed.diffusion.plans import SolverSettings

    refuse_overwriting(out, force=force)
    settings = SolverSettings(solver, order, evaluations, grid)
    pictures.interpolate(first, second, source, target or source, out, settings, **given)


def _run(
    *,
    cycle: bool,
    folder: Path | None,
    source: str,
    target: str,
    out: Path,
    **given: Any,
) -> None:
    """Hand the options to what translates points, or to what translates pictures."""
    from ddib_fed.cli.models import pictures

    manifests = pictures.manifest_of(source), pictures.manifest_of(target)
    settings = take_settings(given, manifests)
    of_points = {name: given.pop(name) for name in ("points", "count", "reference")}
    if manifests[0].sample_kind == "picture":
        options.refuse_idle(
            of_points, f"is for points, and {source} is a model of pictures", hint="name a FOLDER of pictures"
        )
        pictures.translate(folder, source, target, out, settings, cycle=cycle, **given)
        return
    if folder is not None:
        raise UsageError(
            f"{source} is a model of points, {folder} is for pictures", hint="give --input FILE.npy"
        )
    plain = {name: given.pop(name) for name in ("seed", "force", "threads", "clip")}
    given.pop("compat")
    settings = replace(settings, depth=given.pop("depth"))
    options.refuse_idle(given, f"is for pictures, and {source} is a model of points", hint="leave it out")
    if of_points["points"] is not None:
        idle = ("count",) if settings.stochastic else ("count", "seed")
        options.refuse_idle(idle, "is for points that are drawn", hint="leave it or --input out")
    _run_points(source, target, out, settings, cycle=cycle, **of_points, **plain)


def _run_points(
    source: str,
    target: str,
    out: Path,
    settings: SolverSettings,
    *,
    cycle: bool,
    points: Path | None,
    count: int,
    seed: int,
    reference: Path | None,
    force: bool,
    threads: int,
    clip: bool | None,
) -> None:
    from ddib_fed.runs import experiment

    refuse_overwriting(out, force=force)
    models = open_model(source), open_model(target)
    given = _points(models[0], points, count, seed)
    held = read_points(reference) if reference is not None else None
    with bar("translating") as show:
        stages = experiment.run(
            *models,
            given,
            settings,
            cycle=cycle,
            seed=seed,
            clip=bool(clip),
            on_step=lambda done, total: show(done, total, ""),
            threads=threads,
        )
    report = experiment.figures(*models, stages, settings, reference=held)
    report["seed"] = seed if points is None or settings.stochastic else None
    report["clip"] = bool(clip)
    experiment.write(out, *models, stages, report)
    lines(_summary(report, out))
    outcome(out=out, **report)


def _points(bundle: Bundle, path: Path | None, count: int, seed: int) -> Array:
    """The points of a file, or drawn from the source's synthetic domain, in the units of its data."""
    from ddib_fed.datasets.synthetic import DOMAINS, sample
    from ddib_fed.models.carried import carried_domain

    if path is not None:
        return read_points(path)
    domain = carried_domain(bundle.manifest)
    if domain is None or domain not in DOMAINS:
        raise UsageError(
            f"the source {bundle.manifest.name} was trained on no synthetic domain: there is nothing to draw",
            hint="give --input FILE.npy",
        )
    return sample(domain, count, seed)


def read_points(path: Path) -> Array:
    """The points (N, D) of a .npy file."""
    from ddib_fed.training.points import read_points as read

    return read(path)


def _summary(report: dict[str, Any], out: Path) -> dict[str, str]:
    latent, cloud, cycled = report["latent"], report["target_cloud"], report.get("cycle")
    text = {
        "latent": f"mean {latent['mean']:+.3f}, std {latent['std']:.3f}, kurtosis {latent['kurtosis']:+.3f}"
    }
    if cloud is not None:
        text["target"] = f"sliced-W2 {cloud['sliced_w2']:.4f} (floor {cloud['sliced_w2_floor']:.4f})"
        text["target"] += f", energy distance {cloud['energy']:.5f} (floor {cloud['energy_floor']:.5f})"
    if cycled is not None:
        text["cycle error"] = ", ".join(
            f"{name} {cycled[name]:.2e}" for name in ("median", "mean", "p99", "max")
        )
    spent = report["seconds"]
    text["cost"] = (
        f"{report['evaluations']['per_point']} evaluations, {spent['wall']:.1f} s ({spent['cpu']:.1f} s CPU)"
    )
    return text | {"written": str(out)}
