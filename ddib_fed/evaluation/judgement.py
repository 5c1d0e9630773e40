"""All figures of a set of translations: similarity, baselines, distances, marks, and their intervals.

A figure that cannot be computed from the inputs is None; each is reported with what it must be
compared with (baselines, chance, the distance between real pictures) and with its bootstrap interval over pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation import bootstrap, features, metrics
from ddib_fed.evaluation.features import Features
from ddib_fed.evaluation.metrics import Pictures, to_channels
from ddib_fed.evaluation.structure import Thresholds, doubtful, structure
from ddib_fed.models.units import monomials

QUANTILES = 1025
MOST_PIXELS = 2_000_000
"""Of a domain, evenly thinned, that distributions and fits are taken over."""


def unpaired(
    source: Pictures | None, domain: tuple[Pictures | None, Pictures] | None, *, count: int, channels: int
) -> dict[str, Pictures]:
    """The baselines without pairs that can be computed, by name."""
    found: dict[str, Pictures] = {}
    if source is not None:
        found["source"] = to_channels(source, channels)
    if domain is None:
        return found
    own, target = domain
    if source is not None:
        own = source if own is None else own
        found["histogram"] = HistogramMatch.fit(own, target)(source)
    return found | {"mean": mean_picture(target, count), "random": random_pictures(target, count)}


def mean_picture(target: Pictures, count: int) -> Pictures:
    return np.repeat(target.mean(axis=0, keepdims=True, dtype=np.float64), count, axis=0).astype(np.float32)


def random_pictures(target: Pictures, count: int, *, seed: int = 0) -> Pictures:
    rng = np.random.default_rng(seed)
    return target[rng.choice(len(target), count, replace=count > len(target))]


@dataclass(frozen=True, slots=True)
class HistogramMatch:
    """A monotone map of each channel's values, made by `fit`."""

    source: NDArray[np.float64] = field(repr=False)
    target: NDArray[np.float64] = field(repr=False)

    @staticmethod
    def fit(source: Pictures, target: Pictures) -> HistogramMatch:
        """Fit to two unpaired sets of pictures (N, C, H, W) and (M, C', H', W')."""
        channels = target.shape[1]
        shares = np.linspace(0.0, 1.0, QUANTILES)
        return HistogramMatch(
            np.quantile(_pixels(to_channels(source, channels)), shares, axis=0).T,
            np.quantile(_pixels(to_channels(target, channels)), shares, axis=0).T,
        )

    def __call__(self, pictures: Pictures) -> Pictures:
        given = to_channels(pictures, len(self.source))
        out = np.empty_like(given)
        shares = np.linspace(0.0, 1.0, QUANTILES)
        for channel, (before, after) in enumerate(zip(self.source, self.target, strict=True)):
            # A value of many pixels gets the middle of its ranks.
            steps = np.unique(before)
            low = shares[np.searchsorted(before, steps, side="left")]
            high = shares[np.searchsorted(before, steps, side="right") - 1]
            rank = np.interp(given[:, channel], steps, (low + high) / 2)
            out[:, channel] = np.interp(rank, shares, after)
        return out


@dataclass(frozen=True, slots=True)
class ColourMap:
    """A quadratic map from a pixel's channels to the other domain's, made by `fit` from true pairs."""

    weights: NDArray[np.float64] = field(repr=False)
    channels: int

    @staticmethod
    def fit(source: Pictures, target: Pictures) -> ColourMap:
        """Least squares over the pixels of pairs (N, C, H, W) and (N, C', H, W)."""
        if len(source) != len(target) or source.shape[2:] != target.shape[2:] or 0 in source.shape:
            raise ShapeMismatch(f"pictures {source.shape} and {target.shape} are no pairs")
        weights, *_ = np.linalg.lstsq(monomials(_pixels(source)), _pixels(target), rcond=None)
        return ColourMap(np.asarray(weights, np.float64), source.shape[1])

    def __call__(self, pictures: Pictures) -> Pictures:
        given = to_channels(pictures, self.channels)
        pixels = given.transpose(0, 2, 3, 1).reshape(-1, self.channels)
        mapped = np.clip(monomials(pixels.astype(np.float64)) @ self.weights, -1.0, 1.0)
        shape = (len(given), *given.shape[2:], self.weights.shape[1])
        return np.ascontiguousarray(mapped.reshape(shape).transpose(0, 3, 1, 2), dtype=np.float32)


def cross_fitted_colour_map(source: Pictures, target: Pictures) -> Pictures:
    """The quadratic colour map if only the test part is paired: each half is mapped by a fit to the other."""
    if len(source) < 2:
        raise ShapeMismatch(f"two halves need at least two pairs, not {len(source)}")
    half = len(source) // 2
    first = ColourMap.fit(source[half:], target[half:])(source[:half])
    second = ColourMap.fit(source[:half], target[:half])(source[half:])
    return np.concatenate([first, second])


def _pixels(pictures: Pictures) -> NDArray[np.float64]:
    pixels = pictures.transpose(0, 2, 3, 1).reshape(-1, pictures.shape[1])
    return pixels[:: -(-len(pixels) // MOST_PIXELS)].astype(np.float64)


Figures = dict[str, Any]
OnStep = Callable[[str], None]
FEWEST_PICTURES = 4
"""Pictures from which on a set has distances, neighbours and intervals."""
WITHOUT_SOURCE = frozenset({"mean", "random"})
"""Baselines that give the same for every source: no retrieval and no distance is asked of them."""


@dataclass(frozen=True, slots=True)
class Domain:
    """Reference pictures of a domain, other than the judged ones, (N, C, H, W) in [-1, 1]."""

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
    clusters: NDArray[Any] | None = None,
    on_step: OnStep | None = None,
) -> Figures:
    """All figures of translations (N, C, H, W) in [-1, 1], as JSON values; intervals draw whole clusters."""
    tell = on_step or _silent
    rows: list[Figures] = [{} for _ in translated]
    drawn = bootstrap.resample(len(translated), clusters) if len(translated) >= FEWEST_PICTURES else None
    report: Figures = {"count": len(translated), "shape": list(translated.shape[1:])}
    tell("pairs")
    report["paired"] = None if truth is None else _paired(translated, truth, rows)
    report["cycle"] = None if source is None or back is None else _cycle(back, source, rows)
    report["structure"] = None if source is None else _structure(source, translated, thresholds, rows)
    report["pictures"] = rows
    tell("baselines")
    others = _others(translated, source, truth, domain)
    report["retrieval"] = report["features"] = report["intervals"] = None
    compared = {} if truth is None else {name: metrics.compare(x, truth) for name, x in others.items()}
    report["baselines"] = None if truth is None else {name: one.means() for name, one in compared.items()}
    if drawn is None:
        return report
    report["intervals"] = _intervals(rows, compared, drawn, clusters)
    judged = {"translated": translated} | {k: x for k, x in others.items() if k not in WITHOUT_SOURCE}
    if truth is not None:
        _retrieval(judged, truth, report, drawn)
    if domain is not None and len(domain.target) >= FEWEST_PICTURES:
        _features(judged, truth, domain.target, report, drawn, tell)
    return report


def _others(
    translated: Pictures, source: Pictures | None, truth: Pictures | None, domain: Domain | None
) -> dict[str, Pictures]:
    # They are clipped like a file's values; the references are not.
    within = None if source is None else np.clip(source, -1.0, 1.0)
    reference = None if domain is None else (domain.source, domain.target)
    found = unpaired(within, reference, count=len(translated), channels=translated.shape[1])
    if within is not None and truth is not None and len(translated) >= FEWEST_PICTURES:
        found["colour_map"] = cross_fitted_colour_map(within, truth)
    return found


def _intervals(
    rows: list[Figures],
    compared: Mapping[str, metrics.Paired],
    drawn: bootstrap.Resamples,
    clusters: NDArray[Any] | None,
) -> Figures:
    """Of the means of the figures that each picture has, and of the baselines'."""
    return {
        "level": bootstrap.LEVEL,
        "clusters": None if clusters is None else drawn.counts.shape[1],
        "translated": intervals_of(rows, drawn),
        "baselines": {
            name: {key: drawn.mean(getattr(one, key)) for key in ("psnr", "ssim", "mse")}
            for name, one in compared.items()
        },
    }


def intervals_of(rows: list[Figures], drawn: bootstrap.Resamples) -> dict[str, bootstrap.Interval]:
    known = [key for key, value in rows[0].items() if key not in {"doubtful", "name"} and value is not None]
    return {key: drawn.mean([row[key] for row in rows]) for key in known}


def _retrieval(
    judged: Mapping[str, Pictures], truth: Pictures, report: Figures, drawn: bootstrap.Resamples
) -> None:
    hits = {name: metrics.hits_by_pixels(x, truth) for name, x in judged.items()}
    report["retrieval"] = {name: {"pixels": metrics.share(one)} for name, one in hits.items()}
    report["intervals"]["retrieval"] = {name: {"pixels": drawn.mean(one)} for name, one in hits.items()}


def _paired(translated: Pictures, truth: Pictures, rows: list[Figures]) -> Figures:
    found = metrics.compare(translated, truth)
    return {
        "mse": put(rows, "mse", found.mse),
        "psnr": put(rows, "psnr", found.psnr),
        "ssim": put(rows, "ssim", found.ssim),
    }


def _cycle(back: Pictures, source: Pictures, rows: list[Figures]) -> Figures:
    errors = metrics.mse(back, source)
    return {
        "mse": put(rows, "cycle_mse", errors),
        "psnr": put(rows, "cycle_psnr", metrics.to_psnr(errors)),
    }


def _structure(
    source: Pictures, translated: Pictures, thresholds: Thresholds | None, rows: list[Figures]
) -> Figures:
    kept = structure(source, translated)
    # Each source with its neighbour's translation, never its own.
    chance = structure(source, np.roll(translated, 1, axis=0)) if len(source) > 1 else None
    found: Figures = {
        "edge_correlation": put(rows, "edge_correlation", kept.edge_correlation),
        "mutual_information": put(rows, "mutual_information", kept.mutual_information),
        "chance": None
        if chance is None
        else {
            "edge_correlation": float(chance.edge_correlation.mean()),
            "mutual_information": float(chance.mutual_information.mean()),
        },
        "thresholds": None if thresholds is None else thresholds.model_dump(),
        "doubtful": None,
    }
    if thresholds is not None:
        for row, mark in zip(rows, doubtful(kept, thresholds).tolist(), strict=True):
            row["doubtful"] = mark
        found["doubtful"] = sum(row["doubtful"] for row in rows)
    return found


def put(rows: list[Figures], name: str, column: metrics.Figures) -> dict[str, float]:
    """Write one figure into the row of each picture, and return its spread."""
    for row, value in zip(rows, column.tolist(), strict=True):
        row[name] = value
    return metrics.spread(column)


def _features(
    judged: Mapping[str, Pictures],
    truth: Pictures | None,
    target: Pictures,
    report: Figures,
    drawn: bootstrap.Resamples,
    tell: OnStep,
) -> None:
    """Distances to the target domain and retrieval by features, with their intervals, into the report."""
    tell("features of the target domain")
    real = features.features(target)
    rows = dict(judged)
    if truth is not None:
        rows["truth"] = np.clip(truth, -1.0, 1.0)
    made: dict[str, Features] = {}
    for name, stack in rows.items():
        tell(f"features: {name}")
        made[name] = features.features(stack)
    intervals = report["intervals"]
    for name in report["retrieval"] or {}:
        hits = metrics.hits_by_features(made[name].joined, made["truth"].joined)
        report["retrieval"][name]["features"] = metrics.share(hits)
        intervals["retrieval"][name]["features"] = drawn.mean(hits)
    tell("intervals of the distances")
    intervals["features"] = {
        name: bootstrap.feature_distances(one, real, drawn) for name, one in made.items()
    }
    report["features"] = {
        "network": features.NAME,
        "domain_pictures": len(target),
        "distance": {
            name: {key: one["value"] for key, one in found.items()}
            for name, found in intervals["features"].items()
        },
        "floor": features.floor(real, len(drawn)),
    }


def _silent(step: str) -> None:
    del step
