"""What an aggregate reveals of one picture: attacks of `lab.attacks`, with and without its noise.

    python -m benchmarks.calibration.disclosure.membership           relief's aggregates, then the table of latents.md
    python -m benchmarks.calibration.disclosure.membership --report  only the table

Two attackers. One knows the population: other pictures of the domain, none of those that were averaged. One knows all
pictures but one. Membership: area under the curve over pictures in the mean and others (chance 0.5). Re-identification:
one of the test pictures was in it; how often is it the one with the best score of all of them? Intervals of 95 % over
repetitions, each with its own choice of pictures and its own noise. Pictures are drawn at random from the training
part.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration.directed import OUT
from ddib_fed.bridge.calibration.aggregates import default_cells, histogram, noise_sigma
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.files import write_file, write_json
from ddib_fed.lab import attacks as membership
from ddib_fed.metrics import bootstrap
from ddib_fed.models.shipped import pretrained

PAGE = OUT.parents[1] / "latents.md"
BEGIN, END = (
    "<!-- membership: written by benchmarks/calibration/disclosure/membership.py -->",
    "<!-- end of membership -->",
)
EPSILONS: tuple[float | None, ...] = (None, 8.0, 1.0, 0.1)
PICTURES = (200, 1000, 4000)
DELTA = 1e-5
REFERENCE = 2_000
"""Pictures that stand for the population."""
HEAD = """\
| pictures averaged | epsilon | knows | membership, AUC | re-identified |
|---|---|---|---|---|"""


def main() -> int:
    """Measure, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", default="relief")
    parser.add_argument("--repetitions", type=int, default=30, help="of membership")
    parser.add_argument(
        "--trials", type=int, default=3_000, help="of re-identification, and of one picture's membership"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing")
    given = parser.parse_args()
    path = OUT / "membership" / f"{given.domain}.json"
    if not given.report:
        measure(given, path)
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    write_file(PAGE, f"{before}{BEGIN}\n\n{table(path)}\n\n{END}{rest.split(END)[1]}".encode())
    return 0


def measure(given: argparse.Namespace, path: Path) -> None:
    """All attacks, to one JSON."""
    started = time.process_time()
    rng = np.random.default_rng(0)
    bundle, shipped = pretrained(given.domain), load_shipped(given.domain)
    rows = rng.permutation(len(shipped.train))[: REFERENCE + 2 * max(PICTURES)]
    train, test = (_histograms(bundle, each) for each in (shipped.train[rows], shipped.test))
    found = [
        {
            "pictures": count,
            "epsilon": epsilon,
            "sigma": 0.0 if epsilon is None else noise_sigma(count, epsilon, DELTA),
            "population": _by_population(train, test, count, epsilon, given, rng),
            "all but one": _by_all_others(train, test, count, epsilon, given, rng),
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
        "candidates": len(test),
        "chance": 1.0 / len(test),
        "repetitions": given.repetitions,
        "trials": given.trials,
    }
    write_json(path, {**about, "attacks": found, "cpu_seconds": round(time.process_time() - started, 1)})


def _by_population(
    train: np.ndarray,
    test: np.ndarray,
    count: int,
    epsilon: float | None,
    given: argparse.Namespace,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The attacker expects the population's histogram."""
    population, pool = train[:REFERENCE].mean(0), train[REFERENCE:]
    areas, hits = [], []
    for _ in range(given.repetitions):
        order = rng.permutation(len(pool))
        inside, outside = pool[order[:count]], pool[order[count : 2 * count]]
        residual = inside.mean(0) - population + _noise(count, epsilon, train.shape[1], rng)
        areas.append(
            membership.area(
                *(membership.scores(residual, each, population, count) for each in (inside, outside))
            )
        )
        own = rng.integers(len(test), size=max(1, given.trials // given.repetitions))
        residuals = residual + (test[own] - inside[-1]) / count
        hits.append(
            float(membership.first(membership.scores(residuals, test, population, count), own).mean())
        )
    return _figures(areas, hits)


def _by_all_others(
    train: np.ndarray,
    test: np.ndarray,
    count: int,
    epsilon: float | None,
    given: argparse.Namespace,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The attacker subtracts all other pictures: what is left is one picture, or another one, and the noise."""
    population, pool = train[:REFERENCE].mean(0), train[REFERENCE:]
    trials = max(1, given.trials // given.repetitions)
    areas, hits = [], []
    for _ in range(given.repetitions):
        asked, another = (pool[rng.integers(len(pool), size=trials)] for _ in range(2))
        steps = (asked - population) / count
        scored = [
            (
                ((held - population) / count + _noise(count, epsilon, (trials, train.shape[1]), rng)) * steps
            ).sum(1)
            - np.square(steps).sum(1) / 2
            for held in (asked, another)
        ]
        areas.append(membership.area(*scored))
        own = rng.integers(len(test), size=trials)
        residuals = (test[own] - population) / count + _noise(count, epsilon, (trials, train.shape[1]), rng)
        hits.append(
            float(membership.first(membership.scores(residuals, test, population, count), own).mean())
        )
    return _figures(areas, hits)


def _figures(areas: list[float], hits: list[float]) -> dict[str, Any]:
    drawn = bootstrap.resample(len(areas))
    return {"auc": drawn.mean(areas), "re_identified": drawn.mean(hits)}


def _noise(
    count: int, epsilon: float | None, shape: int | tuple[int, ...], rng: np.random.Generator
) -> np.ndarray | float:
    return 0.0 if epsilon is None else noise_sigma(count, epsilon, DELTA) * rng.standard_normal(shape)


def _histograms(bundle: Any, pictures: np.ndarray) -> np.ndarray:
    cells = default_cells(pictures.shape[1])
    units = bundle.manifest.normalisation.plain.apply(pictures)
    return np.stack([histogram(one[None], cells).ravel() for one in units]).astype(np.float32)


def table(path: Path) -> str:
    """The table of docs/latents.md."""
    if not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        f"| {one['pictures']:,} | {'no noise' if one['epsilon'] is None else format(one['epsilon'], 'g')} | {knows} | "
        f"{_said(one[knows]['auc'])} | {_said(one[knows]['re_identified'])} |"
        for one in found["attacks"]
        for knows in ("population", "all but one")
    ]
    note = (
        f"Aggregates of {found['domain']}: {found['cells']:,} cells, delta {found['delta']:g}; {found['candidates']} "
        f"candidates, re-identified by chance {found['chance']:.3f} of the time; {found['repetitions']} repetitions."
    )
    return "\n".join([note, "", HEAD, *rows])


def _said(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"


if __name__ == "__main__":
    sys.exit(main())
