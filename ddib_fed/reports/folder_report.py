"""The report on a folder of translations: measured from its files, completed from its records.

Figures are measured from the files where possible; otherwise a record's figure (the model's own cycle, before
rounding; the latent, which is in no file) is used, and the report states which of the two it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ddib_fed.bridge.records.translation_record import PictureFigures, Translation
from ddib_fed.metrics.bootstrap import resample
from ddib_fed.metrics.judgement import Domain, Figures, OnStep, intervals_of, judge, put
from ddib_fed.metrics.latents import whiteness
from ddib_fed.metrics.structure import Thresholds
from ddib_fed.reports.translations import OnRead, Translations, read_domain, read_translations

DOMAIN_PICTURES = 1000
FROM_FILES, FROM_RECORDS = "files", "records"


@dataclass(frozen=True, slots=True)
class Folders:
    """The inputs of a report on a folder of translations."""

    translations: Path
    source: Path | None = None
    truth: Path | None = None
    domain: Path | None = None
    source_domain: Path | None = None
    size: int | None = None
    span: tuple[float, float] | None = None
    by_folder: bool = False


def evaluate_folder(
    folders: Folders,
    *,
    thresholds: Thresholds | None = None,
    on_read: OnRead | None = None,
    on_step: OnStep | None = None,
) -> tuple[Figures, Translations]:
    """The report on a folder of translations as JSON values, and its pictures."""
    found = read_translations(
        folders.translations,
        source=folders.source,
        truth=folders.truth,
        size=folders.size,
        span=folders.span,
        on_read=on_read,
    )
    clusters = np.array([str(PurePosixPath(name).parent) for name in found.names])
    report = judge(
        found.translated,
        source=found.source,
        truth=found.truth,
        back=found.back,
        domain=_domain(folders, found),
        thresholds=thresholds,
        clusters=clusters if folders.by_folder else None,
        on_step=on_step,
    )
    rows = report.pop("pictures")
    _fill_cycle(report, rows, found.records)
    _fill_structure(report, rows, found.records)
    if report["intervals"] is not None:
        drawn = resample(len(rows), clusters if folders.by_folder else None)
        report["intervals"]["translated"] = intervals_of(rows, drawn)
    report["latent"] = _latents(found)
    report["notes"] = [*found.notes, *_calibrations(found.records)]
    report["pictures"] = [{"name": name, **row} for name, row in zip(found.names, rows, strict=True)]
    return report, found


def _calibrations(records: Sequence[Translation]) -> list[str]:
    named = Counter((r.calibration_kind, r.calibration_sha256[:12]) for r in records if r.calibration_sha256)
    return [
        f"{count} of {len(records)} pictures were translated under the {kind} calibration {sha256}."
        for (kind, sha256), count in named.items()
    ]


def _domain(folders: Folders, found: Translations) -> Domain | None:
    if folders.domain is None:
        return None
    own = folders.source_domain
    return Domain(
        read_domain(folders.domain, found.scale, most=DOMAIN_PICTURES),
        None if own is None else read_domain(own, found.source_scale, most=DOMAIN_PICTURES),
    )


def _fill_cycle(report: Figures, rows: list[Figures], records: Sequence[Translation]) -> None:
    if report["cycle"] is not None:
        report["cycle"]["from"] = FROM_FILES
        return
    errors, ratios = _column(records, "cycle_mse"), _column(records, "cycle_psnr")
    if errors is not None and ratios is not None:
        report["cycle"] = {
            "mse": put(rows, "cycle_mse", errors),
            "psnr": put(rows, "cycle_psnr", ratios),
            "from": FROM_RECORDS,
        }


def _fill_structure(report: Figures, rows: list[Figures], records: Sequence[Translation]) -> None:
    """The records' figures if there are no sources, and their marks if there are no thresholds."""
    marks = [record.doubtful for record in records]
    if report["structure"] is not None:
        report["structure"]["from"] = FROM_FILES
    else:
        edges, shared = _column(records, "edge_correlation"), _column(records, "mutual_information")
        if edges is None or shared is None:
            return
        report["structure"] = {
            "edge_correlation": put(rows, "edge_correlation", edges),
            "mutual_information": put(rows, "mutual_information", shared),
            "chance": None,
            "thresholds": None,
            "doubtful": None,
            "from": FROM_RECORDS,
        }
    if report["structure"]["doubtful"] is None and any(mark is not None for mark in marks):
        report["structure"]["doubtful"] = sum(map(bool, marks))
        for row, mark in zip(rows, marks, strict=True):
            row["doubtful"] = mark


def _latents(found: Translations) -> Figures | None:
    """Joint statistics of kept latents, beside noise; otherwise those in each record."""
    if found.latents is not None:
        measured = whiteness(torch.from_numpy(found.latents))
        return {
            **asdict(measured.latent),
            "noise_correlation": measured.noise.correlation,
            "ratio": measured.ratio,
            "from": FROM_FILES,
        }
    columns: dict[str, Any] = {
        key: _measured([getattr(record.latent, key) for record in found.records])
        for key in ("mean", "std", "kurtosis", "correlation")
    }
    if any(column is None for column in columns.values()):
        return None
    mean = float(columns["mean"].mean())
    second = float((columns["std"] ** 2 + columns["mean"] ** 2).mean())
    return {
        "mean": mean,
        "std": float(np.sqrt(max(0.0, second - mean**2))),
        # Of one picture's few patches: comparable with another picture's, not with zero.
        "kurtosis": float(np.median(columns["kurtosis"])),
        "correlation": float(np.median(columns["correlation"])),
        "from": FROM_RECORDS,
    }


def _column(records: Sequence[Translation], name: str) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    return _measured([getattr(record.picture or PictureFigures(), name) for record in records])


def _measured(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    return None if None in values else np.array(values, np.float64)
