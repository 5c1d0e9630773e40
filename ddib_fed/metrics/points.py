"""Distances between two clouds of points, and the cycle error of points.

Every figure is a function of its points alone. Random parts (projections, sub-samples) use fixed
seeds, so two runs, two machines and two releases can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ddib_fed.datasets import synthetic
from ddib_fed.errors import ShapeMismatch

Points = NDArray[np.floating]

SLICED_POINTS = 10_000
PROJECTIONS = 256
PROJECTION_SEED = 20220316
ENERGY_POINTS = 5_000
FLOOR_PAIRS = 10
POOL_POINTS = 200_000
POOL_SEED = 987_654_321
_CHUNK_NUMBERS = 4_000_000


class CycleError(TypedDict):
    """L2 distance between points and their round-trip results, in units of the data's standard deviation."""

    median: float
    mean: float
    p99: float
    max: float


class Distances(TypedDict):
    """Distance of a cloud from a distribution, and the floor: between two clouds of that distribution."""

    sliced_w2: float
    sliced_w2_floor: float
    energy: float
    energy_floor: float
    points: int


def cycle_error(original: Points, returned: Points) -> CycleError:
    """Median, mean, 99th percentile and maximum of |original - returned| over the rows of two (N, ...) arrays."""
    if original.shape != returned.shape or len(original) == 0:
        raise ShapeMismatch(f"cannot compare points of shape {original.shape} with {returned.shape}")
    gap = (np.asarray(original, np.float64) - np.asarray(returned, np.float64)).reshape(len(original), -1)
    error = np.linalg.norm(gap, axis=1)
    return CycleError(
        median=float(np.median(error)),
        mean=float(error.mean()),
        p99=float(np.quantile(error, 0.99)),
        max=float(error.max()),
    )


def sliced_w2(a: Points, b: Points, *, projections: int = PROJECTIONS) -> float:
    """Sliced 2-Wasserstein distance between the clouds (N, D) and (M, D)."""
    count = min(SLICED_POINTS, len(a), len(b))
    first, second = _thin(a, count, seed=1), _thin(b, count, seed=2)
    _check_pair(first, second)
    directions = _directions(first.shape[1], projections)
    total = 0.0
    for start in range(0, projections, 32):
        part = directions[start : start + 32]
        gap = np.sort(part @ first.T, axis=1) - np.sort(part @ second.T, axis=1)
        total += float(np.square(gap).sum())
    return float(np.sqrt(total / (projections * count)))


def energy_distance(a: Points, b: Points) -> float:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| between the clouds (N, D) and (M, D); never negative."""
    first = _thin(a, min(ENERGY_POINTS, len(a)), seed=1)
    second = _thin(b, min(ENERGY_POINTS, len(b)), seed=2)
    _check_pair(first, second)
    within = _mean_distance(first, first) + _mean_distance(second, second)
    return max(0.0, 2 * _mean_distance(first, second) - within)


def sliced_w2_floor(pool: Points, count: int) -> float:
    return float(np.mean([sliced_w2(first, second) for first, second in _pairs(pool, count)]))


def energy_floor(pool: Points, count: int) -> float:
    return float(np.mean([energy_distance(first, second) for first, second in _pairs(pool, count)]))


@lru_cache(maxsize=32)
def domain_sliced_w2_floor(domain: str, count: int = SLICED_POINTS) -> float:
    return sliced_w2_floor(_pool(domain), count)


def reference_points(domain: str, count: int) -> NDArray[np.float32]:
    return synthetic.draw(domain, count, POOL_SEED, step=1)


def distances_to_domain(cloud: Points, domain: str) -> Distances:
    """Distance of a cloud (N, 2) from a synthetic domain, measured to as many independent points of it."""
    _check_pair(cloud, cloud)
    count = min(len(cloud), SLICED_POINTS)
    data, pool = reference_points(domain, count), _pool(domain)
    return Distances(
        sliced_w2=sliced_w2(cloud, data),
        sliced_w2_floor=sliced_w2_floor(pool, count),
        energy=energy_distance(cloud, data),
        energy_floor=energy_floor(pool, count),
        points=count,
    )


@lru_cache(maxsize=2)
def _pool(domain: str) -> NDArray[np.float32]:
    return synthetic.draw(domain, POOL_POINTS, POOL_SEED)


def _pairs(pool: Points, count: int) -> Iterator[tuple[Points, Points]]:
    _check_pair(pool, pool)
    rng = np.random.default_rng(POOL_SEED)
    for _ in range(FLOOR_PAIRS):
        first, second = rng.integers(0, len(pool), (2, count))
        yield pool[first], pool[second]


def _thin(points: Points, count: int, *, seed: int) -> NDArray[np.float64]:
    chosen = points
    if len(points) > count:
        chosen = points[np.random.default_rng(PROJECTION_SEED + seed).permutation(len(points))[:count]]
    return np.asarray(chosen, np.float64)


def _check_pair(a: Points, b: Points) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or 0 in a.shape or 0 in b.shape:
        raise ShapeMismatch(f"two clouds (N, D) with the same D are expected, not {a.shape} and {b.shape}")


def _directions(dimension: int, count: int) -> NDArray[np.float64]:
    raw = np.random.default_rng(PROJECTION_SEED).normal(size=(count, dimension))
    unit: NDArray[np.float64] = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return unit


def _mean_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    rows = max(1, _CHUNK_NUMBERS // len(b))
    squares = np.square(b).sum(axis=1)
    total = 0.0
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        gap = np.square(part).sum(axis=1)[:, None] + squares - 2 * (part @ b.T)
        total += float(np.sqrt(np.maximum(gap, 0)).sum())
    return total / (len(a) * len(b))
