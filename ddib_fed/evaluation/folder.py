"""The report on a folder of translations: measured from its files, completed from its records, and as tables.

Figures are measured from the files where possible; otherwise a record's figure (the model's own cycle, before
rounding; the latent, which is in no file) is used, and the report states which of the two it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ddib_fed.engine.record import PictureFigures, Translation
from ddib_fed.evaluation.bootstrap import resample
from ddib_fed.evaluation.features import NAME
from ddib_fed.evaluation.judgement import Domain, Figures, OnStep, intervals_of, judge, put
from ddib_fed.evaluation.metrics import whiteness
from ddib_fed.evaluation.structure import Thresholds
from ddib_fed.evaluation.translations import OnRead, Translations, read_domain, read_translations

Cell = str | float | None

TITLES = {
    "translated": "translated",
    "source": "source unchanged",
    "histogram": "histogram match, unpaired",
    "mean": "mean picture of the domain",
    "random": "random picture of the domain",
    "colour_map": "quadratic colour map, fitted on half of these pairs",
    "truth": "the truth itself",
    "floor": "real pictures among themselves",
}
DOMAIN_PICTURES = 1000
FROM_FILES, FROM_RECORDS = "files", "records"


@dataclass(frozen=True, slots=True)
class Folders:
    translations: Path
    source: Path | None = None
    truth: Path | None = None
    domain: Path | None = None
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
    return Domain(read_domain(folders.domain, found.scale, most=DOMAIN_PICTURES))


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


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def tables(report: Figures) -> list[Table]:
    found = (_quality(report), _round_trip(report), _retrieval(report), _features(report), _latent(report))
    return [table for table in found if table is not None]


def per_picture(report: Figures) -> list[Figures]:
    rows: Sequence[Figures] = report["pictures"]
    return [rows[index] for index in worst_first(rows)]


def _quality(report: Figures) -> Table | None:
    paired = report["paired"]
    if paired is None:
        return None
    names = ("psnr", "ssim", "mse")
    bounds = report.get("intervals") or {"translated": {}, "baselines": {}}
    rows: list[tuple[Cell, ...]] = [
        (TITLES["translated"], *(_ranged(paired[n]["mean"], bounds["translated"].get(n)) for n in names))
    ]
    rows += [
        (TITLES[name], *(_ranged(means[n], bounds["baselines"].get(name, {}).get(n)) for n in names))
        for name, means in report["baselines"].items()
    ]
    note = "Means over the pictures. PSNR rewards blur: the mean picture of a domain beats many good translations."
    return Table(
        "Translation and truth",
        ("", "PSNR dB", "SSIM", "MSE in [-1, 1]"),
        tuple(rows),
        f"{note}{_of_intervals(report)}",
    )


def _ranged(value: float, bounds: Figures | None) -> Cell:
    if bounds is None:
        return value
    return f"{value:.3g} [{bounds['low']:.3g}, {bounds['high']:.3g}]"


def _of_intervals(report: Figures) -> str:
    found = report.get("intervals")
    if found is None:
        return ""
    over = f"{report['count']} pictures" if found["clusters"] is None else f"{found['clusters']} clusters"
    return f" In brackets: {found['level']:.0%} of bootstrap draws of the {over}."


def _round_trip(report: Figures) -> Table | None:
    rows: list[tuple[Cell, ...]] = []
    notes = []
    if (cycle := report["cycle"]) is not None:
        rows.append(("round trip, PSNR dB", *_spread(cycle["psnr"], report, "cycle_psnr"), None))
    if (kept := report["structure"]) is not None:
        chance = kept["chance"] or {}
        rows += [
            (title, *_spread(kept[key], report, key), chance.get(key))
            for title, key in (
                ("edge correlation", "edge_correlation"),
                ("mutual information, bits", "mutual_information"),
            )
        ]
        if kept["doubtful"] is not None:
            notes.append(f"Doubtful: {kept['doubtful']} of {report['count']}.{_least(kept['thresholds'])}")
    notes.append("A good round trip does not show that structure was kept.")
    columns = ("", "median", "mean", "worst", "by chance")
    return Table("Round trip and structure", columns, tuple(rows), " ".join(notes)) if rows else None


def _least(thresholds: Figures | None) -> str:
    if thresholds is None:
        return ""
    edges, shared = thresholds["edge_correlation"], thresholds["mutual_information"]
    return f" Edge correlation below {edges:.2f} or mutual information below {shared:.2f} bits is doubtful."


def _spread(spread: Figures, report: Figures, key: str) -> tuple[Cell, ...]:
    bounds = (report.get("intervals") or {"translated": {}})["translated"].get(key)
    return spread["median"], _ranged(spread["mean"], bounds), spread["min"]


def _retrieval(report: Figures) -> Table | None:
    found = report["retrieval"]
    if found is None:
        return None
    bounds = (report.get("intervals") or {}).get("retrieval", {})
    rows = tuple(
        (
            TITLES[name],
            *(
                _ranged(one[by]["found"], bounds.get(name, {}).get(by)) if by in one else None
                for by in ("pixels", "features")
            ),
        )
        for name, one in found.items()
    )
    first: dict[str, Any] = found["translated"]["pixels"]
    chance = ("by chance", first["chance"], first["chance"])
    title = f"True partner among the {first['nearest']} nearest of {first['count']}"
    note = "By the MSE of pictures less their mean, and by features of an ImageNet classifier."
    return Table(title, ("", "by pixels", "by features"), (*rows, chance), f"{note}{_of_intervals(report)}")


def _features(report: Figures) -> Table | None:
    found = report["features"]
    if found is None:
        return None
    keys = ("frechet_early", "frechet_late", "kernel_early", "kernel_late")
    bounds = (report.get("intervals") or {}).get("features", {})
    rows = tuple(
        (TITLES[name], *(_ranged(one[key], bounds.get(name, {}).get(key)) for key in keys))
        for name, one in found["distance"].items()
    )
    floor = (TITLES["floor"], *(found["floor"][key] for key in keys))
    note = f"To {found['domain_pictures']} pictures of the domain, on {NAME}; not the published FID or KID. "
    note += "With few pictures the Frechet distance is too large: compare with the last line."
    columns = ("", "Frechet, block 5", "Frechet, block 11", "kernel, block 5", "kernel, block 11")
    return Table(
        "Feature distance to the target domain", columns, (*rows, floor), f"{note}{_of_intervals(report)}"
    )


def _latent(report: Figures) -> Table | None:
    latent = report.get("latent")
    if latent is None:
        return None
    row = ("latents", latent["mean"], latent["std"], latent["kurtosis"], latent["correlation"])
    rows: list[tuple[Cell, ...]] = [row]
    note = "Correlation of two pixels of a patch of 8 x 8, of the median picture: keep the latents for all together."
    if "noise_correlation" in latent:
        rows.append(("true noise", 0.0, 1.0, 0.0, latent["noise_correlation"]))
        note = "Mean correlation of two pixels of a patch of 8 x 8; few patches make that of true noise large too."
    return Table("Latents", ("", "mean", "std", "kurtosis", "correlation"), tuple(rows), note)


RANKED = ("cycle_psnr", "psnr", "ssim", "edge_correlation", "mutual_information")
"""For all of them, more is better."""


def worst_first(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of pictures: those marked as doubtful first, then by each one's worst rank in any of its figures."""
    if not rows:
        return []
    known = [key for key in RANKED if all(row.get(key) is not None for row in rows)]
    # With equal figures equal ranks: the share of pictures that are worse.
    ranks = [_ranks(np.array([float(row[key]) for row in rows])) for key in known] or [
        np.zeros(len(rows), np.int64)
    ]
    worst, mean = np.min(ranks, axis=0), np.mean(ranks, axis=0)
    return sorted(range(len(rows)), key=lambda i: (not rows[i].get("doubtful"), worst[i], mean[i], i))


def _ranks(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    values = np.where(np.isnan(values), -np.inf, values)  # a missing measurement ranks as bad
    return np.searchsorted(np.sort(values), values)
