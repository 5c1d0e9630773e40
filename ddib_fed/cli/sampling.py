"""`ddib model sample` and `ddib model interpolate`. Heavy imports wait until a command runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.opening import open_model, refuse_overwriting
from ddib_fed.cli.options import (
    BATCH,
    DEVICE,
    DTYPE,
    IN_PROCESS_DEPTH,
    SAMPLING,
    SOFTEN,
    THREADS,
    Classes,
    with_options,
)
from ddib_fed.cli.output import lines, outcome
from ddib_fed.cli.public_code import PUBLIC_CODE, take_settings
from ddib_fed.terminal import bar

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.models.manifest import Manifest

FRAMES = 9
"""Pictures of an interpolation, both ends included."""
_FILE = click.Path(dir_okay=False, path_type=Path)


@command()
@options.MODEL
@options.OUT_RESULTS
@click.option(
    "--n", "count", type=click.IntRange(1), help="Number of samples; default: 10,000 points or 64 pictures."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the noise.")
@options.EVALUATIONS
@options.SOLVER
@options.GRID
@options.QUALITY
@with_options(PUBLIC_CODE)
@options.CLIP
@with_options(SAMPLING)
@THREADS
@options.FORCE
@options.OUTCOME
def sample(
    *, which: str, out: Path, count: int | None, seed: int, force: bool, threads: int, **given: Any
) -> None:
    """Draw points or pictures from a model.

    Points: samples.npy, latent.npy, samples.png and report.json. Pictures: sample_0.png and on, sheet.png and
    report.json.

    MODEL is the name of a shipped model (`ddib model list`), its index, or a bundle's folder.
    """
    from ddib_fed.engine.arrays import ArraySettings
    from ddib_fed.engine.local_party import open_party
    from ddib_fed.evaluation.draws import draw_pictures, draw_points
    from ddib_fed.guidance import Guidance

    refuse_overwriting(out, force=force)
    bundle = open_model(which)
    settings = take_settings(given, [bundle.manifest])
    compat, clip = given.pop("compat"), given.pop("clip")
    if bundle.manifest.sample_kind != "picture":
        options.refuse_idle(given, f"is for pictures, and {which} is a model of points", hint="leave it out")
        asked = ArraySettings(settings, guidance=Guidance(clip=bool(clip)), seed=seed)
        party = open_party(bundle, threads=threads)
        with bar("sampling") as show:
            report = draw_points(party, count or 10_000, asked, out, on_progress=_counting(show))
        cloud = report["target_cloud"]
        lines({"points": str(out / "samples.npy"), **({"sliced-W2": _distance(cloud)} if cloud else {})})
        outcome(out=out, samples=report["points"], digest=bundle.digest, target_cloud=cloud)
        return
    classifier, weight = _guide(given)
    guidance = Guidance(given["guidance"], weight, clip=compat is not None if clip is None else clip)
    label = _class(given["class_"], bundle.manifest, None if classifier is None else classifier.manifest)
    party = open_party(
        bundle,
        given["device"],
        given["dtype"],
        classifier=classifier,
        together=given["batch"],
        threads=threads,
    )
    asked = ArraySettings(settings, target_class=label, guidance=guidance, seed=seed)
    with bar("sampling") as show:
        report = draw_pictures(party, count or 64, asked, out, on_progress=_counting(show))
    lines({"pictures": str(report["count"]), "sheet": str(out / "sheet.png"), "written": str(out)})
    outcome(out=out, samples=report["count"], digest=bundle.digest, **report)


@command()
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@click.option(
    "--source",
    required=True,
    metavar="MODEL",
    help=f"Model that encodes. {options.MODEL_HELP}",
)
@click.option(
    "--target",
    metavar="MODEL",
    help="Model that decodes, as for --source; default: the source.",
)
@click.option("--source-class", metavar="CLASS", help="Class of the two pictures, by number or name.")
@click.option("--target-class", metavar="CLASS", help="Class of the decoded pictures.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the softening.")
@with_options((IN_PROCESS_DEPTH, SOFTEN, BATCH, DTYPE, DEVICE))
@options.EVALUATIONS
@options.SOLVER
@options.GRID
@THREADS
@options.OUT_RESULTS
@options.FORCE
@options.OUTCOME
def interpolate(
    *, first: Path, second: Path, source: str, target: str | None, out: Path, force: bool, **given: Any
) -> None:
    """Decode the latents between those of two pictures: frame_0.png and on, sheet.png and report.json."""
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.engine.arrays import ArraySettings
    from ddib_fed.engine.local_party import open_party
    from ddib_fed.evaluation.draws import between

    refuse_overwriting(out, force=force)
    models = open_model(source), open_model(target or source)
    if not (given["soften"] if given["soften"] is not None else models[0].manifest.soften_sigma):
        options.refuse_idle(("seed",), "is of softening, and there is none", hint="--soften-sigma 0.05")
    decoded = given["target_class"] or (given["source_class"] if target in {None, source} else None)
    asked = ArraySettings(
        SolverSettings(given["solver"], 0, given["evaluations"], given["grid"], depth=given["depth"]),
        source_class=_class(given["source_class"], models[0].manifest),
        target_class=_class(decoded, models[1].manifest),
        soften=given["soften"],
        seed=given["seed"],
    )
    before, after = (
        open_party(model, given["device"], given["dtype"], together=given["batch"], threads=given["threads"])
        for model in models
    )
    with bar("interpolating") as show:
        between(
            (first, second),
            before,
            after,
            asked,
            out,
            frames=FRAMES,
            on_progress=_counting(show),
        )
    lines({"pictures": str(FRAMES), "sheet": str(out / "sheet.png"), "written": str(out)})
    outcome(out=out, frames=FRAMES, sheet=out / "sheet.png")


def _guide(given: dict[str, Any]) -> tuple[Bundle | None, float | None]:
    """The classifier and its weight."""
    if given["classifier"] is None:
        options.refuse_idle(
            ("classifier_scale",), "weighs --classifier, which is not given", hint="add --classifier MODEL"
        )
        return None, None
    weight = given["classifier_scale"]
    return open_model(given["classifier"]), 1.0 if weight is None else weight


def _class(text: str | None, manifest: Manifest, guide: Manifest | None = None) -> int | None:
    """The number of a class of a model, or of the classifier that guides one without classes."""
    owner = manifest if manifest.num_classes is not None or guide is None else guide
    return None if text is None else Classes(owner.name, owner.num_classes or 0, owner.classes).number(text)


def _counting(show: Callable[[int, int, str], None]) -> Callable[[int, int], None]:
    return lambda done, total: show(done, total, "")


def _distance(cloud: dict[str, float]) -> str:
    return f"{cloud['sliced_w2']:.4f} (floor {cloud['sliced_w2_floor']:.4f})"
