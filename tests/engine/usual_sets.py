"""Writes the allowances for sets of points of an unknown model: the widest of the shipped models.

    python -m tests.engine.usual_sets

Honest sets are drawn from all points ("fair"), from one side of a plane ("half"), and from the neighbours of one point
("near"). Those of a set may be a quarter farther from the median than what is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.datasets import DOMAINS, draw
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.gate import FILE, SIZES, Samples, SetFigures, bounds, set_figures
from ddib_fed.engine.model import DomainModel
from ddib_fed.files import write_json
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.sidecars import SetAllowances

INTO = Path(__file__).resolve().parents[2] / "ddib_fed" / "engine" / FILE
POINTS, TOGETHER = 8_192, 4_096
SETS = 30
"""Of each kind and size."""
SET_ROOM = 1.25
PARTS = ("fair", "half", "near")


def main() -> int:
    """Write the file."""
    every = [_own(domain) for domain in DOMAINS]
    found = []
    for place, count in enumerate(SIZES):
        rows = [own[place] for own in every]
        found.append(
            SetAllowances(
                count=count,
                slope_low=round(min(row.slope_low for row in rows), 3),
                slope_high=round(max(row.slope_high for row in rows), 3),
                shift=round(max(row.shift for row in rows), 3),
                dimension=round(min(row.dimension for row in rows), 4),
            )
        )
    write_json(INTO, [each.model_dump() for each in found])
    for each in found:
        print(each)
    return 0


def _own(domain: str) -> list[SetAllowances]:
    model, samples = DomainModel(pretrained(domain)), draw(domain, POINTS, 1)
    latents = encoded(model, torch.from_numpy(model.normalise(samples)), 24)
    rng = np.random.default_rng(0)
    found = []
    for size in SIZES:
        sets = [set_figures(latents[rows]) for rows in honest_rows(samples, size, SETS, rng)]
        found.append(set_allowances(size, [each for each in sets if each is not None]))
    return found


def encoded(model: DomainModel, x: Tensor, evaluations: int) -> Tensor:
    """The latents of samples in the model's units, softened where they are pictures."""
    laid = model.plan(
        SolverSettings(evaluations=evaluations), model.manifest.soften_sigma if model.is_picture else 0.0
    )
    parts = torch.split(x, 16 if model.is_picture else TOGETHER)
    return torch.cat([model.integrate(part, laid.encoder) for part in parts])


def honest_rows(
    samples: Samples, size: int, count: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Rows of `count` sets of each of `PARTS`, in turn, as a user might choose them."""
    for _ in range(count):
        yield rng.choice(len(samples), size, replace=False)
        side = samples @ rng.standard_normal(samples.shape[1])
        yield rng.choice(np.argsort(side)[len(samples) // 2 :], size, replace=False)
        apart = np.square(samples - samples[rng.integers(len(samples))]).sum(axis=1)
        yield rng.choice(np.argsort(apart)[: max(2 * size, len(samples) // 8)], size, replace=False)


def set_allowances(size: int, sets: Sequence[SetFigures]) -> SetAllowances:
    """The allowances of sets in which so many points are looked at, from honest ones."""
    slope, shift, dimension = (
        np.array([getattr(each, name) for each in sets]) for name in ("slope", "shift", "dimension")
    )
    (low, high), (_, most), (least, _) = (bounds(each, SET_ROOM) for each in (slope, shift, dimension))
    return SetAllowances(count=size, slope_low=low, slope_high=high, shift=most, dimension=least)


if __name__ == "__main__":
    sys.exit(main())
