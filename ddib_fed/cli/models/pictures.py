"""`ddib bridge` and `ddib model sample` for models of pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed.bars import bar
from ddib_fed.cli import options
from ddib_fed.cli.class_names import Classes, parse_pairs
from ddib_fed.cli.models.opening import open_model
from ddib_fed.cli.output import NEXT_STEPS, lines, outcome
from ddib_fed.cli.typed import same_command
from ddib_fed.errors import LatentNotGaussian, UsageError
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.models.manifest import Manifest
    from ddib_fed.runs.picture_recipe import Recipe
    from ddib_fed.runs.picture_run import Found

MOST_NAMED = 20


def manifest_of(which: str) -> Manifest:
    """The manifest of a model given by name or folder, without reading the weights of a folder."""
    from ddib_fed.models.bundle_files import parse_manifest
    from ddib_fed.models.catalogue import MANIFEST_FILE
    from ddib_fed.models.shipped import shipped_name

    path = Path(which) / MANIFEST_FILE
    if shipped_name(which) is None and path.is_file():
        return parse_manifest(path.read_bytes(), which)
    return open_model(which).manifest


def translate(
    folder: Path | None,
    source: str,
    target: str,
    out: Path,
    settings: SolverSettings,
    *,
    cycle: bool,
    seed: int,
    threads: int,
    force: bool,
    compat: str | None,
    clip: bool | None,
    **given: Any,
) -> None:
    """Translate a folder of pictures, or one picture: `ddib bridge translate` and `ddib bridge cycle`."""
    from ddib_fed.runs.picture_report import read_thresholds
    from ddib_fed.runs.picture_run import own_scene, run, usual_scene

    if folder is None:
        raise UsageError(
            f"{source} is a model of pictures: name their folder",
            hint="ddib bridge translate ... FOLDER --out DIR",
        )
    _refuse_unguided(given["classifier"], given["guidance"])
    recipe = _recipe(source, target, settings, cycle=cycle, seed=seed, compat=compat, clip=clip, given=given)
    if not settings.stochastic:
        _refuse_seed(source, recipe.soften)
    thresholds = read_thresholds(given["thresholds"]) if given["thresholds"] is not None else None
    found = _found(folder, recipe, given)
    _name_bad(found)
    scene = own_scene(found) if given["scene"] == "own" else given["scene"]
    if scene is None and given["pairs"] is None:
        scene = usual_scene(found, manifest_of(source), recipe.settings)
    recipe = replace(recipe, scene=scene)
    with bar("translating") as show:
        report = run(
            recipe,
            found,
            out,
            opener=open_model,
            device=given["device"],
            batch=given["batch"],
            threads=threads,
            thresholds=thresholds,
            force=force,
            on_progress=show,
        )
    lines(_summary(report, out))
    outcome(out=out, **report)
    if not given["skip_bad"]:
        _require_all(report, out)


def _require_all(report: dict[str, Any], out: Path) -> None:
    if report["refused"]:
        first = report["bad"][-report["refused"]]
        raise LatentNotGaussian(
            f"{report['refused']} pictures were refused, as a node would refuse them; the first, {first['path']}: "
            f"{first['reason']}; {out / 'report.json'} names all, and the others are translated",
            hint=f"{NEXT_STEPS[LatentNotGaussian.reason]}\nwithout an error: {same_command('--skip-bad')}",
        )


def _recipe(
    source: str,
    target: str,
    settings: SolverSettings,
    *,
    cycle: bool,
    seed: int,
    compat: str | None,
    clip: bool | None,
    given: dict[str, Any],
) -> Recipe:
    """How to translate, from the options; the public code neither softens nor leaves values unclipped."""
    from ddib_fed.runs.picture_recipe import Recipe

    return Recipe(
        source,
        target,
        replace(settings, encoder=given["encoder"]),
        soften=0.0 if compat is not None and given["soften"] is None else given["soften"],
        depth=given["depth"],
        seed=seed,
        cycle=cycle,
        classifier=given["classifier"],
        classifier_scale=given["classifier_scale"],
        guidance=given["guidance"],
        guide_encoding=given["guide"] == "both",
        clip=compat is not None if clip is None else clip,
        dtype=given["dtype"],
        uncertainty=given["uncertainty"] or 0,
        keep_latents=given["keep_latents"],
        public_names=given["pairs"] is not None,
        calibration=read_given(given["calibration"]),
    )


def sample(
    bundle: Bundle,
    out: Path,
    count: int,
    seed: int,
    settings: SolverSettings,
    *,
    threads: int,
    compat: str | None,
    clip: bool | None,
    **given: Any,
) -> None:
    """Draw pictures from a model: `ddib model sample`."""
    from ddib_fed.bridge.arrays import Asked
    from ddib_fed.bridge.local_party import open_party
    from ddib_fed.guidance import Guidance
    from ddib_fed.runs.picture_draws import draw

    _refuse_unguided(given["classifier"], given["guidance"])
    classifier = open_model(given["classifier"]) if given["classifier"] is not None else None
    held = compat is not None if clip is None else clip
    weight = given["classifier_scale"]
    if classifier is not None and weight is None:
        weight = 1.0
    guidance = Guidance(given["guidance"], weight, clip=held)
    label = _class(given["class_"], bundle.manifest, None if classifier is None else classifier.manifest)
    party = open_party(
        bundle,
        given["device"],
        given["dtype"],
        classifier=classifier,
        together=given["batch"],
        threads=threads,
    )
    asked = Asked(settings, target_class=label, guidance=guidance, seed=seed)
    with bar("sampling") as show:
        report = draw(party, count, asked, out, on_progress=lambda done, total: show(done, total, ""))
    lines({"pictures": str(report["count"]), "sheet": str(out / "sheet.png"), "written": str(out)})
    outcome(out=out, **report)


def interpolate(
    first: Path,
    second: Path,
    source: str,
    target: str,
    out: Path,
    settings: SolverSettings,
    *,
    threads: int,
    seed: int,
    **given: Any,
) -> None:
    """Pictures along the latents between two pictures: `ddib bridge interpolate`."""
    from ddib_fed.bridge.arrays import Asked
    from ddib_fed.bridge.local_party import open_party
    from ddib_fed.runs.picture_draws import between

    _refuse_seed(source, given["soften"])
    models = open_model(source), open_model(target)
    classes = (
        given["source_class"],
        given["target_class"] or (given["source_class"] if source == target else None),
    )
    first_class, second_class = (
        _class(text, model.manifest) for text, model in zip(classes, models, strict=True)
    )
    before, after = (
        open_party(model, given["device"], given["dtype"], together=given["batch"], threads=threads)
        for model in models
    )
    asked = Asked(
        replace(settings, depth=given["depth"]),
        source_class=first_class,
        target_class=second_class,
        soften=given["soften"],
        seed=seed,
    )
    with bar("interpolating") as show:
        between(
            (first, second),
            before,
            after,
            asked,
            out,
            frames=given["frames"],
            way=given["way"],
            on_progress=lambda done, total: show(done, total, ""),
        )
    lines({"pictures": str(given["frames"]), "sheet": str(out / "sheet.png"), "written": str(out)})
    outcome(out=out, frames=given["frames"], sheet=out / "sheet.png")


def _refuse_unguided(classifier: str | None, guidance: float | None) -> None:
    """Guidance options need guidance: otherwise pictures would silently be unguided."""
    if classifier is None:
        options.refuse_idle(
            ("classifier_scale",),
            "weighs --classifier, which is not given",
            hint="add --classifier MODEL, or omit --classifier-scale",
        )
    if classifier is None and guidance is None:
        options.refuse_idle(
            ("guide",),
            "needs guidance, and neither --classifier nor --guidance is given",
            hint="add --classifier MODEL or --guidance SCALE, or omit --guide",
        )


def _refuse_seed(source: str, soften: float | None) -> None:
    """A seed is for softening noise: without softening it has no effect."""
    if soften == 0.0 or (soften is None and manifest_of(source).soften_sigma == 0.0):
        options.refuse_idle(
            ("seed",),
            "sets the noise of softening and of --eta, and this run has neither",
            hint="leave --seed out; --soften-sigma 0.05, or --eta 0.5 with --solver ddim, draws noise",
        )


def _found(folder: Path, recipe: Recipe, given: dict[str, Any]) -> Found:
    from ddib_fed.metrics.pictures import picture_rule
    from ddib_fed.runs.picture_run import class_tasks, folder_tasks

    manifests = manifest_of(recipe.source), manifest_of(recipe.target)
    guide = manifest_of(recipe.classifier) if recipe.classifier is not None else None
    with bar("looking at files") as show:
        shared: dict[str, Any] = {
            "limit": given["limit"],
            "skip_bad": given["skip_bad"],
            "rule": picture_rule(manifests[0]),
            "on_progress": lambda done, total, remark: show(done, total, ""),  # noqa: ARG005 - the bar says it
        }
        if given["pairs"] is not None:
            if given["source_class"] is not None or given["target_class"] is not None:
                raise UsageError(
                    "--pairs already sets the classes", hint="omit --source-class and --target-class"
                )
            pairs = parse_pairs(given["pairs"], *(classes_of(each, guide) for each in manifests))
            names = manifests[0].classes
            return class_tasks(folder, pairs, class_names=names, labels=given["labels"], **shared)
        if given["labels"] is not None:
            raise UsageError("--labels is only used with --pairs", hint="add --pairs 260:261")
        classes = (
            _class(given["source_class"], manifests[0], guide),
            _class(given["target_class"], manifests[1], guide),
        )
        return folder_tasks(folder, classes=classes, **shared)


def classes_of(manifest: Manifest, guide: Manifest | None = None) -> Classes:
    owner = manifest if manifest.num_classes is not None or guide is None else guide
    return Classes(owner.name, owner.num_classes or 0, owner.classes)


def _class(text: str | None, manifest: Manifest, guide: Manifest | None = None) -> int | None:
    return None if text is None else classes_of(manifest, guide).number(text)


def _name_bad(found: Found) -> None:
    if not found.bad:
        return
    say(f"{len(found.bad)} pictures cannot be used and are left out:", err=True)
    for path, reason in found.bad[:MOST_NAMED]:
        say(f"  {path}: {reason}", err=True)
    if len(found.bad) > MOST_NAMED:
        say(f"  and {len(found.bad) - MOST_NAMED} more, all in report.json", err=True)


def _summary(report: dict[str, Any], out: Path) -> dict[str, str]:
    before = report["count"] + report["refused"] - report["computed_now"]
    text = {"size": f"{report['fitted']} (--scene own keeps it)"} if report["fitted"] else {}
    text["pictures"] = f"{report['count']}" + (f" ({before} were there)" if before else "")
    if report["bad"]:
        text["left out"] = f"{len(report['bad'])} that cannot be used"
    if (span := report["range"])["clipped"]:
        text["clipped"] = (
            f"{span['clipped']} pictures, by up to {100 * span['most_outside']:.2g} % of their values: the source's "
            f"model takes {span['low']:g} to {span['high']:g}; the figures compare with the pictures as given"
        )
    if span["narrow"]:
        text["dark or flat"] = (
            f"{span['narrow']} pictures use hardly any of {span['low']:g} to {span['high']:g}: is this their range?"
        )
    latent = report["latent"]
    text["latent"] = (
        f"mean {latent['mean']:+.3f}, std {latent['std']:.3f}, kurtosis {latent['kurtosis']:+.3f}"
    )
    kept = report["structure"]
    text["structure"] = f"edge correlation {kept['edge_correlation']['median']:.2f}, "
    text["structure"] += f"mutual information {kept['mutual_information']['median']:.2f} bits (medians)"
    if report["doubtful"] is not None:
        text["doubtful"] = f"{report['doubtful']} pictures, framed in the sheet"
    if "cycle_psnr" in report:
        cycled = report["cycle_psnr"]
        text["cycle"] = f"PSNR {cycled['median']:.1f} dB (median), {cycled['min']:.1f} dB (least)"
    if "uncertainty" in report:
        text["uncertainty"] = f"{report['uncertainty']['median']:.4f} (median of the maps' means, in [-1, 1])"
    text["cost"] = f"{report['seconds']:.1f} s"
    return text | {"sheet": str(out / report["sheet"]), "written": str(out)}
