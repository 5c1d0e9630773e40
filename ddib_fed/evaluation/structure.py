"""Measures how much of a source picture's structure its translation preserved.

edge correlation     Pearson's r of the two gradient magnitudes (central differences of luma)
mutual information   of the two lumas in `BINS` equal bins between each one's least and greatest value, in bits
agreement            under a calibration, which says what colours become: Pearson's r of the expected channels
                     with the translation's
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data import folder
from ddib_fed.data.fitting import check_fit
from ddib_fed.data.folder import Progress, expand
from ddib_fed.errors import InputError, SettingsInvalid, ShapeMismatch
from ddib_fed.evaluation.metrics import Figures, Pictures, picture_rule, to_channels
from ddib_fed.models.bundle import Bundle, amend_bundle, load_bundle
from ddib_fed.models.manifest import Manifest, StructureThresholds
from ddib_fed.models.units import ChannelMap, Normalisation

BINS = 16
"""32 x 32 pixels are few: with more bins most cells of the joint histogram hold nothing."""
Thresholds = StructureThresholds
CHANCE_QUANTILE = 0.95
"""On the test crops of the shipped maps this marks 97 % of unrelated pairs and 9 % of true ones (docs/quality.md)."""
CHANCE_PAIRS = 2_000
_FLAT = 1e-12
_BLOCK_PIXELS = 1 << 22
"""Pairs are measured in blocks of so many pixels, so that large pictures do not lie in memory as floats all at once."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a calibration says that a picture's channels become."""

    units: Normalisation
    map: ChannelMap

    def __call__(self, source: Pictures) -> NDArray[np.float64]:
        return np.asarray(self.map.apply(self.units.apply(source)), np.float64)


def expected(source: Manifest, rotation: ChannelMap | None) -> Expected | None:
    found = source.normalisation.calibrated or rotation
    return None if found is None else Expected(source.normalisation.plain, found)


@dataclass(frozen=True, slots=True)
class Structure:
    """Preserved structure, one figure per picture, each (N,) float64."""

    edge_correlation: Figures
    mutual_information: Figures
    agreement: Figures | None = None


def structure(source: Pictures, translated: Pictures, expects: Expected | None = None) -> Structure:
    """Edge correlation and mutual information of pictures (N, C, H, W) in [-1, 1] with their translations."""
    before, after = _luma(source), _luma(translated)
    if before.shape != after.shape or 0 in before.shape:
        raise ShapeMismatch(
            f"sources of shape {source.shape} have no translations of shape {translated.shape}"
        )
    agreed = None
    if expects is not None and source.shape == translated.shape:
        agreed = agreement(expects(source), expects.units.apply(translated))
    return Structure(
        np.array([_correlation(_edges(a), _edges(b)) for a, b in zip(before, after, strict=True)]),
        np.array([_mutual_information(a, b) for a, b in zip(before, after, strict=True)]),
        agreed,
    )


def agreement(wanted: NDArray[np.floating], found: NDArray[np.floating]) -> Figures:
    """Correlation of channels (N, C, H, W) with others, the mean over channels by the variance of `wanted`; (N,)."""
    a, b = (np.asarray(part, np.float64).reshape(*part.shape[:2], -1) for part in (wanted, found))
    a, b = a - a.mean(axis=2, keepdims=True), b - b.mean(axis=2, keepdims=True)
    weights, scale = np.square(a).sum(axis=2), np.square(b).sum(axis=2)
    each = (a * b).sum(axis=2) / np.sqrt(np.maximum(weights * scale, _FLAT))
    figures: Figures = (each * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), _FLAT)
    return figures


def calibrate_by_chance(
    some: NDArray[Any],
    others: NDArray[Any],
    *,
    units: Normalisation | None = None,
    pairs: int = CHANCE_PAIRS,
    seed: int = 0,
) -> Thresholds:
    """Thresholds from unrelated pictures: the level of a translation that lost its picture."""
    if len(some) == 0 or len(others) == 0 or some.shape[1:] != others.shape[1:]:
        raise ShapeMismatch(
            f"pictures of shape {some.shape} make no pairs with those of shape {others.shape}"
        )
    drawn = np.random.default_rng(seed).integers(0, len(some) * len(others), pairs)
    first, second = np.unravel_index(np.unique(drawn), (len(some), len(others)))
    block = max(1, _BLOCK_PIXELS // int(np.prod(some.shape[1:])))
    found, agreed = [], []
    for start in range(0, len(first), block):
        a, b = expand(some[first[start : start + block]]), expand(others[second[start : start + block]])
        found.append(structure(a, b if units is None else units.mapped(b)))
        if units is not None:
            agreed.append(agreement(units.apply(a), units.apply(b)))
    edges = np.concatenate([each.edge_correlation for each in found])
    shared = np.concatenate([each.mutual_information for each in found])
    return Thresholds(
        edge_correlation=round(float(np.quantile(edges, CHANCE_QUANTILE)), 4),
        mutual_information=round(float(np.median(shared)), 4),
        chance_edge_correlation=round(float(edges.mean()), 4),
        chance_mutual_information=round(float(shared.mean()), 4),
        quantile=CHANCE_QUANTILE,
        count=len(first),
        basis="chance",
        agreement=round(float(np.quantile(np.concatenate(agreed), CHANCE_QUANTILE)), 4) if agreed else None,
    )


def doubtful(kept: Structure, thresholds: Thresholds) -> NDArray[np.bool_]:
    if kept.agreement is not None and thresholds.agreement is not None:
        return (kept.agreement < thresholds.agreement) | (
            kept.edge_correlation < thresholds.chance_edge_correlation
        )
    return (kept.edge_correlation < thresholds.edge_correlation) | (
        kept.mutual_information < thresholds.mutual_information
    )


def _luma(pictures: Pictures) -> NDArray[np.float64]:
    return np.asarray(to_channels(pictures, 1)[:, 0], np.float64)


def _edges(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    down, across = np.gradient(grey)
    edges: NDArray[np.float64] = np.hypot(down, across)
    return edges


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    first, second = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale > 0 else 0.0


def _mutual_information(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    joint = np.zeros((BINS, BINS))
    np.add.at(joint, (_binned(a), _binned(b)), 1.0)
    joint /= joint.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    filled = joint > 0
    return max(0.0, float((joint[filled] * np.log2(joint[filled] / independent[filled])).sum()))


def _binned(grey: NDArray[np.float64]) -> NDArray[np.int64]:
    low, high = float(grey.min()), float(grey.max())
    if high <= low:
        return np.zeros(grey.size, np.int64)
    scaled = (grey.ravel() - low) / (high - low) * BINS
    return np.minimum(scaled.astype(np.int64), BINS - 1)


FEWEST = 8
MOST = 4_000
"""Pictures that are read, spread over the folder: `CHANCE_PAIRS` pairs need no more."""


def put_thresholds(
    model: Path, images: Path, *, skip_bad: bool = False, progress: Progress | None = None
) -> Bundle:
    """Measure the thresholds on pictures of the model's domain, and write them into its manifest."""
    manifest = load_bundle(model).manifest
    if manifest.sample_kind != "picture" or manifest.role != "generator":
        raise SettingsInvalid(
            f"{model} is no model that generates pictures: it has no thresholds of structure",
            hint="name the folder of a model of pictures; `ddib model show MODEL` says what one is",
        )
    rule = picture_rule(manifest)
    entries = folder.scan(
        images,
        skip_bad=skip_bad,
        check=lambda picture: check_fit(picture, rule, windows=True),
        progress=progress,
    ).entries
    if len(entries) < FEWEST:
        raise InputError(
            f"{images} has {len(entries)} pictures; at least {FEWEST} are needed",
            hint="add pictures of the domain",
        )
    entries = entries[:: -(-len(entries) // MOST)]
    pictures = folder.load(entries, rule)
    found = calibrate_by_chance(
        pictures[::2], pictures[1::2], units=manifest.normalisation, pairs=CHANCE_PAIRS
    )
    return amend_bundle(model, structure=found)
