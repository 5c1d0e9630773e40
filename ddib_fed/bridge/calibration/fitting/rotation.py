"""Searches the orthogonal change of channels that brings the source's colours nearest to the target's, without pairs.

    cost(R) = C mean_k W2^2(theta_k . R u, theta_k . v)

the sliced squared Wasserstein distance over fixed directions theta_k. Random starts of both determinants; the best
are refined by sorted matching along each direction and Procrustes in turn. Hues leave a mirrored optimum close behind
the best: the next distinct one is reported, and the margin between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ddib_fed.bridge.calibration.aggregates import Numbers
from ddib_fed.models.units.channel_map import ChannelMap

DIRECTIONS = 24
QUANTILES = 96
STARTS, KEPT, STEPS = 400, 24, 30
COARSE, FINE = 600, 12_000
"""Colours that starts are compared with, and refined with."""
DISTINCT_DEGREES = 30.0
SETTLED = 1e-3
"""Change of an entry of R in a step that ends a refinement."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """One optimum."""

    matrix: Numbers
    cost: float


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found."""

    best: Optimum
    other: Optimum


class RotationCost:
    """Cost of rotations of one cloud of colours onto another."""

    def __init__(self, source: Numbers, target: Numbers) -> None:
        self._directions = directions(source.shape[1])
        self._source = source
        self._target = quantiles(target @ self._directions.T)

    def __call__(self, rotation: Numbers) -> float:
        along = self._source @ (rotation.T @ self._directions.T)
        return float(np.square(quantiles(along) - self._target).mean()) * len(rotation)

    def step(self, rotation: Numbers) -> Numbers:
        """One step down: colours are drawn to their match along each direction, then the nearest rotation is taken."""
        along = self._source @ (rotation.T @ self._directions.T)
        matched = np.empty_like(along)
        rows = np.arange(len(along)) * QUANTILES // len(along)
        np.put_along_axis(matched, np.argsort(along, axis=0), self._target[rows], axis=0)
        drawn_by = (matched - along) @ self._directions * (len(rotation) / len(self._directions))
        return nearest_orthogonal((self._source @ rotation.T + drawn_by).T @ self._source)

    def settled(self, rotation: Numbers) -> Numbers:
        """The optimum below a start."""
        for _ in range(STEPS):
            before, rotation = rotation, self.step(rotation)
            if np.abs(rotation - before).max() < SETTLED:
                break
        return rotation


def search(source: Numbers, target: Numbers, *, seed: int = 0, starts: int = STARTS) -> Search:
    """The best rotation and the next distinct one; of grey the two signs."""
    cost = RotationCost(source[:FINE], target)
    if source.shape[1] == 1:
        found = [np.eye(1), -np.eye(1)]
    else:
        found = [cost.settled(each) for each in _coarse(source[:COARSE], target, seed, starts)]
    optima = sorted((Optimum(each, cost(each)) for each in found), key=lambda one: one.cost)
    best = optima[0]
    others = [one for one in optima if degrees(one.matrix, best.matrix) > DISTINCT_DEGREES]
    return Search(best, others[0] if others else Optimum(-best.matrix, cost(-best.matrix)))


def _coarse(source: Numbers, target: Numbers, seed: int, starts: int) -> list[Numbers]:
    """Optima of few colours from the best of random starts, one for each that is distinct."""
    generator = np.random.default_rng(seed)
    cost = RotationCost(source, target)
    tried = sorted((random_orthogonal(source.shape[1], generator) for _ in range(starts)), key=cost)
    found: list[Numbers] = []
    for start in tried[:KEPT]:
        turned = cost.settled(start)
        if all(degrees(turned, other) > DISTINCT_DEGREES / 3 for other in found):
            found.append(turned)
    return found


@lru_cache(maxsize=4)
def directions(channels: int) -> Numbers:
    """Directions (K, C) spread evenly over the half sphere, by the golden angle; one for grey."""
    if channels == 1:
        return np.ones((1, 1))
    i = np.arange(DIRECTIONS) + 0.5
    height, turn = 1 - i / DIRECTIONS, np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=1)


def quantiles(values: Numbers) -> Numbers:
    """QUANTILES quantiles of values (N, K) along N: (QUANTILES, K)."""
    rows = ((np.arange(QUANTILES) + 0.5) / QUANTILES * len(values)).astype(int)
    found: Numbers = np.sort(values, axis=0)[rows]
    return found


def as_map(matrix: Numbers) -> ChannelMap:
    return ChannelMap(rotation=tuple(tuple(float(number) for number in row) for row in matrix))


def nearest_orthogonal(matrix: Numbers, *, proper: bool = False) -> Numbers:
    """The orthogonal matrix nearest to a square one (Procrustes; Schoenemann, 1966)."""
    left, _, right = np.linalg.svd(matrix)
    if proper:
        left[:, -1] *= np.sign(np.linalg.det(left @ right))
    found: Numbers = left @ right
    return found


def random_orthogonal(channels: int, generator: np.random.Generator) -> Numbers:
    """A uniform draw of the orthogonal matrices, of both determinants."""
    q, r = np.linalg.qr(generator.standard_normal((channels, channels)))
    found: Numbers = q * np.sign(np.diag(r))
    return found


def degrees(first: Numbers, second: Numbers) -> float:
    """Angle between two orthogonal matrices; 180 where their determinants differ."""
    between = first @ second.T
    if np.linalg.det(between) < 0:
        return 180.0
    if len(between) == 1:
        return 0.0
    return float(np.degrees(np.arccos(np.clip((np.trace(between) - 1) / 2, -1.0, 1.0))))
