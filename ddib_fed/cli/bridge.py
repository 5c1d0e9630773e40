"""`ddib bridge`: the paper's experiments in one process, without nodes. Heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.bars import bar, lines
from ddib_fed.cli.model import MODEL_HELP, THREADS, open_model, refuse_overwriting
from ddib_fed.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ddib_fed.data.points import Array
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.models.bundle import Bundle

_FILE = click.Path(dir_okay=False, path_type=Path)

_OPTIONS = (
    click.option("--source", required=True, metavar="MODEL", help=f"Where from. {MODEL_HELP}"),
    click.option("--target", required=True, metavar="MODEL", help=f"Where to. {MODEL_HELP}"),
    click.option("--input", "points", type=_FILE, metavar="FILE", help="Points (N, D) to translate, .npy."),
    click.option(
        "--n",
        "count",
        type=click.IntRange(1),
        default=10_000,
        show_default=True,
        help="Points to draw, without --input.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the points drawn."),
    click.option(
        "--reference",
        type=_FILE,
        metavar="FILE",
        help="Points of the target's data to measure against, .npy.",
    ),
    options.STEPS,
    options.SOLVER,
    options.GRID,
    options.ORDER,
    click.option(
        "--compat",
        type=click.Choice(["ddib"]),
        help="Follow the public code's levels at both ends; with --solver ddim, and its grid.",
    ),
    THREADS,
    options.OUT_RESULTS,
    options.FORCE,
)


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """The options that both commands have."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def bridge() -> None:
    """Translate between two models in one process, without nodes."""


@bridge.command()
@_shared
def translate(**given: Any) -> None:
    """Translate points from one domain to another: source, latent, target.

    Writes each stage as .npy, scatter and heat map, translation.png and report.json.
    """
    _run(cycle=False, **given)


@bridge.command()
@_shared
def cycle(**given: Any) -> None:
    """Translate points there and back: source, latent, target, latent again, source again.

    Writes each stage as .npy, scatter and heat map, cycle.png and report.json with the cycle error.
    """
    _run(cycle=True, **given)


def _run(
    *,
    cycle: bool,
    source: str,
    target: str,
    points: Path | None,
    count: int,
    seed: int,
    reference: Path | None,
    out: Path,
    force: bool,
    threads: int,
    **solver: Any,
) -> None:
    from ddib_fed.evaluation import experiment

    refuse_overwriting(out, force=force)
    settings = _settings(**solver)
    models = open_model(source), open_model(target)
    given = _points(models[0], points, count, seed)
    held = read_points(reference) if reference is not None else None
    with bar("translating") as show:
        stages = experiment.run(
            *models,
            given,
            settings,
            cycle=cycle,
            on_step=lambda done, total: show(done, total, ""),
            threads=threads,
        )
    report = experiment.figures(*models, stages, settings, reference=held)
    report["seed"] = seed if points is None else None
    experiment.write(out, *models, stages, report)
    lines(_summary(report, out))


def _settings(*, steps: int, solver: str, grid: str, order: int, compat: str | None) -> SolverSettings:
    from ddib_fed.diffusion.plans import SolverSettings

    if compat is not None:
        if solver != "ddim" or grid != "default":
            raise UsageError(
                "--compat ddib needs --solver ddim, and brings its own grid", hint="add --solver ddim"
            )
        grid = compat
    return SolverSettings(solver, order, steps, grid)


def _points(bundle: Bundle, path: Path | None, count: int, seed: int) -> Array:
    """The points of a file, or points drawn from the source's synthetic domain, in the units of its data."""
    from ddib_fed.data.synthetic import DOMAINS, sample

    if path is not None:
        return read_points(path)
    domain = bundle.manifest.domain
    if domain not in DOMAINS:
        raise UsageError(
            f"the source {domain} is no synthetic domain: there is nothing to draw",
            hint="give --input FILE.npy",
        )
    return sample(domain, count, seed)


def read_points(path: Path) -> Array:
    """The points (N, D) of a .npy file.

    Raises:
        FileMissing: There is no such file.
        PointsUnreadable: The file is no array of numbers.
        ShapeMismatch: The array is not (N, D).
        NotFinite: There is a NaN or an infinity.
    """
    from ddib_fed.training.sources import read_points as read

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
