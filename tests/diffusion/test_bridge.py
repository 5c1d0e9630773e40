"""The driver and the bridge: graphs, progress, stopping, and exact translations between Gaussians."""

from __future__ import annotations

import inspect

import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings, decode, encode, interpolate, plan, soften
from ddib_fed.diffusion.schedule import SCHEDULES, LinearSchedule, ScheduleConfig, schedule_from_config
from ddib_fed.diffusion.solvers import integrate
from ddib_fed.errors import SettingsInvalid
from tests.diffusion.gaussian_data import gaussian_denoiser, gaussian_map, gaussian_samples

SCHEDULE = LinearSchedule()
START, END = SCHEDULE.level(SCHEDULE.lambda_max), SCHEDULE.level(SCHEDULE.lambda_min)


class StoppedError(Exception):
    """What a caller raises to stop."""


def test_closes_the_solver_when_stopped():
    """What a progress callback raises ends the integration and comes through."""
    solver = plan(SolverSettings(), SCHEDULE).encoder(gaussian_samples(4, START))

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        integrate(solver, gaussian_denoiser(), on_step=stop)
    assert inspect.getgeneratorstate(solver) == inspect.GEN_CLOSED
    assert torch.is_grad_enabled()


# Every schedule with every time input; what is predicted goes round, so that it meets each of both.
WAYS = [
    (name, steps, rescale, time_input, ("eps", "x0", "v")[(row + column + place) % 3])
    for row, name in enumerate(SCHEDULES)
    for column, (steps, rescale) in enumerate([(None, False), (1000, False), (1000, True)])
    for place, time_input in enumerate(("lambda", "timestep"))
]


@pytest.mark.parametrize(("name", "steps", "rescale_timesteps", "time_input", "predicts"), WAYS)
def test_both_directions_are_exact_for_every_schedule_network_and_time_input(
    name, steps, rescale_timesteps, time_input, predicts
):
    """The closed form within the solver's own error, whatever is predicted and in whichever unit the time is given."""
    schedule = schedule_from_config(ScheduleConfig(name, steps, rescale_timesteps))
    denoiser = gaussian_denoiser(predicts, time_input=time_input, schedule=schedule)
    start, end = schedule.level(schedule.lambda_max), schedule.level(schedule.lambda_min)
    x, z = gaussian_samples(64, start), gaussian_samples(64, end, seed=1)
    for evaluations, encoding, decoding in ((48, 1.5e-4, 3.5e-5), (100, 7.5e-6, 2e-6)):
        settings = SolverSettings(evaluations=evaluations)
        found = encode(x, denoiser, schedule, settings) - gaussian_map(x, start, end)
        assert float(found.abs().max()) <= encoding
        found = decode(z, denoiser, schedule, settings) - gaussian_map(z, end, start)
        assert float(found.abs().max()) <= decoding


def test_softened_encoding_follows_the_exact_map_from_there():
    """The ODE takes over at the softened level."""
    x = gaussian_samples(50, SCHEDULE.level(20.0))
    noise = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z = encode(x, gaussian_denoiser(), SCHEDULE, soften_sigma=0.02, noise=noise)
    level = plan(SolverSettings(), SCHEDULE, soften_sigma=0.02).encode_grid.levels[0]
    assert torch.allclose(z, gaussian_map(soften(x, 0.02, noise), level, END), atol=2e-4)


@pytest.mark.parametrize(
    ("sigma", "noise"), [(0.02, None), (0.02, torch.ones(3, 2)), (2.0, torch.ones(4, 2))]
)
def test_refuses_softening_without_its_noise(sigma, noise):
    """Noise of the right shape, and a level in [0, 1]."""
    with pytest.raises(SettingsInvalid):
        soften(torch.ones(4, 2), sigma, noise)


def test_a_partly_deep_latent_is_exact_and_decodes_back():
    """Encoding ends at the depth's level, and decoding starts there."""
    x = gaussian_samples(50, START)
    deep = plan(SolverSettings(depth=0.4), SCHEDULE).encode_grid.levels[-1]
    z = encode(x, gaussian_denoiser(), SCHEDULE, SolverSettings(depth=0.4))
    assert torch.allclose(z, gaussian_map(x, START, deep), atol=1e-4)
    assert torch.allclose(decode(z, gaussian_denoiser(), SCHEDULE, SolverSettings(depth=0.4)), x, atol=1e-4)


# Between two latents


@pytest.fixture
def pair():
    noise = torch.Generator().manual_seed(3)
    return torch.randn(3, 16, 16, generator=noise), torch.randn(3, 16, 16, generator=noise)


def test_the_ends_are_the_latents_themselves_and_the_way_keeps_the_spread_of_noise(pair):
    found = interpolate(*pair, [0.0, 1.0, 0.5])
    assert torch.equal(found[0], pair[0])
    assert torch.equal(found[1], pair[1])
    assert found[2].std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0], ids=["same", "parallel", "opposite"])
def test_latents_on_one_line_are_joined_by_it(pair, factor):
    """Where the sphere gives no way, or none of its own, the result is still finite."""
    found = interpolate(pair[0], factor * pair[0], [0.25])
    assert torch.allclose(found[0], (0.75 + 0.25 * factor) * pair[0])
