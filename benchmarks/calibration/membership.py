"""What an aggregate reveals of one picture, with and without its noise.

    python -m benchmarks.calibration.membership

The attacker knows all pictures but one, and tests whether that one was averaged: area under the curve over pictures in
the mean and others (chance 0.5). Intervals of 95 % over repetitions, each with its own pictures and its own noise.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import options
from benchmarks.calibration.directed import OUT
from ddib_fed import metrics
from ddib_fed.calibration.aggregate import default_cells, histogram, noise_sigma
from ddib_fed.datasets import load_shipped
from ddib_fed.files import write_json
from ddib_fed.lab.report import area
from ddib_fed.models.bundle import pretrained

EPSILONS: tuple[float | None, ...] = (None, 8.0, 1.0, 0.1)
PICTURES = (200, 1000, 4000)
DELTA = 1e-5
REFERENCE = 2_000
"""Pictures that stand for the population."""


def main() -> int:
    """Measure."""
    parser = options(__doc__)
    parser.add_argument("--domain", default="relief")
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--trials", type=int, default=3_000, help="over all repetitions")
    given = parser.parse_args()
    path = OUT / "membership" / f"{given.domain}.json"
    measure(given, path)
    return 0


def measure(given: argparse.Namespace, path: Path) -> None:
    """All attacks, to one JSON."""
    started = time.process_time()
    rng = np.random.default_rng(0)
    bundle, shipped = pretrained(given.domain), load_shipped(given.domain)
    rows = rng.permutation(len(shipped.train))[: REFERENCE + 2 * max(PICTURES)]
    train = _histograms(bundle, shipped.train[rows])
    found = [
        {
            "pictures": count,
            "epsilon": epsilon,
            "sigma": 0.0 if epsilon is None else noise_sigma(count, epsilon, DELTA),
            "all but one": {"auc": _attacked(train, count, epsilon, given, rng)},
        }
        for count in PICTURES
        for epsilon in EPSILONS
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "domain": given.domain,
        "model": bundle.digest,
        "cells": train.shape[1],
        "delta": DELTA,
        "repetitions": given.repetitions,
        "trials": given.trials,
    }
    write_json(path, {**about, "attacks": found, "cpu_seconds": round(time.process_time() - started, 1)})


def _attacked(
    train: np.ndarray, count: int, epsilon: float | None, given: argparse.Namespace, rng: np.random.Generator
) -> metrics.Interval:
    """The attacker subtracts all other pictures: what is left is one picture, or another one, and the noise."""
    population, pool = train[:REFERENCE].mean(0), train[REFERENCE:]
    trials = max(1, given.trials // given.repetitions)
    noise = 0.0 if epsilon is None else noise_sigma(count, epsilon, DELTA)
    areas = []
    for _ in range(given.repetitions):
        asked, another = (pool[rng.integers(len(pool), size=trials)] for _ in range(2))
        steps = (asked - population) / count
        scored = [
            (((held - population) / count + noise * rng.standard_normal(held.shape)) * steps).sum(1)
            - np.square(steps).sum(1) / 2
            for held in (asked, another)
        ]
        areas.append(area(*scored))
    return metrics.resample(len(areas)).mean(areas)


def _histograms(bundle: Any, pictures: np.ndarray) -> np.ndarray:
    cells = default_cells(pictures.shape[1], 1e9)
    units = bundle.manifest.normalisation.plain.apply(pictures)
    return np.stack([histogram(one[None], cells).ravel() for one in units]).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
