"""Settings: what exists is planned, what does not is refused by name."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings, check_settings, plan
from ddib_fed.diffusion.schedule import LinearSchedule
from ddib_fed.errors import SettingsInvalid

SCHEDULE = LinearSchedule()


@pytest.mark.parametrize(
    ("settings", "intervals"),
    [
        (SolverSettings("unipc", 3, 48), 48),
        (SolverSettings("ddim", 1, 100, "integer"), 100),
        (SolverSettings("rk4", 4, 400, "integer:100"), 100),
        (SolverSettings("rk4", 4, 48), 12),
        (SolverSettings("alf", 2, 48), 47),
    ],
)
def test_evaluations_become_intervals(settings, intervals):
    """rk4 spends four an interval, alf one before the first."""
    assert len(plan(settings, SCHEDULE).encode_grid) == intervals


@pytest.mark.parametrize(
    "settings",
    [
        SolverSettings("euler"),
        SolverSettings("unipc", 5),
        SolverSettings("unipc", -1),
        SolverSettings("ddim", 2),
        SolverSettings("rk4", 4, 50),
        SolverSettings("rk4", 4, 3),
        SolverSettings("alf", 2, 1),
        SolverSettings("unipc", 3, 0),
        SolverSettings("unipc", 3, 10_001),
        SolverSettings("unipc", 3, 48, "fibonacci"),
        SolverSettings("unipc", 3, 48, "ddib"),
        SolverSettings("unipc", 3, 48, "integer:47"),
        SolverSettings("unipc", 3, 48, "integer:many"),
    ],
    ids=str,
)
def test_refuses_settings_that_do_not_exist(settings):
    """Unknown names, orders out of range, evaluations that do not divide."""
    with pytest.raises(SettingsInvalid):
        plan(settings, SCHEDULE)


@pytest.mark.parametrize("sigma", [-0.1, 1.1, float("nan")])
def test_refuses_softening_out_of_range(sigma):
    """The noise level is in [0, 1]."""
    with pytest.raises(SettingsInvalid):
        plan(SolverSettings(), SCHEDULE, soften_sigma=sigma)


def test_names_of_any_length_do_not_travel_whole():
    """The fact that may cross the wire is cut."""
    with pytest.raises(SettingsInvalid) as caught:
        check_settings(SolverSettings("x" * 5000))
    assert len(caught.value.facts["solver"]) <= 40


@pytest.mark.parametrize("depth", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("soften_sigma", [0.0, 0.02])
def test_depth_is_a_fraction_of_the_schedules_angle(depth, soften_sigma):
    """Encoding ends there and decoding starts there, softened or not; the other ends stay where they were."""
    whole = plan(SolverSettings(), SCHEDULE, soften_sigma=soften_sigma)
    steps = plan(SolverSettings(depth=depth), SCHEDULE, soften_sigma=soften_sigma)
    data, noise = whole.decode_grid.phis[-1], whole.decode_grid.phis[0]
    assert steps.encode_grid.phis[-1] == pytest.approx(data + depth * (noise - data))
    assert steps.decode_grid.levels[0] == steps.encode_grid.levels[-1]
    assert steps.encode_grid.levels[0] == whole.encode_grid.levels[0]
    assert steps.decode_grid.levels[-1] == whole.decode_grid.levels[-1]
    assert len(steps.encode_grid) == len(steps.decode_grid) == 48
    assert (torch.tensor(steps.encode_grid.phis).diff() > 0).all()


@pytest.mark.parametrize("depth", [0.0, -0.5, 1.01, float("nan")])
def test_refuses_a_depth_out_of_range(depth):
    """Nothing and more than everything are no depths."""
    with pytest.raises(SettingsInvalid):
        plan(SolverSettings(depth=depth), SCHEDULE)


@pytest.mark.parametrize(
    ("grid", "depth", "soften_sigma"), [("integer", 0.5, 0.0), ("ddib", 0.5, 0.0), ("ddib", 1.0, 0.02)]
)
def test_refuses_depth_and_softening_where_the_grid_has_none(grid, depth, soften_sigma):
    """The public code's levels begin at its data and end at its noise; integer steps cannot stop between."""
    with pytest.raises(SettingsInvalid):
        plan(SolverSettings("ddim", 1, 48, grid, depth), SCHEDULE, soften_sigma=soften_sigma)


@pytest.mark.parametrize(("solver", "order"), [("unipc", 3), ("ddim", 1), ("rk4", 4), ("alf", 2)])
def test_an_order_that_is_not_given_is_the_solvers_default(solver, order):
    """The one that the published figures are of."""
    assert plan(SolverSettings(solver, 0, 48), SCHEDULE).settings.order == order
