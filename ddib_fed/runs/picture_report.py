"""The report of a run over pictures: doubtful pictures, contact sheet, figures.

Everything here is read from the records and the files; a run that was killed and resumed reports the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ddib_fed.bridge.records.translation_record import FolderRun, PictureFigures, Translation, fitted_line
from ddib_fed.errors import FileMissing, InputError, LatentNotGaussian, StateConflict
from ddib_fed.files import read_json, write_file, write_json
from ddib_fed.metrics.pictures import picture_rule, spread
from ddib_fed.metrics.ranking import worst_first
from ddib_fed.metrics.structure import QUANTILE, Structure, Thresholds, doubtful
from ddib_fed.models.bundle_files import parse_manifest
from ddib_fed.models.catalogue import MANIFEST_FILE
from ddib_fed.models.manifest import Manifest
from ddib_fed.runs.picture_recipe import RECORD, REPORT_FILE, SHEET_FILE, Recipe, Task
from ddib_fed.runs.picture_results import write_sheet
from ddib_fed.samples.images import ImageLimits

SHEET_PICTURES = 24
NARROW = 1 / 64
"""Pictures that use less of the model's range were probably made for another, as 8 bits where it has 16."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What a run is, with its models opened."""

    recipe: Recipe
    source: Manifest
    target: Manifest
    digests: tuple[str, ...]
    batch: int

    def described(self) -> dict[str, Any]:
        """All that the results depend on but the pictures, as JSON values."""
        return {
            "settings": self.recipe.described(),
            "models": {
                side: {"name": model.name, "domain": model.domain, "digest": digest}
                for side, model, digest in zip(
                    ("source", "target"), (self.source, self.target), self.digests, strict=False
                )
            },
            "classifier": self.digests[2] or None,
            "batch": self.batch,
        }


def finish(
    settled: Settled,
    tasks: Sequence[Task],
    bad: Sequence[tuple[Path, str]],
    out: Path,
    *,
    limits: ImageLimits | None = None,
    thresholds: Thresholds | None = None,
    seconds: float,
    computed: int,
) -> dict[str, Any]:
    """Mark the records, draw the sheet, write report.json last, and give the report."""
    recipe = settled.recipe
    tasks, records, refused = translated(tasks, recipe, out)
    paths = [out / task.files(recipe)[RECORD] for task in tasks]
    thresholds = thresholds or settled.source.structure
    records = mark(paths, records, thresholds)
    report = {
        **settled.described(),
        "count": len(tasks),
        "computed_now": computed,
        "bad": [{"path": str(path), "reason": reason} for path, reason in (*bad, *refused)],
        "refused": len(refused),
        "seconds": round(seconds, 3),
        "latent": _latents(records),
        "structure": _structure(records, thresholds),
        "range": _ranges(records, settled.source),
        "fitted": fitted_line([(record.input, record) for record in records]),
        "pictures": [path.relative_to(out).as_posix() for path in paths],
    }
    if recipe.cycle:
        report["cycle_psnr"] = dict(spread(_column(records, "cycle_psnr")))
        report["cycle_mse"] = dict(spread(_column(records, "cycle_mse")))
    if recipe.uncertainty:
        spreads = [_run(record).uncertainty or {} for record in records]
        report["uncertainty"] = dict(spread(np.array([found["mean"] for found in spreads])))
    models = settled.source, settled.target
    shown = worst_first([_row(record) for record in records])[:SHEET_PICTURES]
    write_sheet([tasks[i] for i in shown], [records[i] for i in shown], out, models, limits, total=len(tasks))
    marks = [record.doubtful for record in records if record.doubtful is not None]
    report["doubtful"] = sum(marks) if marks else None
    report["sheet"] = SHEET_FILE
    write_json(out / REPORT_FILE, report)
    return report


def translated(
    tasks: Sequence[Task], recipe: Recipe, out: Path
) -> tuple[list[Task], list[Translation], list[tuple[Path, str]]]:
    """The pictures that were translated, their records, and path and reason of those that were refused."""
    kept: list[Task] = []
    records: list[Translation] = []
    refused: list[tuple[Path, str]] = []
    for task in tasks:
        record = _there(out / task.files(recipe)[RECORD])
        if record.run is not None and record.run.refused is not None:
            refused.append((task.path, record.run.refused.detail))
        else:
            kept.append(task)
            records.append(record)
    if not kept:
        path, reason = refused[0]
        raise LatentNotGaussian(
            f"none of {len(refused)} pictures could be translated; the first, {path}: {reason}",
        )
    return kept, records, refused


def _row(record: Translation) -> dict[str, Any]:
    keys = ("cycle_psnr", "edge_correlation", "mutual_information")
    return {key: getattr(_picture(record), key) for key in keys} | {"doubtful": record.doubtful}


def mark(
    paths: Sequence[Path], records: Sequence[Translation], thresholds: Thresholds | None
) -> list[Translation]:
    """The records, each saying whether its translation is doubtful; files that said otherwise are written again."""
    kept = _kept(records)
    marks = None if thresholds is None else doubtful(kept, thresholds).tolist()
    found = []
    for row, (path, record) in enumerate(zip(paths, records, strict=True)):
        held: dict[str, Any] = {
            "least_edge_correlation": None,
            "least_mutual_information": None,
            "least_agreement": None,
            "structure_doubtful": None,
        }
        if thresholds is not None and marks is not None:
            held = {
                "least_edge_correlation": thresholds.edge_correlation,
                "least_mutual_information": thresholds.mutual_information,
                "least_agreement": None if kept.agreement is None else thresholds.agreement,
                "structure_doubtful": marks[row],
            }
        marked = record.with_(picture=held).judged()
        if marked != record:
            write_file(path, marked.to_json())
        found.append(marked)
    return found


def read_thresholds(path: Path) -> Thresholds:
    """The thresholds of a run over held-out pictures (its folder or report.json), or of a model (its folder)."""
    if (path / MANIFEST_FILE).is_file():
        found = parse_manifest((path / MANIFEST_FILE).read_bytes(), str(path)).structure
        if found is None:
            raise InputError(
                f"the model {path} has no thresholds of structure",
                hint=f"ddib model thresholds {shlex.quote(str(path))} --images FOLDER",
            )
        return found
    report = path / REPORT_FILE if path.is_dir() else path
    if not report.exists():
        raise FileMissing(f"no report of a run over held-out pictures: {report}")
    calibrated = ((read_json(report) or {}).get("structure") or {}).get("calibrated")
    try:
        return Thresholds.model_validate(calibrated)
    except ValidationError as error:
        raise InputError(
            f"{report} has no thresholds",
            hint="translate at least two held-out pictures and name that run's report.json",
        ) from error


def _there(path: Path) -> Translation:
    record = Translation.read(path)
    if record is None:
        raise StateConflict(f"{path} was there and is missing now", hint="the same command makes it again")
    return record


def _picture(record: Translation) -> PictureFigures:
    return record.picture or PictureFigures()


def _run(record: Translation) -> FolderRun:
    return record.run or FolderRun()


def _column(records: Sequence[Translation], key: str) -> NDArray[np.float64]:
    return np.array([getattr(_picture(record), key) for record in records], np.float64)


def _latents(records: Sequence[Translation]) -> dict[str, float]:
    """Mean and deviation of all numbers of all latents; of kurtosis and correlation the median picture's."""
    column = {
        key: np.array([getattr(record.latent, key) for record in records], np.float64)
        for key in ("mean", "std", "kurtosis", "correlation")
    }
    mean = float(column["mean"].mean())
    second = float((column["std"] ** 2 + column["mean"] ** 2).mean())
    return {
        "mean": mean,
        "std": float(np.sqrt(max(0.0, second - mean**2))),
        "std_min": float(column["std"].min()),
        "std_max": float(column["std"].max()),
        "kurtosis": float(np.median(column["kurtosis"])),
        "correlation": float(np.median(column["correlation"])),
    }


def _structure(records: Sequence[Translation], thresholds: Thresholds | None) -> dict[str, Any]:
    """Spread of both figures, what thresholds these pictures give, and how many are doubtful by those given."""
    kept = _kept(records)
    beside = [chance for record in records if (chance := _run(record).chance) is not None]
    calibrated = None
    if len(beside) > 1:
        by_chance = float(np.mean([chance["edge_correlation"] for chance in beside]))
        calibrated = Thresholds(
            # Whatever the run kept: below chance nothing is.
            edge_correlation=max(by_chance, float(np.quantile(kept.edge_correlation, QUANTILE))),
            mutual_information=float(np.quantile(kept.mutual_information, QUANTILE)),
            chance_edge_correlation=by_chance,
            chance_mutual_information=float(np.mean([chance["mutual_information"] for chance in beside])),
            quantile=QUANTILE,
            count=len(records),
        )
    return {
        "edge_correlation": dict(spread(kept.edge_correlation)),
        "mutual_information": dict(spread(kept.mutual_information)),
        "calibrated": calibrated.model_dump() if calibrated is not None else None,
        "thresholds": thresholds.model_dump() if thresholds is not None else None,
        "doubtful": int(doubtful(kept, thresholds).sum()) if thresholds is not None else None,
    }


def _kept(records: Sequence[Translation]) -> Structure:
    agreed = all(_picture(record).agreement is not None for record in records)
    return Structure(
        _column(records, "edge_correlation"),
        _column(records, "mutual_information"),
        _column(records, "agreement") if agreed else None,
    )


def _ranges(records: Sequence[Translation], model: Manifest) -> dict[str, Any]:
    """How many pictures do not lie in the model's range, and how many use next to nothing of it."""
    rule = picture_rule(model)
    found = [
        p for record in records if (p := _picture(record)).outside is not None
    ]  # older releases did not say
    return {
        "low": rule.low,
        "high": rule.high,
        "clipped": sum(each.clipped > 0 or (each.outside or 0.0) > 0 for each in found),
        "most_outside": max((each.outside or 0.0 for each in found), default=0.0),
        "narrow": sum(each.used is not None and each.used < NARROW for each in found),
    }
