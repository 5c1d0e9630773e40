"""Two domains with one palette: the target's colours are the source's, turned."""

from __future__ import annotations

import numpy as np

from ddib_fed.calibration.aggregate import Aggregate, Cells, Floats, Numbers, count_array
from ddib_fed.models.units import Normalisation

UNITS = Normalisation(std=0.3)
TURN = np.array([[0.0, 0.8, -0.6], [-1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
"""Orthogonal, far from the identity."""


def colours(count: int, seed: int) -> Numbers:
    """Colours (count, 3) in model units: four uneven clusters, so that no other rotation fits."""
    generator = np.random.default_rng(seed)
    centres = np.array([[-1.6, 0.3, -0.6], [1.2, 1.5, 0.0], [0.8, -1.7, 1.4], [0.0, 0.9, 2.0]])
    found = centres[generator.choice(4, count, p=[0.5, 0.25, 0.15, 0.1])]
    return found + generator.standard_normal((count, 3)) * [0.2, 0.3, 0.1]


def pictures(count: int, seed: int, turn: Numbers | None = None) -> np.ndarray:
    """Pictures (count, 3, 4, 4) in [-1, 1] of such colours."""
    found = colours(count * 16, seed)
    found = found if turn is None else found @ turn.T
    units = np.moveaxis(found.reshape(count, 4, 4, 3), -1, 1)
    return np.clip(UNITS.undo(units.astype(np.float32)), -1, 1)


def make_aggregate(
    pictures: Floats,
    units: Normalisation,
    domain: str,
    *,
    epsilon: float = 1.0,
    cells: Cells | None = None,
    generator: np.random.Generator | None = None,
) -> Aggregate:
    return count_array(pictures, units, domain, epsilon=epsilon, cells=cells).noised(epsilon, 1e-5, generator)


def aggregate(epsilon: float = 1.0, turn: Numbers = TURN) -> Aggregate:
    return make_aggregate(
        pictures(2000, 1, turn), UNITS, "relief", epsilon=epsilon, generator=np.random.default_rng(5)
    )
