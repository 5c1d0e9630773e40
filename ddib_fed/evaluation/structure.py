"""Turns a source and its translation into how much of the source's structure the translation kept.

    edge correlation     Pearson's r of the two gradient magnitudes (central differences of luma)
    mutual information   of the two lumas in `BINS` equal bins between each one's least and greatest value, in bits

Both are blind to which domain has the light and which the dark, and neither needs the true translation. A low cycle
error does not show that anatomy was kept: a map that repaints everything can be undone exactly.

The rule: no threshold is absolute. A picture is doubtful when one of its figures is beneath the low quantile of the
same figure over translations of pictures that were held out of training; what the figures are for pairs that do
not belong together stands beside, so that a reader sees whether the thresholds can tell anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation.pictures import Figures, Pictures, to_channels

BINS = 16
"""32 x 32 pixels are few: with more bins most cells of the joint histogram hold nothing."""
QUANTILE = 0.05


class PictureStructure(TypedDict):
    """What the record beside a picture says; `doubtful` is None where nothing was calibrated."""

    edge_correlation: float
    mutual_information: float
    doubtful: bool | None


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a translation must reach, and what chance reaches.

    Attributes:
        edge_correlation: The low quantile over the held-out part.
        mutual_information: The low quantile over the held-out part, in bits.
        chance_edge_correlation: Mean of pairs that do not belong together.
        chance_mutual_information: Mean of pairs that do not belong together, in bits.
        quantile: Which quantile.
        count: Pictures that it was taken over.
    """

    edge_correlation: float
    mutual_information: float
    chance_edge_correlation: float
    chance_mutual_information: float
    quantile: float
    count: int


@dataclass(frozen=True, slots=True)
class Structure:
    """How much was kept, a figure a picture, each (N,) float64.

    Attributes:
        edge_correlation: In [-1, 1]; 0 where a picture is flat.
        mutual_information: In bits, from 0 to log2(`BINS`).
    """

    edge_correlation: Figures
    mutual_information: Figures

    def records(self, thresholds: Thresholds | None = None) -> list[PictureStructure]:
        """One record a picture, with its mark where thresholds are given."""
        marks = (
            [None] * len(self.edge_correlation) if thresholds is None else doubtful(self, thresholds).tolist()
        )
        return [
            PictureStructure(edge_correlation=float(edge), mutual_information=float(shared), doubtful=mark)
            for edge, shared, mark in zip(self.edge_correlation, self.mutual_information, marks, strict=True)
        ]


def structure(source: Pictures, translated: Pictures) -> Structure:
    """Edge correlation and mutual information of pictures (N, C, H, W) in [-1, 1] with their translations.

    The two may differ in channels: both are taken on luma.

    Raises:
        ShapeMismatch: The stacks differ in count or size, or are empty.
    """
    before, after = _luma(source), _luma(translated)
    if before.shape != after.shape or 0 in before.shape:
        raise ShapeMismatch(
            f"sources of shape {source.shape} have no translations of shape {translated.shape}"
        )
    return Structure(
        np.array([_correlation(_edges(a), _edges(b)) for a, b in zip(before, after, strict=True)]),
        np.array([_mutual_information(a, b) for a, b in zip(before, after, strict=True)]),
    )


def calibrate(source: Pictures, translated: Pictures, *, quantile: float = QUANTILE) -> Thresholds:
    """Thresholds from held-out pictures (N, C, H, W) in [-1, 1] and their translations.

    Raises:
        ShapeMismatch: Fewer than two pictures, or the stacks differ in count or size.
    """
    if len(source) < 2:
        raise ShapeMismatch(f"thresholds need at least two pictures, not {len(source)}")
    kept = structure(source, translated)
    # Each source beside its neighbour's translation: none has its own.
    chance = structure(source, np.roll(translated, 1, axis=0))
    return Thresholds(
        edge_correlation=float(np.quantile(kept.edge_correlation, quantile)),
        mutual_information=float(np.quantile(kept.mutual_information, quantile)),
        chance_edge_correlation=float(chance.edge_correlation.mean()),
        chance_mutual_information=float(chance.mutual_information.mean()),
        quantile=quantile,
        count=len(source),
    )


def doubtful(kept: Structure, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Which pictures are beneath a threshold, (N,)."""
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
