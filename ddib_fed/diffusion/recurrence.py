"""Solvers as recurrences with numbers that are known beforehand, so that many can be stepped as one.

Most solvers take their next point from the one before and the last few velocities, with weights that depend on the grid
alone:

    y_(i+1) = s_i y_i + sum_(j < w) c_ij v_(i-j)

The numbers are read off the solver itself: it is run on coordinates, its start and each answer a unit vector, so that
what it asks next is the vector of weights. A solver remains the one definition of its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import LevelTable, Query
from ddib_fed.diffusion.schedule import Level
from ddib_fed.diffusion.solvers import Solver

LONGEST_WINDOW = 6
"""Velocities that are kept at most; a solver that needs more, or all of them, is no recurrence here."""
MOST_EVALUATIONS = 512
"""Reading a solver takes time with the square of its evaluations: 1 ms for 48, 50 ms for 500."""
TINY = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """A solver on one grid; each tuple has an entry for each evaluation.

    Attributes:
        levels: Where the network is asked.
        to: The level to which a mean velocity is asked; None for the velocity.
        scales: s_i.
        weights: c_ij, the newest velocity's first; all of one length, 0 where there is no velocity yet.
    """

    levels: tuple[Level, ...]
    to: tuple[Level | None, ...]
    scales: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]

    @property
    def window(self) -> int:
        """Velocities that a step needs."""
        return len(self.weights[0])


def recurrence_of(start: Callable[[Tensor], Solver], evaluations: int) -> Recurrence | None:
    """The recurrence that a solver follows; None for one that follows none.

    Args:
        start: Makes the solver for a start (1, D) float64.
        evaluations: How many times it asks.
    """
    if evaluations > MOST_EVALUATIONS:
        return None
    units = torch.eye(evaluations + 1, dtype=torch.float64)[:, None]
    solver = start(units[0])
    queries: list[Query] = []
    points: list[Tensor] = []
    with torch.no_grad():
        try:
            query = next(solver)
            for unit in units[1:]:
                queries.append(query)
                points.append(query.x[0].clone())
                query = solver.send(unit.clone())
        except StopIteration as stop:
            points.append(stop.value[0])
        finally:
            solver.close()
    if len(points) != evaluations + 1 or not torch.equal(points[0], units[0, 0]):
        return None
    return _banded(queries, torch.stack(points))


def _banded(queries: list[Query], points: Tensor) -> Recurrence | None:
    """From the points (E + 1, E + 1) that E queries and the end are, in coordinates (start, v_0, ..., v_(E-1))."""
    if bool((points[:-1, 0].abs() < TINY).any()):
        return None
    scales = points[1:, 0] / points[:-1, 0]
    steps = points[1:, 1:] - scales[:, None] * points[:-1, 1:]
    evaluations = len(queries)
    behind = torch.arange(evaluations)[:, None] - torch.arange(evaluations)
    used = behind[steps.abs() > TINY]
    window = 1 + int(used.max()) if len(used) else 1
    if window > LONGEST_WINDOW:
        return None
    weights = tuple(
        tuple(float(steps[i, i - j]) if j <= i else 0.0 for j in range(window)) for i in range(evaluations)
    )
    return Recurrence(
        tuple(query.level for query in queries),
        tuple(query.to for query in queries),
        tuple(scales.tolist()),
        weights,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The numbers of some recurrences, one under the other, E of all their evaluations.

    Attributes:
        levels: The levels, and those asked to.
        starts: The first evaluation of each recurrence.
        numbers: Scale and weights (1 + window, E) float32, with zeros to the longest window.
    """

    levels: LevelTable
    starts: Mapping[Recurrence, int]
    numbers: Tensor


@lru_cache(maxsize=64)
def table_of(recurrences: tuple[Recurrence, ...], device: torch.device) -> Table:
    """The table of some recurrences, its numbers on a device; made once for the same ones in the same order."""
    window = max(each.window for each in recurrences)
    numbers: list[list[float]] = []
    starts: dict[Recurrence, int] = {}
    for each in recurrences:
        starts[each] = len(numbers)
        for scale, weights in zip(each.scales, each.weights, strict=True):
            numbers.append([scale, *weights, *(0.0,) * (window - len(weights))])
    levels = [level for each in recurrences for level in each.levels]
    to = [level for each in recurrences for level in each.to]
    return Table(
        LevelTable.of(levels, to),
        starts,
        torch.tensor(numbers, dtype=torch.float32).T.contiguous().to(device),
    )
