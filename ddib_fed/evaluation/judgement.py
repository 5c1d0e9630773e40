"""All figures of a set of translations, each beside what it must be compared with, and the tables that show them.

A figure that cannot be computed from the inputs is left out. Intervals are those of `metrics.resample`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed import metrics
from ddib_fed.metrics import (
    LEVEL,
    Interval,
    Pictures,
    Resamples,
    feature_distance,
    histogram_match,
    resample,
    structure,
    to_channels,
)
from ddib_fed.models.units import PictureMap

SMALLEST = 1e-9


def baselines(
    source: Pictures | None, domain: Pictures | None, mapping: PictureMap | None, channels: int
) -> dict[str, Pictures]:
    """Return the translations without a model that can be computed, by name."""
    if source is None:
        return {}
    stacks = {} if mapping is None else {"map": mapping(source)}
    stacks["source"] = to_channels(source, channels)
    return stacks if domain is None else {**stacks, "histogram": histogram_match(source, source, domain)}


Report = dict[str, Any]
FEWEST_PICTURES = 4  # for distances and neighbours


def judge(
    translated: Pictures,
    *,
    source: Pictures | None = None,
    truth: Pictures | None = None,
    back: Pictures | None = None,
    domain: Pictures | None = None,
    recorded: Mapping[str, metrics.Figures] | None = None,
    marks: Sequence[bool | None] = (),
    mapping: PictureMap | None = None,
    through: Mapping[str, Pictures] | None = None,
    clusters: NDArray[Any] | None = None,
) -> Report:
    """Return all figures of translations (N, C, H, W) in [-1, 1], or of volumes (N, C, D, H, W), as JSON values.

    `domain` are other pictures of the target domain; `recorded` figures count where the pictures do not show them;
    `marks` are of doubt; `mapping`, of the calibration, is the first baseline, and `through` are further ones by name,
    such as what the target's autoencoder makes of others; intervals draw whole `clusters`.
    """
    count, shape = len(translated), translated.shape[1:]
    drawn = resample(count, clusters)
    measured: dict[str, metrics.Figures] = {}
    chance: dict[str, float] = {}
    if source is not None:
        measured["edge_correlation"] = structure(source, translated).edge_correlation
        if count > 1:  # each source beside its neighbour's translation
            others = structure(source, np.roll(translated, 1, axis=0))
            chance = {"edge_correlation": float(others.edge_correlation.mean())}
        if back is not None:
            measured["cycle_mse"] = errors = metrics.mse(back, source)
            measured["cycle_psnr"] = metrics.to_psnr(errors)
    # They are clipped like a file's values; the references are not.
    within = None if source is None else np.clip(source, -1.0, 1.0)
    stacks = {"translated": translated, **baselines(within, domain, mapping, shape[0]), **(through or {})}
    notes: list[str] = []
    ways: dict[str, dict[str, Any]] = {name: {} for name in stacks}
    if (like := domain if truth is None else truth) is not None:
        sharp = max(float(metrics.sharpness(like).mean()), SMALLEST)
        for name, stack in stacks.items():
            ways[name]["sharpness"] = drawn.mean(metrics.sharpness(stack) / sharp)
    if truth is not None:
        likeness, notes = _add_similarity(ways, stacks, truth, drawn)
        measured |= likeness
    if domain is not None and min(count, len(domain)) >= FEWEST_PICTURES:
        notes += _add_distances(ways, stacks, truth, domain, drawn)
    columns = {**(recorded or {}), **measured}
    rows: list[Report] = [
        dict(zip(columns, values, strict=True))
        for values in zip(*(c.tolist() for c in columns.values()), strict=True)
    ] or [{} for _ in translated]
    for row, mark in zip(rows, marks, strict=False):
        row["doubtful"] = mark
    return {
        "count": count,
        "shape": list(shape),
        "clusters": None if clusters is None else drawn.counts.shape[1],
        "ways": {name: figures for name, figures in ways.items() if figures},
        "spread": {
            key: {**metrics.spread(column), **drawn.mean(column), "chance": chance.get(key)}
            for key, column in columns.items()
        },
        "measured": sorted(measured),
        "doubtful": sum(map(bool, marks)) if any(mark is not None for mark in marks) else None,
        "pictures": rows,
        "notes": notes,
    }


def _add_similarity(
    ways: dict[str, dict[str, Any]], stacks: Mapping[str, Pictures], truth: Pictures, drawn: Resamples
) -> tuple[dict[str, metrics.Figures], list[str]]:
    """Add likeness to the truth to the ways; return the figures of the translations, and notes."""
    same = {name: metrics.compare(stack, truth) for name, stack in stacks.items()}
    for name, each in same.items():
        ways[name] |= {key: drawn.mean(values) for key, values in each._asdict().items()}
    if len(truth) >= FEWEST_PICTURES:
        for name, stack in stacks.items():
            ways[name]["partner_pixels"] = drawn.mean(metrics.hits_by_pixels(stack, truth))
        ways["chance"] = {"partner_pixels": {"value": min(1.0, metrics.NEAREST / len(truth))}}
    notes: list[str] = []
    if "map" in same:
        notes = _beside_map("SSIM", drawn.mean(same["translated"].ssim - same["map"].ssim))
    return same["translated"]._asdict(), notes


def _add_distances(
    ways: dict[str, dict[str, Any]],
    judged: Mapping[str, Pictures],
    truth: Pictures | None,
    domain: Pictures,
    drawn: Resamples,
) -> list[str]:
    """Add distances to the domain to the ways; return notes on the map alone."""
    if truth is not None:
        judged = {**judged, "truth": np.clip(truth, -1.0, 1.0)}
    real = metrics.features(domain)
    seen = {name: metrics.features(each) for name, each in judged.items()}
    for name, each in seen.items():
        ways[name] = {**ways.get(name, {}), "frechet_early": feature_distance(each, real, drawn)}
    ways["floor"] = {"frechet_early": {"value": metrics.feature_floor(real, len(drawn))}}
    if "map" not in seen:
        return []
    return _beside_map(
        "feature distance", feature_distance(seen["translated"], real, drawn, than=seen["map"])
    )


def _beside_map(what: str, gain: Interval) -> list[str]:
    """Return a note if the translations are not better than the map alone by the interval of their gain."""
    if gain["low"] > 0.0:
        return []
    than = "are worse than" if gain["high"] < 0.0 else "are no better than"
    by = f"gain {gain['value']:.3g}, {LEVEL:.0%} within [{gain['low']:.3g}, {gain['high']:.3g}]"
    return [f"In {what} the translations {than} the calibration's map alone, which needs no model ({by})."]


Cell = str | float | None
TITLES: Final = {
    "translated": "translated",
    "map": "calibration's map alone, no model",
    "map_through": "the same, through the target's autoencoder",
    "source": "source unchanged",
    "histogram": "histogram match, unpaired",
    "truth": "the truth itself",
    "truth_through": "the truth, through the target's autoencoder",
    "chance": "by chance",
    "floor": "real pictures among themselves",
}
_OF_WAYS: Final = (
    (
        "Translation and truth",
        {"psnr": "PSNR dB", "ssim": "SSIM", "mse": "MSE in [-1, 1]"},
        "Means over the pictures. PSNR rewards blur.",
    ),
    (
        f"True partner among the {metrics.NEAREST} nearest",
        {"partner_pixels": "share"},
        "By the MSE of pictures less their mean.",
    ),
    ("Sharpness", {"sharpness": "share of the truth's, or the domain's"}, "Mean change from pixel to pixel."),
    (
        "Feature distance to the target domain",
        {"frechet_early": "Frechet"},
        f"On {metrics.NAME}; not the published FID. Of few pictures the distance is too large.",
    ),
)
_OF_PICTURES: Final = {"cycle_psnr": "round trip, PSNR dB", "edge_correlation": "edge correlation"}


@dataclass(frozen=True, slots=True)
class FigureTable:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    kind: str = ""  # the class of the table on a page


def tables(report: Report) -> list[FigureTable]:
    over = f"{report['count']} pictures" if report["clusters"] is None else f"{report['clusters']} clusters"
    brackets = f"In brackets: {LEVEL:.0%} of bootstrap draws of the {over}."
    shown = []
    for title, columns, note in _OF_WAYS:
        rows = [
            (TITLES[name], *(_ranged(figures.get(key)) for key in columns))
            for name, figures in report["ways"].items()
            if columns.keys() & figures.keys()
        ]
        if any(name != TITLES["chance"] for name, *_ in rows):
            shown.append(FigureTable(title, ("", *columns.values()), tuple(rows), f"{note} {brackets}"))
    spread = {key: one for key in _OF_PICTURES if (one := report["spread"].get(key)) is not None}
    if spread:
        rows = [
            (
                _OF_PICTURES[key],
                one["median"],
                _ranged({**one, "value": one["mean"]}),
                one["min"],
                one["chance"],
            )
            for key, one in spread.items()
        ]
        note = "A good round trip does not show that structure was kept."
        if report["doubtful"] is not None:
            note = f"Doubtful: {report['doubtful']} of {report['count']}. {note}"
        columns_ = ("", "median", "mean", "worst", "by chance")
        shown.insert(1, FigureTable("Round trip and structure", columns_, tuple(rows), note))
    if (latent := report.get("latent")) is not None:
        keys = ("mean", "std", "kurtosis", "correlation")
        rows = [("latents", *(latent[key] for key in keys))]
        note = "Correlation of two pixels of a patch of 8 x 8, of the median picture."
        shown.append(FigureTable("Latents", ("", *keys), tuple(rows), note))
    return shown


def _ranged(found: Report | None) -> Cell:
    if found is None or "low" not in found:
        return None if found is None else float(found["value"])
    return f"{found['value']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"


RANKED: Final = ("cycle_psnr", "psnr", "ssim", "edge_correlation")  # of all, more is better


def worst_first(rows: Sequence[Report]) -> list[Report]:
    """Sort the rows of pictures: doubtful ones first, then by the worst rank in any of a row's figures."""
    known = [key for key in RANKED if all(row.get(key) is not None for row in rows)]
    columns = [np.array([float(row[key]) for row in rows]) for key in known]
    # A missing measurement ranks as bad; equal figures have equal ranks.
    filled = [np.where(np.isnan(column), -np.inf, column) for column in columns] or [np.zeros(len(rows))]
    ranks = [np.searchsorted(np.sort(column), column) for column in filled]
    worst, mean = np.min(ranks, axis=0), np.mean(ranks, axis=0)
    order = sorted(range(len(rows)), key=lambda i: (not rows[i].get("doubtful"), worst[i], mean[i], i))
    return [rows[i] for i in order]
