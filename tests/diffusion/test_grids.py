"""Grids: monotone, exact at the ends, one way the other's reverse, and the public code's levels on request."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion.grids import GRIDS, make_grid, space_timesteps
from ddib_fed.diffusion.schedule import (
    CosineSchedule,
    LinearSchedule,
    ZeroTerminalSchedule,
    discrete_schedule,
)
from ddib_fed.errors import SettingsInvalid

SCHEDULES = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "zero-terminal": ZeroTerminalSchedule(),
    "discrete": discrete_schedule("linear", 1000),
    "discrete-zero-terminal": discrete_schedule("zero-terminal-snr", 1000),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", GRIDS)
def test_grids_fall_strictly_and_have_the_intervals_asked_for(schedule, name):
    """n intervals, n middles, from data to noise."""
    for n in (1, 2, 48, 400):
        grid = make_grid(schedule, name, n)
        assert (len(grid), len(grid.levels)) == (n, n + 1)
        assert (torch.tensor(grid.phis).diff() > 0).all()
        assert grid.levels[0].lam > grid.levels[-1].lam


def test_integer_grid_of_a_continuous_schedule_has_the_rescaled_linear_levels():
    """T evaluations walk the data end and the T steps of the rescaled linear schedule, whatever the model's."""
    table = discrete_schedule("linear", 100)
    expected = [level.lam for level in table.at_steps(list(range(100)))]
    for schedule in (LinearSchedule(), CosineSchedule()):
        lams = [level.lam for level in make_grid(schedule, "integer", 100).levels]
        assert lams[0] == schedule.lambda_max
        assert lams[1:] == pytest.approx(expected)


def test_integer_grid_of_a_discrete_schedule_uses_its_own_steps():
    """The network hears integers, the first and last step among them."""
    times = [level.t for level in make_grid(discrete_schedule("linear", 1000), "integer", 10).levels]
    assert times == [round(t) for t in times]
    assert (times[0], times[-1]) == (0, 999)


@pytest.mark.parametrize(("steps", "n"), [(4000, 100), (21, 2)])
def test_integer_grid_with_a_length_is_the_respaced_linear_schedule(steps, n):
    """integer:T keeps n of the T steps as guided-diffusion does, behind the data end."""
    table = discrete_schedule("linear", steps)
    expected = [level.lam for level in table.at_steps(space_timesteps(steps, [n]))]
    grid = make_grid(LinearSchedule(), f"integer:{steps}", n)
    assert [level.lam for level in grid.levels[1:]] == pytest.approx(expected)
    assert len(grid) == n
    assert (torch.tensor(grid.phis).diff() > 0).all()


def test_integer_grid_with_a_length_must_have_that_of_a_discrete_schedule():
    """A discrete model's steps are its own."""
    schedule = discrete_schedule("linear", 1000)
    assert make_grid(schedule, "integer:1000", 100) == make_grid(schedule, "integer", 100)
    with pytest.raises(SettingsInvalid, match="1000 of its own"):
        make_grid(schedule, "integer:4000", 100)


@pytest.mark.parametrize(
    "name",
    [
        "integer:",
        "integer:20",
        "integer:4e3",
        "integer:\u0664000",
        "integer:" + "9" * 5000,
        "default:4000",
        "integer:99",
    ],
    ids=lambda name: name[:20],
)
def test_refuses_lengths_that_the_integer_grid_cannot_have(name):
    """No number, one out of range, another grid's, and fewer steps than intervals."""
    with pytest.raises(SettingsInvalid) as refusal:
        make_grid(LinearSchedule(), name, 100)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(("name", "n"), [("fibonacci", 10), ("ddib", 10), ("default", 0), ("integer", -1)])
def test_refuses_grids_that_do_not_exist(name, n):
    """Unknown names and no intervals are named errors."""
    with pytest.raises(SettingsInvalid):
        make_grid(LinearSchedule(), name, n)


@pytest.mark.parametrize(
    ("steps", "sections", "expected"),
    [
        (10, "", list(range(10))),
        (10, "5", [0, 2, 4, 7, 9]),
        (10, "ddim5", [0, 2, 4, 6, 8]),
        (300, "10,15,20", None),
        (10, [1], [0]),
    ],
)
def test_respacing_chooses_the_public_codes_steps(steps, sections, expected):
    """Sections, strides and all, as guided-diffusion chooses them."""
    chosen = space_timesteps(steps, sections)
    assert chosen == expected or (expected is None and len(chosen) == 45)


@pytest.mark.parametrize("sections", ["11", "5,x", "ddim7", "ddimx", "0", [20]])
def test_refuses_respacings_that_do_not_exist(sections):
    """More steps than there are, words, and strides that do not come out even."""
    with pytest.raises(SettingsInvalid):
        space_timesteps(10, sections)
