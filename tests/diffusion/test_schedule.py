"""Schedules: closed forms, inverses, ends, and the public code's tables."""

import math

import pytest
import torch

from ddib_fed.diffusion.schedule import (
    GRIDS,
    CosineSchedule,
    LinearSchedule,
    ScheduleConfig,
    discrete_schedule,
    make_grid,
    schedule_from_config,
    space_timesteps,
)
from ddib_fed.errors import SettingsInvalid

EVERY = [
    ScheduleConfig(name, steps)
    for name, steps in (
        ("linear", None),
        ("linear", 100),
        ("cosine", None),
        ("cosine", 100),
        ("zero-terminal-snr", 100),
    )
]


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_levels_are_variance_preserving_and_times_grow_with_noise(config):
    schedule = schedule_from_config(config)
    levels = schedule.levels(
        torch.linspace(schedule.lambda_max, schedule.lambda_min, 301, dtype=torch.float64)
    )
    assert all(abs(level.alpha**2 + level.sigma**2 - 1.0) < 1e-12 for level in levels)
    assert (torch.tensor([level.t for level in levels]).diff() > 0).all()


def test_times_are_those_of_the_papers_formulas():
    """alpha_bar at the network's time gives the level's alpha back; of a table, at its integer steps."""
    linear, cosine = (schedule_from_config(ScheduleConfig(name)) for name in ("linear", "cosine"))
    for lam in (4.0, 0.0, -3.0):
        level = linear.level(lam)
        bar = math.exp(-0.1 * level.t - 0.5 * 19.9 * level.t**2)
        assert math.sqrt(bar) == pytest.approx(level.alpha, rel=1e-9)
        level = cosine.level(lam)
        angles = [(t + 0.008) / 1.008 * math.pi / 2 for t in (level.t, 0.0)]
        assert math.cos(angles[0]) / math.cos(angles[1]) == pytest.approx(level.alpha, rel=1e-9)
    table = discrete_schedule("linear", 100, rescale_timesteps=True)
    for level in table.at_steps([0, 37, 98]):
        assert table.level(level.lam).t == pytest.approx(level.t, abs=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig("quadratic"),
        ScheduleConfig("linear", 20),
        ScheduleConfig("cosine", 1),
        ScheduleConfig("linear", 100, lambda_max=5.0),
        ScheduleConfig("cosine", lambda_min=6.0),
        ScheduleConfig("linear", lambda_max=math.nan),
        ScheduleConfig("cosine", scale=2.0),
        ScheduleConfig("linear", 1000, scale=2.0),
        ScheduleConfig("flow", scale=-1.0),
        ScheduleConfig("edm", scale=math.inf),
    ],
    ids=str,
)
def test_refuses_schedules_that_do_not_exist(config):
    """Unknown names, too few steps and impossible ranges are named errors."""
    with pytest.raises(SettingsInvalid):
        schedule_from_config(config)


@pytest.mark.parametrize("lam", [-8.0, -1.0, 0.0, 2.0, 5.0])
def test_flow_and_edm_are_known_by_their_own_times(lam):
    """Flow: x_t = (1 - t) x_0 + t eps. EDM: x_s = x_0 + s eps, data of deviation d, time log(s) / 4."""
    level = schedule_from_config(ScheduleConfig("flow", scale=1000.0)).level(lam)
    t = level.t / 1000
    assert math.log((1 - t) / t) == pytest.approx(lam)
    scale = level.alpha + level.sigma
    assert (level.alpha / scale, level.sigma / scale) == (pytest.approx(1 - t), pytest.approx(t))
    level = schedule_from_config(ScheduleConfig("edm", lambda_min=-8.0, scale=0.5)).level(lam)
    assert math.exp(4 * level.t) == pytest.approx(0.5 * level.sigma / level.alpha)


# Grids

KINDS = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "discrete": discrete_schedule("linear", 1000),
    "discrete-zero-terminal": discrete_schedule("zero-terminal-snr", 1000),
}


@pytest.mark.parametrize("schedule", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", GRIDS)
def test_grids_fall_strictly_and_have_the_intervals_asked_for(schedule, name):
    for n in (1, 2, 48, 400):
        grid = make_grid(schedule, name, n)
        assert (len(grid), len(grid.levels)) == (n, n + 1)
        assert (torch.tensor([level.phi for level in grid.levels]).diff() > 0).all()
        assert grid.levels[0].lam > grid.levels[-1].lam


def test_integer_grid_of_a_continuous_schedule_has_the_rescaled_linear_levels():
    """T evaluations walk the data end and the T steps of the rescaled linear schedule, whatever the model's."""
    table = discrete_schedule("linear", 100)
    expected = [level.lam for level in table.at_steps(list(range(100)))]
    for schedule in (LinearSchedule(), CosineSchedule()):
        lams = [level.lam for level in make_grid(schedule, "integer", 100).levels]
        assert lams[0] == schedule.lambda_max
        assert lams[1:] == pytest.approx(expected)


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
