"""Grids: monotone, exact at the ends, one way the other's reverse, and the public code's levels on request."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion.grids import GRIDS, ddib_compat_grids, is_monotone, make_grid, space_timesteps
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
        assert is_monotone(grid)
        assert grid.levels[0].lam > grid.levels[-1].lam


@pytest.mark.parametrize("name", ["default", "uniform-lambda", "karras"])
def test_grids_reach_the_ends_of_the_usable_range(name):
    """Encoding starts where the schedule's range starts and ends where it ends."""
    schedule = LinearSchedule()
    grid = make_grid(schedule, name, 10)
    assert grid.levels[0].lam == pytest.approx(schedule.lambda_max)
    assert grid.levels[-1].lam == pytest.approx(schedule.lambda_min)


def test_reversed_is_the_same_levels_backwards():
    """Decoding walks the very levels of encoding."""
    grid = make_grid(LinearSchedule(), "default", 12)
    assert grid.reversed().levels == grid.levels[::-1]
    assert grid.reversed().middles == grid.middles[::-1]
    assert grid.reversed().reversed() == grid


def test_middles_halve_the_angle():
    """A middle stands at the mean of its neighbours' angles, with the schedule's own time."""
    schedule = LinearSchedule()
    grid = make_grid(schedule, "default", 8)
    for middle, low, high in zip(grid.middles, grid.phis, grid.phis[1:], strict=False):
        assert middle.phi == pytest.approx((low + high) / 2, rel=1e-12)
        assert float(schedule.lam(torch.tensor(middle.t, dtype=torch.float64))) == pytest.approx(
            middle.lam, abs=1e-9
        )


def test_default_grid_has_the_measured_density():
    """Steps in lambda are inversely proportional to 0.12 + 1 / (1 + ((lambda - 1.2) / 1.6)^2)."""
    lams = torch.tensor([level.lam for level in make_grid(LinearSchedule(), "default", 2000).levels])
    middle = (lams[1:] + lams[:-1]) / 2
    share = -lams.diff() * (0.12 + 1 / (1 + ((middle - 1.2) / 1.6) ** 2))
    assert torch.allclose(share, share.mean().expand_as(share), rtol=1e-2)


def test_integer_grid_of_a_continuous_schedule_has_the_rescaled_linear_levels():
    """T evaluations walk the data end and the T steps of the rescaled linear schedule, whatever the model's."""
    table = discrete_schedule("linear", 100)
    expected = [level.lam for level in table.at_steps(list(range(100)))]
    for schedule in (LinearSchedule(), CosineSchedule()):
        lams = [level.lam for level in make_grid(schedule, "integer", 100).levels]
        assert lams[0] == schedule.lambda_max
        assert lams[1:] == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 24, 4000, 10_000])
def test_integer_grid_always_ends_in_noise(n):
    """Few evaluations are inaccurate; they do not stop half way with a picture for a latent."""
    assert make_grid(LinearSchedule(), "integer", n).levels[-1].lam < -4.5


def test_integer_grid_of_a_discrete_schedule_uses_its_own_steps():
    """The network hears integers, the first and last step among them."""
    times = [level.t for level in make_grid(discrete_schedule("linear", 1000), "integer", 10).levels]
    assert times == [round(t) for t in times]
    assert (times[0], times[-1]) == (0, 999)


def test_integer_grid_refuses_more_levels_than_the_schedule_has():
    """40 steps have 39 intervals."""
    schedule = discrete_schedule("linear", 40)
    assert len(make_grid(schedule, "integer", 39)) == 39
    with pytest.raises(SettingsInvalid):
        make_grid(schedule, "integer", 40)


@pytest.mark.parametrize(("steps", "n"), [(4000, 100), (1000, 1000), (21, 2), (10_000, 48)])
def test_integer_grid_with_a_length_is_the_respaced_linear_schedule(steps, n):
    """integer:T keeps n of the T steps as guided-diffusion does, behind the data end."""
    table = discrete_schedule("linear", steps)
    expected = [level.lam for level in table.at_steps(space_timesteps(steps, [n]))]
    grid = make_grid(LinearSchedule(), f"integer:{steps}", n)
    assert [level.lam for level in grid.levels[1:]] == pytest.approx(expected)
    assert len(grid) == n
    assert is_monotone(grid)


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
        "integer:-4000",
        "integer:4e3",
        "integer: 4000",
        "integer:\u0664000",
        "integer:10001",
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


def test_a_softened_grid_starts_at_its_own_noise_level():
    """Encoding after softening walks from there to the same noise end."""
    grid = make_grid(LinearSchedule(), "default", 10, lambda_max=3.0)
    assert grid.levels[0].lam == pytest.approx(3.0)
    assert is_monotone(grid)


def test_a_grid_cannot_start_behind_its_end():
    """Softening past the noise end is refused."""
    with pytest.raises(SettingsInvalid):
        make_grid(LinearSchedule(), "default", 10, lambda_max=-6.0)


def test_compat_grids_have_the_public_codes_ends():
    """Encode: level 0 to T - 1, then alpha 0. Decode: T - 1 to 0, then alpha 1. They are no reverses."""
    schedule = discrete_schedule("linear", 40)
    encode, decode = ddib_compat_grids(schedule)
    inner = schedule.at_steps(list(range(40)))
    assert encode.levels[:-1] == inner
    assert (encode.levels[-1].alpha, encode.levels[-1].sigma) == (0.0, 1.0)
    assert decode.levels[:-1] == inner[::-1]
    assert (decode.levels[-1].alpha, decode.levels[-1].sigma) == (1.0, 0.0)
    assert encode.reversed() != decode


def test_compat_grids_tell_the_original_steps_after_respacing():
    """A network of 1,000 steps respaced to ddim25 hears 0, 40, 80, ..."""
    encode, _ = ddib_compat_grids(discrete_schedule("linear", 1000), "ddim25")
    assert [level.t for level in encode.levels[:-1]] == list(range(0, 1000, 40))


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


def test_respacing_by_sections_counts_each_third():
    """ "10,15,20" of 300 keeps 10, 15 and 20 of each hundred."""
    chosen = space_timesteps(300, "10,15,20")
    assert [sum(low <= step < low + 100 for step in chosen) for low in (0, 100, 200)] == [10, 15, 20]


@pytest.mark.parametrize("sections", ["11", "5,x", "ddim7", "ddim", "ddimx", "0", "-3", [20]])
def test_refuses_respacings_that_do_not_exist(sections):
    """More steps than there are, words, and strides that do not come out even."""
    with pytest.raises(SettingsInvalid):
        space_timesteps(10, sections)
