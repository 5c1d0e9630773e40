"""What an aggregate reveals of one picture, with and without its noise.

    python -m benchmarks.calibration.membership      five minutes of one core

The attacker knows all pictures but one, and tests whether that one was averaged: area under the curve over pictures in
the mean and others (chance 0.5). Cells and noise are those of an aggregate that a node draws of as many pictures.
Intervals of 95 % over repetitions, each with its own pictures and its own noise.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.directed import from_bytes, save
from benchmarks.command import Rows, Run, command
from ddib_fed import Model, Node, datasets, metrics

DOMAIN = "relief"
EPSILONS, PICTURES = (8.0, 1.0, 0.1), (200, 1_000, 4_000)
REFERENCE, POOL, REPETITIONS, TRIALS = 2_000, 8_000, 30, 100
"""Pictures that stand for the population, and that are attacked; trials of a repetition."""
Numbers = NDArray[np.float64]


def measure(run: Run) -> Rows:
    """Attack aggregates of each size, without noise and with that of each epsilon."""
    rng, train = (
        np.random.default_rng(0),
        datasets.shipped_bytes(DOMAIN, run.pick(smoke=["held_out"], long=["train"]))[0],
    )
    train = train[rng.permutation(len(train))[: REFERENCE + POOL]]
    with tempfile.TemporaryDirectory() as place:
        node = Node.create(Path(place) / "node", role="target", model=DOMAIN, institution="west.example")
        units = Model.open(DOMAIN).manifest.normalisation.apply(from_bytes(train))
        for count in run.pick(smoke=PICTURES[:1], long=PICTURES):
            folder = Path(place) / str(count)
            save(train[:count], folder)
            for epsilon in run.pick(smoke=EPSILONS[:1], long=EPSILONS):
                aggregate = node.calibrations.aggregate(folder, epsilon=epsilon)
                shares = histograms(units, aggregate.cells)
                if epsilon == EPSILONS[0]:
                    yield row(shares, count, None, 0.0, rng)
                yield row(shares, count, epsilon, aggregate.sigma, rng)


def row(
    shares: Numbers, count: int, epsilon: float | None, sigma: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Attack: without all other pictures, one picture or another one is left of the aggregate, and the noise."""
    reference = min(REFERENCE, len(shares) // 2)
    population, pool = shares[:reference].mean(0), shares[reference:]
    areas = []
    for _ in range(REPETITIONS):
        asked, another = (pool[rng.integers(len(pool), size=TRIALS)] for _ in range(2))
        steps = (asked - population) / count
        scores = [
            (((held - population) / count + sigma * rng.standard_normal(held.shape)) * steps).sum(1)
            - np.square(steps).sum(1) / 2
            for held in (asked, another)
        ]
        areas.append(area(*scores))
    return {
        "pictures": count,
        "epsilon": epsilon,
        "sigma": sigma,
        "auc": metrics.resample(len(areas)).mean(areas),
    }


def area(inside: Numbers, outside: Numbers) -> float:
    """Return how often a member's score is above a stranger's, ties half."""
    gaps = inside[:, None] - outside[None]
    return float((gaps > 0).mean() + (gaps == 0).mean() / 2)


def histograms(units: NDArray[np.float32], cells: Any) -> Numbers:
    """Return the shares of each picture's pixels in each cell of an aggregate, (N, cells)."""
    places = np.floor((units + cells.reach) * (cells.bins / (2 * cells.reach))).clip(0, cells.bins - 1)
    flat = np.ravel_multi_index([*np.moveaxis(places.astype(np.int64), 1, 0)], cells.shape)
    return np.stack([np.bincount(one.ravel(), minlength=cells.count) / one.size for one in flat])


if __name__ == "__main__":
    sys.exit(command(measure, "calibration/membership"))
