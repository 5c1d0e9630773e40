"""A solver's numbers, read off it, give what the solver gives."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.schedule import LinearSchedule
from ddib_fed.diffusion.solvers import recurrence_of

SCHEDULE = LinearSchedule()


def answer(x: torch.Tensor, level) -> torch.Tensor:
    return torch.sin(3 * x) + level.alpha


def driven(solver) -> tuple[torch.Tensor, list]:
    levels = []
    query = next(solver)
    while True:
        levels.append((query.level, query.to))
        try:
            query = solver.send(answer(query.x, query.level))
        except StopIteration as stop:
            return stop.value, levels


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        (SolverSettings(evaluations=12), 4),
        (SolverSettings(order=2, evaluations=7), 3),
        (SolverSettings(evaluations=1), 1),
        (SolverSettings("ddim", evaluations=9), 1),
        (SolverSettings("ddim", evaluations=24, grid="ddib"), 1),
        (SolverSettings("rk4", evaluations=16), 4),
        (SolverSettings("flow-map", evaluations=4), 1),
        (SolverSettings(evaluations=12, depth=0.6), 4),
    ],
    ids=lambda value: value.solver if isinstance(value, SolverSettings) else str(value),
)
@pytest.mark.parametrize("way", ["encoder", "decoder"])
def test_a_recurrence_steps_as_its_solver(settings, window, way) -> None:
    """To float64, at the solver's levels, with as few velocities as it needs."""
    start = getattr(plan(settings, SCHEDULE), way)
    found = recurrence_of(start, settings.evaluations)
    assert found is not None
    assert found.window == window
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected, asked = driven(start(x))
    assert list(zip(found.levels, found.to, strict=True)) == asked
    velocities: list[torch.Tensor] = []
    for level, scale, weights in zip(found.levels, found.scales, found.weights, strict=True):
        velocities.insert(0, answer(x, level))
        x = scale * x + sum(w * v for w, v in zip(weights, velocities, strict=False))
    torch.testing.assert_close(x, expected, atol=1e-12, rtol=1e-12)


def test_a_solver_that_needs_all_it_was_answered_is_none() -> None:
    """The leapfrog's auxiliary velocity goes back to the start."""
    settings = SolverSettings("alf", evaluations=13)
    assert recurrence_of(plan(settings, SCHEDULE).encoder, 13) is None
