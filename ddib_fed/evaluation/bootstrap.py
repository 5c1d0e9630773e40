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
from ddib_fed.evaluation.features import Features, Matrix, distance, kernel_distance_terms

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
    """The four distances of `features.distance` with their intervals; the judged pictures are drawn, the real stay."""
    if len(judged) != len(drawn):
        raise ShapeMismatch(f"{len(drawn)} pictures were drawn, {len(judged)} are judged")
    weights = drawn.weights(DISTANCE_DRAWS)
    # A draw of one picture alone has no covariance.
    weights = weights[(weights > 0).sum(axis=1) > 1]
    replicates = {
        "frechet_early": frechet_draws(judged.early, real.early, weights),
        "frechet_late": frechet_draws(judged.late, real.late, weights),
        "kernel_early": kernel_draws(judged.early, real.early, weights),
        "kernel_late": kernel_draws(judged.late, real.late, weights),
    }
    return {
        name: _interval(value, replicates[name], shift=True) for name, value in distance(judged, real).items()
    }


def frechet_draws(judged: Matrix, real: Matrix, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """`features.frechet` of each draw (R, N) of judged rows (N, D) from real rows (M, D), (R,)."""
    total = weights.sum(axis=1)
    means = weights @ judged / total[:, None]
    covariance = np.cov(real, rowvar=False).reshape(real.shape[1], -1)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    found = np.empty(len(weights))
    gap = np.square(means - real.mean(axis=0)).sum(axis=1)
    for i, (row, mean, n) in enumerate(zip(weights, means, total, strict=True)):
        there = row > 0
        rows = (judged[there] - mean) * np.sqrt(row[there] / (n - 1))[:, None]
        # tr (S1^(1/2) S2 S1^(1/2))^(1/2) is the sum of the singular values of these rows times S1^(1/2).
        both = rows @ root
        square = both @ both.T if len(both) < both.shape[1] else both.T @ both
        shared = np.sqrt(np.maximum(np.linalg.eigvalsh(square), 0.0)).sum()
        found[i] = gap[i] + np.square(rows).sum() + np.trace(covariance) - 2.0 * shared
    return np.maximum(found, 0.0)


def kernel_draws(judged: Matrix, real: Matrix, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """`features.kernel_distance` of each draw (R, N), (R,); pairs of a picture with itself do not count."""
    within, across, other = kernel_distance_terms(judged, real)
    np.fill_diagonal(within, 0.0)
    squares = np.einsum("ri,ij,rj->r", weights, within, weights, optimize=True)
    pairs = weights.sum(axis=1) ** 2 - np.square(weights).sum(axis=1)
    means = weights @ across.mean(axis=1) / weights.sum(axis=1)
    found: NDArray[np.float64] = squares / pairs + other - 2.0 * means
    return found


def _interval(value: float, draws: NDArray[np.float64], *, shift: bool = False) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - (draws.mean() - value) * shift
    return {"value": value, "low": float(low), "high": float(high)}
