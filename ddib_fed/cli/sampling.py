"""`ddib model sample`, and the public code's flags of sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ddib_fed.cli import options
from ddib_fed.cli.options import Classes, command, open_model, refuse_overwriting, usual_threads
from ddib_fed.errors import UsageError
from ddib_fed.protocol.messages import Settings
from ddib_fed.terminal import bar, emit, lines

if TYPE_CHECKING:
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.diffusion.schedule import PublicLevels
    from ddib_fed.models.manifest import Manifest

_OF_PICTURES = ("target_class", "classifier", "classifier_scale", "guidance", "batch", "dtype", "device")


def take_settings(
    given: dict[str, Any], manifests: Sequence[Manifest]
) -> tuple[SolverSettings, bool, bool | None]:
    """The solver's settings, whether they are the public code's, and whether its flags say to clip.

    Removes `solver`, `evaluations`, `grid`, `quality` and `flags` from `given`; contradictions are usage errors.
    """
    from ddib_fed.diffusion.plans import COMPAT_GRID, SolverSettings

    solver, evaluations, grid = (given.pop(name) for name in ("solver", "evaluations", "grid"))
    quality, line = given.pop("quality"), given.pop("flags")
    if line is None:
        chosen = Settings(solver, 0, evaluations, grid).of_quality(quality)
        return SolverSettings(chosen.solver, chosen.order, chosen.evaluations, chosen.grid), False, None
    from ddib_fed.diffusion.schedule import PublicLevels
    from ddib_fed.models.import_guided import parse_sampling

    if quality is not None or grid != "default" or (_is_given("solver") and solver != "ddim"):
        raise UsageError(
            "--flags is the public code's ddim along its own grid", hint="omit --solver, --grid and --quality"
        )
    flags: dict[str, Any] = parse_sampling(line)
    levels = PublicLevels(
        flags.get("noise_schedule", ""), flags.get("diffusion_steps", 0), flags.get("timestep_respacing", "")
    )
    ancestral = flags.get("use_ddpm", not flags.get("use_ddim", True))
    settings = SolverSettings(
        "ddim",
        0,
        evaluations if _is_given("evaluations") else _evaluations(levels, evaluations, manifests),
        COMPAT_GRID,
        levels=levels,
        eta=flags.get("eta", 0.0),
        ancestral=ancestral,
    )
    return settings, True, flags.get("clip_denoised")


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source not in (ParameterSource.DEFAULT, None)


def _evaluations(levels: PublicLevels, default: int, manifests: Sequence[Manifest]) -> int:
    from ddib_fed.diffusion.schedule import schedule_from_config

    if levels.respacing:
        kept = {levels.kept(schedule_from_config(manifest.schedule)) for manifest in manifests}
        if len(kept) > 1:
            counts = " and ".join(map(str, sorted(kept)))
            raise UsageError(
                f"--timestep_respacing {levels.respacing} keeps {counts} of the two models' diffusion steps",
                hint="both must use the same number: for example ddim50",
            )
        return kept.pop()
    own = [manifest.schedule.steps for manifest in manifests if manifest.schedule.steps]
    return levels.diffusion_steps or min([default, *own])


@command()
@options.MODEL
@options.OUT_RESULTS
@options.option("count --n N", "Number of samples; default: 10,000 points or 64 pictures.", click.IntRange(1))
@options.option("--seed N", "Seed of the noise.", click.IntRange(0), default=0)
@options.EVALUATIONS
@options.SOLVER
@options.GRID
@options.QUALITY
@options.FLAGS
@options.TARGET_CLASS
@options.CLASSIFIER
@options.with_options(options.GUIDING)
@options.BATCH
@options.DTYPE
@options.DEVICE
@options.FORCE
@options.OUTCOME
def sample(*, which: str, out: Path, count: int | None, seed: int, force: bool, **given: Any) -> None:
    """Draw points or pictures from a model.

    Points: samples.npy, latent.npy, samples.png and report.json. Pictures: sample_0.png and on, sheet.png and
    report.json.

    MODEL is the name of a shipped model (`ddib model list`), its index, or a bundle's folder.
    """
    from ddib_fed.engine.arrays import ArraySettings
    from ddib_fed.engine.local_party import open_party
    from ddib_fed.engine.record import Guidance
    from ddib_fed.evaluation.draws import draw_pictures, draw_points

    refuse_overwriting(out, force=force)
    bundle = open_model(which)
    pictures = bundle.manifest.sample_kind == "picture"
    settings, public, clip = take_settings(given, [bundle.manifest])
    if not pictures:
        why = f"is for pictures, and {which} is a model of points"
        options.refuse_idle(_OF_PICTURES, why, hint="leave it out")
    classifier, weight = options.take_classifier(given)
    owner = bundle.manifest
    if owner.num_classes is None and classifier is not None:
        owner = classifier.manifest  # whose classes guide a model without
    party = open_party(
        bundle,
        given["device"],
        given["dtype"],
        classifier=classifier,
        together=given["batch"] if pictures else 0,
        threads=usual_threads(),
    )
    asked = ArraySettings(
        settings,
        target_class=_class(given["target_class"], owner),
        guidance=Guidance(given["guidance"], weight, clip=(public and pictures) if clip is None else clip),
        seed=seed,
    )
    with bar("sampling") as show:
        draw, usual = (draw_pictures, 64) if pictures else (draw_points, 10_000)
        report = draw(party, count or usual, asked, out, on_progress=_counting(show))
    if pictures:
        lines({"pictures": str(report["count"]), "sheet": str(out / "sheet.png"), "written": str(out)})
        emit({"out": out, "samples": report["count"], "digest": bundle.digest, **report})
        return
    cloud = report["target_cloud"]
    near = f"{cloud['sliced_w2']:.4f} (floor {cloud['sliced_w2_floor']:.4f})" if cloud else ""
    lines({"points": str(out / "samples.npy"), **({"sliced-W2": near} if cloud else {})})
    emit({"out": out, "samples": report["points"], "digest": bundle.digest, "target_cloud": cloud})


def _class(text: str, manifest: Manifest) -> int | None:
    return Classes(manifest.name, manifest.num_classes or 0, manifest.classes).number(text) if text else None


def _counting(show: Callable[[int, int, str], None]) -> Callable[[int, int], None]:
    return lambda done, total: show(done, total, "")
