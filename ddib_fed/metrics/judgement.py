"""All figures of a set of translations: similarity, baselines, distances, marks.

A figure that cannot be computed from the inputs is None; each is reported with what it must be
compared with (baselines, chance, the distance between real pictures).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddib_fed.metrics import baselines, features, pictures, retrieval
from ddib_fed.metrics.features import Features
from ddib_fed.metrics.pictures import Pictures
from ddib_fed.metrics.structure import Thresholds, calibrate, structure

Figures = dict[str, Any]
OnStep = Callable[[str], None]
FEWEST = 4
"""Pictures from which on a set has distances and neighbours."""


@dataclass(frozen=True, slots=True)
class Domain:
    """Reference pictures of a domain, other than the judged ones, (N, C, H, W) in [-1, 1].

    Attributes:
        target: Of the target domain.
        source: Of the source domain; None if there are only the translated ones.
    """

    target: Pictures
    source: Pictures | None = None


def judge(
    translated: Pictures,
    *,
    source: Pictures | None = None,
    truth: Pictures | None = None,
    back: Pictures | None = None,
    domain: Domain | None = None,
    thresholds: Thresholds | None = None,
    on_step: OnStep | None = None,
) -> Figures:
    """All figures of translations (N, C, H, W) in [-1, 1], as JSON values.

    Args:
        translated: The translations.
        source: Their unclipped sources: beyond [-1, 1] where values are outside the model's range.
        truth: The true translations; likewise.
        back: The returned sources.
        domain: Of the target, for the feature distance and for baselines without pairs.
        thresholds: Least structure of a picture that is not doubtful.
        on_step: Called with the name of each step.

    Returns:
        One section per subject, None if it cannot be computed, and `pictures`: the figures of each picture.

    Raises:
        ShapeMismatch: Corresponding stacks differ in number or size.
        ExtraMissing: A requested figure needs the extra `evaluate`.
    """
    tell = on_step or _silent
    rows: list[Figures] = [{} for _ in translated]
    report: Figures = {"count": len(translated), "shape": list(translated.shape[1:])}
    tell("pairs")
    report["paired"] = None if truth is None else _paired(translated, truth, rows)
    report["cycle"] = None if source is None or back is None else _cycle(back, source, rows)
    report["structure"] = None if source is None else _structure(source, translated, thresholds, rows)
    report["pictures"] = rows
    # Baselines are clipped like a file's values; the references are not.
    within = None if source is None else np.clip(source, -1.0, 1.0)
    others = _others(translated, within, truth, domain, tell)
    report["baselines"] = None if truth is None else {name: _means(x, truth) for name, x in others.items()}
    report["retrieval"] = report["features"] = None
    if len(translated) < FEWEST:
        return report
    if truth is not None:
        report["retrieval"] = {
            name: {"pixels": retrieval.by_pixels(x, truth)} for name, x in _judged(translated, others).items()
        }
    if domain is not None and len(domain.target) >= FEWEST:
        report["features"] = _features(translated, truth, others, domain, report["retrieval"], tell)
    return report


def _others(
    translated: Pictures, source: Pictures | None, truth: Pictures | None, domain: Domain | None, tell: OnStep
) -> dict[str, Pictures]:
    """The baselines that can be computed from the inputs."""
    tell("baselines")
    channels, count = translated.shape[1], len(translated)
    found: dict[str, Pictures] = {}
    if source is not None:
        found["source"] = baselines.unchanged(source, channels)
    if domain is not None:
        if source is not None:
            own = domain.source if domain.source is not None else source
            found["histogram"] = baselines.HistogramMatch.fit(own, domain.target)(source)
        found["mean"] = baselines.mean_picture(domain.target, count)
        found["random"] = baselines.random_pictures(domain.target, count)
    if source is not None and truth is not None and count >= FEWEST:
        found["colour_map"] = baselines.cross_fitted_colour_map(source, truth)
    return found


def _paired(translated: Pictures, truth: Pictures, rows: list[Figures]) -> Figures:
    found = pictures.compare(translated, truth)
    return {
        "mse": put(rows, "mse", found.mse),
        "psnr": put(rows, "psnr", found.psnr),
        "ssim": put(rows, "ssim", found.ssim),
    }


def _judged(translated: Pictures, others: Mapping[str, Pictures]) -> dict[str, Pictures]:
    """The translations for retrieval and domain distance: without those that are the same for every picture."""
    return {"translated": translated} | {k: x for k, x in others.items() if k in {"source", "histogram"}}


def _means(judged: Pictures, truth: Pictures) -> pictures.PairedMeans:
    return pictures.compare(judged, truth).means()


def _cycle(back: Pictures, source: Pictures, rows: list[Figures]) -> Figures:
    errors = pictures.mse(back, source)
    return {
        "mse": put(rows, "cycle_mse", errors),
        "psnr": put(rows, "cycle_psnr", pictures.to_psnr(errors)),
    }


def _structure(
    source: Pictures, translated: Pictures, thresholds: Thresholds | None, rows: list[Figures]
) -> Figures:
    kept = structure(source, translated)
    chance = calibrate(source, translated) if len(source) > 1 else None
    found: Figures = {
        "edge_correlation": put(rows, "edge_correlation", kept.edge_correlation),
        "mutual_information": put(rows, "mutual_information", kept.mutual_information),
        "chance": None
        if chance is None
        else {
            "edge_correlation": chance.chance_edge_correlation,
            "mutual_information": chance.chance_mutual_information,
        },
        "thresholds": None if thresholds is None else thresholds.model_dump(),
        "doubtful": None,
    }
    if thresholds is not None:
        for row, record in zip(rows, kept.records(thresholds), strict=True):
            row["doubtful"] = record["doubtful"]
        found["doubtful"] = sum(row["doubtful"] for row in rows)
    return found


def put(rows: list[Figures], name: str, column: pictures.Figures) -> pictures.Spread:
    """Write one figure into the row of each picture, and return its spread."""
    for row, value in zip(rows, column.tolist(), strict=True):
        row[name] = value
    return pictures.spread(column)


def _features(
    translated: Pictures,
    truth: Pictures | None,
    others: Mapping[str, Pictures],
    domain: Domain,
    found: Figures | None,
    tell: OnStep,
) -> Figures:
    """Distances to the target domain; retrieval by features goes into `found`."""
    tell("features of the target domain")
    real = features.features(domain.target)
    rows = _judged(translated, others)
    if truth is not None:
        rows["truth"] = np.clip(truth, -1.0, 1.0)
    made: dict[str, Features] = {}
    for name, stack in rows.items():
        tell(f"features: {name}")
        made[name] = features.features(stack)
    if found is not None and truth is not None:
        for name in found:
            found[name]["features"] = retrieval.by_features(made[name].joined, made["truth"].joined)
    return {
        "network": features.NAME,
        "domain_pictures": len(domain.target),
        "distance": {name: features.distance(one, real) for name, one in made.items()},
        "floor": features.floor(real, len(translated)),
    }


def _silent(step: str) -> None:
    del step
