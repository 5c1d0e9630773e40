"""Bootstrap intervals of figures over pictures: how far a figure would move with other pictures of the same kind.

resample    draw as many clusters of pictures as there are, with replacement; a picture without a cluster is its own
mean        sum_i c_i x_i / sum_i c_i, c_i being how often picture i was drawn; 2.5 % and 97.5 % quantiles of draws
distance    the same quantiles, shifted by the mean of the draws less the figure: a set with repeats has fewer
            different pictures, so its Frechet distance is too large in every draw
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation.features import Features, distances

DRAWS = 1_000
DISTANCE_DRAWS = 250
"""Of `DRAWS`, for distances: each needs the eigenvalues of a covariance."""
LEVEL = 0.95
SEED = 62
MOST_COUNTS = 50_000_000
"""Numbers that are kept: with more clusters than 50,000 there are fewer draws."""


Interval = dict[str, float]
"""The "value" of a figure, and "low" and "high": the interval that holds it with a probability of `LEVEL`."""


@dataclass(frozen=True, slots=True)
class Resamples:
    """Draws of one set of pictures, made by `resample`."""

    clusters: NDArray[np.int64] = field(repr=False)
    counts: NDArray[np.float32] = field(repr=False)

    def __len__(self) -> int:
        return len(self.clusters)

    def means(self, values: ArrayLike) -> NDArray[np.float64]:
        """The mean of the figures (N,) of each draw, (draws,)."""
        each = np.asarray(values, np.float64)
        if each.shape != self.clusters.shape:
            raise ShapeMismatch(f"{len(self)} pictures have no figures of shape {each.shape}")
        groups = self.counts.shape[1]
        sums = np.bincount(self.clusters, each, groups)
        sizes = np.bincount(self.clusters, minlength=groups).astype(np.float64)
        found: NDArray[np.float64] = (self.counts @ sums) / (self.counts @ sizes)
        return found

    def mean(self, values: ArrayLike) -> Interval:
        draws = self.means(values)
        return _interval(float(np.asarray(values, np.float64).mean()), draws)

    def weights(self, draws: int) -> NDArray[np.float64]:
        return self.counts[:draws, self.clusters].astype(np.float64)


def resample(
    count: int, clusters: Sequence[Any] | NDArray[Any] | None = None, *, draws: int = DRAWS, seed: int = SEED
) -> Resamples:
    labels = np.arange(count) if clusters is None else np.asarray(clusters)
    if count < 1 or labels.shape != (count,):
        raise ShapeMismatch(f"{count} pictures have no clusters of shape {labels.shape}")
    _, numbers = np.unique(labels, return_inverse=True)
    groups = int(numbers.max()) + 1
    draws = min(draws, max(DISTANCE_DRAWS, MOST_COUNTS // groups))
    counts = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1.0 / groups), size=draws)
    return Resamples(numbers.astype(np.int64), counts.astype(np.float32))


def feature_distances(judged: Features, real: Features, drawn: Resamples) -> dict[str, Interval]:
    """The four distances of `features.distances` with their intervals; the judged pictures are drawn, the real stay."""
    if len(judged) != len(drawn):
        raise ShapeMismatch(f"{len(drawn)} pictures were drawn, {len(judged)} are judged")
    weights = drawn.weights(DISTANCE_DRAWS)
    weights = weights[(weights > 0).sum(axis=1) > 1]  # a draw of one picture alone has no covariance
    draws = distances(judged, real, weights)
    return {
        name: _interval(float(value[0]), draws[name], shift=True)
        for name, value in distances(judged, real).items()
    }


def _interval(value: float, draws: NDArray[np.float64], *, shift: bool = False) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - (draws.mean() - value) * shift
    return {"value": value, "low": float(low), "high": float(high)}
