"""`ddib calibrate --evaluate FILE`: what is known of a calibration's effect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.bars import bar
from ddib_fed.cli.calibrate.showing import interval, show_calibration, show_compared
from ddib_fed.cli.models.opening import open_model
from ddib_fed.cli.output import print_json
from ddib_fed.errors import CalibrationIneffective, ModelNotFound, UsageError
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.record import Calibration
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.runs.calibration.pictures import Anchors
    from ddib_fed.runs.calibration.report import Compared, Ways

Folders = tuple[Path, Path]


def evaluate(
    *,
    evaluate: Path,
    local: tuple[str, str] | None,
    without: str | None,
    pictures: tuple[str, ...],
    anchors: Folders | None,
    count: int,
    evaluations: int,
    seed: int,
    threads: int,
    force: bool,
    output_format: str,
) -> None:
    """Print what is known of a calibration, from pictures that it was not fitted to."""
    from ddib_fed.bridge.arrays import Asked
    from ddib_fed.bridge.calibration.files import read_calibration
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.runs.calibration import report
    from ddib_fed.runs.calibration.pictures import domain_pictures, spaced

    calibration = read_calibration(evaluate)
    source, target = _models(calibration, local)
    folders = two_folders(pictures)
    ways = _ways(calibration, source, target, without, threads)
    own, other = (
        domain_pictures(model, folder) for model, folder in zip((source, target), folders, strict=True)
    )
    units = source.manifest.normalisation.plain, target.manifest.normalisation.plain
    rows = [report.colour_distance(own.train, other.train, calibration.map, units)]
    truth = _truth(source, target, anchors, count)
    given = truth.source if truth is not None else spaced(own.held_out, count)
    if ways is not None:
        with bar("translating") as show:
            stages = report.there_and_back(
                given,
                ways,
                Asked(SolverSettings(evaluations=evaluations), seed=seed),
                on_progress=lambda done, total: show(done, total, ""),
            )
        rows += report.unpaired(given, stages)
        if truth is not None:
            mapped = report.map_alone(given, calibration.map, units)
            rows += report.paired(stages, mapped, truth)
    _print(calibration, rows, _said(truth, anchors, len(given), ways), output_format)
    _refuse(calibration, rows, force=force)


def two_folders(pictures: tuple[str, ...]) -> tuple[str | None, str | None]:
    """What --pictures names of A and of B."""
    if not pictures:
        return None, None
    if len(pictures) != 2:
        raise UsageError(
            f"--pictures is given {len(pictures)} times; it names A's pictures and then B's",
            hint="--pictures A_FOLDER --pictures B_FOLDER",
        )
    return pictures[0], pictures[1]


def _models(calibration: Calibration, local: tuple[str, str] | None) -> tuple[Bundle, Bundle]:
    """The two models, checked to be those that the calibration is for."""
    from ddib_fed.bridge.calibration.applied import check_models

    names = local or (calibration.source.domain, calibration.target.domain)
    try:
        source, target = (open_model(name) for name in names)
    except ModelNotFound as error:
        if local is not None:
            raise
        raise UsageError(
            f"no model of {names[0]} or {names[1]} ships, so both models have to be named",
            hint=f"ddib calibrate --evaluate FILE --local {names[0]}-MODEL {names[1]}-MODEL",
        ) from error
    check_models(calibration, source.manifest, target.manifest)
    return source, target


def _ways(
    calibration: Calibration, source: Bundle, target: Bundle, without: str | None, threads: int
) -> Ways | None:
    """The models of the comparison; None if the source's model would have to be trained with the map first."""
    from ddib_fed.bridge.calibration.record import RETRAINED
    from ddib_fed.bridge.local_party import open_party
    from ddib_fed.runs.calibration.report import Ways

    decoder = open_party(target, threads=threads)
    if calibration.kind not in RETRAINED:
        if without is not None:
            raise UsageError("--without is for tone and colour-map", hint="leave --without out")
        party = open_party(source, threads=threads)
        return Ways(decoder, party, calibration.map, party)
    if source.manifest.normalisation.calibrated is None:
        return None
    before = without or (calibration.source.domain if _ships(calibration.source.domain) else None)
    plain = None if before is None else open_party(open_model(before), threads=threads)
    return Ways(decoder, open_party(source, threads=threads), None, plain)


def _ships(domain: str) -> bool:
    from ddib_fed.models.catalogue import shipped_names

    return domain in shipped_names()


def _truth(source: Bundle, target: Bundle, anchors: Folders | None, count: int) -> Anchors | None:
    from ddib_fed.runs.calibration.pictures import folder_anchors, shipped_truth

    if anchors is not None:
        return folder_anchors(source, target, anchors)
    return shipped_truth(source, target, count)


def _said(truth: Anchors | None, anchors: Folders | None, count: int, ways: Ways | None) -> list[str]:
    """What the figures are of."""
    said = []
    if ways is None:
        said.append(
            "The source's model was not trained with this map, so only the map itself is measured. "
            "`ddib model train --init MODEL --calibration FILE` trains it."
        )
    elif truth is None:
        said.append(f"{count} held-out pictures; their true translations are not known.")
    else:
        what = (
            "anchors" if anchors is not None else "test pictures of places that neither model was trained on"
        )
        said.append(f"{count} {what}, whose true translations are known.")
    said.append("Intervals of 95 %. `map alone`: the channels mapped, without any network.")
    return said


def _print(calibration: Calibration, rows: list[Compared], said: list[str], output_format: str) -> None:
    if output_format == "json":
        print_json({"calibration": calibration, "sha256": calibration.sha256, "figures": rows, "notes": said})
        return
    show_calibration(calibration)
    say()
    show_compared("Without and with it", rows)
    say(*said)


def _refuse(calibration: Calibration, rows: list[Compared], *, force: bool) -> None:
    """With a truth, a calibration must gain in PSNR or SSIM and lose in neither; else colours must come nearer."""
    from ddib_fed.bridge.calibration.judgement import judge

    if force:
        return
    judged = [row for row in rows if row.judges and row.verdict] or rows[:1]
    verdicts = [row.verdict for row in judged]
    if "better" not in verdicts or "worse" in verdicts:
        gains = "; ".join(f"{row.name} {_signed(row)}" for row in judged)
        raise CalibrationIneffective(
            f"the calibration is not better than none: {gains}",
            hint="calibrate from anchors (--anchors A_DIR B_DIR), or use it anyway with --force",
        )
    if judged == rows[:1]:
        judge(calibration.effect)


def _signed(row: Compared) -> str:
    return interval(row.calibrated) if row.gain is None else f"changes by {interval(row.gain)}"
