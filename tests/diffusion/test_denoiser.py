"""eps, x0 and v networks are one function; merged requests get what each would get alone; the ends are finite."""

from __future__ import annotations

import math

import pytest
import torch

from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.plans import SolverSettings, decode, encode
from ddib_fed.diffusion.schedule import CosineSchedule, Level, LinearSchedule
from ddib_fed.errors import SettingsInvalid
from ddib_fed.networks.mlp import ResidualMLP, SyntheticModel
from tests.diffusion.gaussian_data import (
    GaussianNetwork,
    gaussian_denoiser,
    gaussian_map,
    gaussian_samples,
    merged,
)

LEVELS = LinearSchedule().levels(torch.tensor([5.3, 2.0, 0.0, -1.5, -5.0]))
DATA, NOISE = Level(1.0, 0.0, 0.0), Level(0.0, 1.0, 999.0)


def random_networks() -> dict[str, Denoiser]:
    """Networks in which every layer counts, with both ways to tell the time."""
    torch.manual_seed(0)
    found = {
        "mlp": Denoiser(ResidualMLP(width=32, blocks=2), "v", "lambda"),
        "synthetic": Denoiser(SyntheticModel(num_channels=32), "eps", "timestep"),
    }
    for denoiser in found.values():
        for parameter in denoiser.network.parameters():
            parameter.data.normal_(std=0.1)
    return found


@pytest.mark.parametrize("predicts", ["eps", "x0"])
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: f"{level.lam:.1f}")
def test_eps_x0_and_v_networks_agree(predicts, level):
    """The same data's three networks give the same v."""
    x = gaussian_samples(50, level)
    assert torch.allclose(gaussian_denoiser(predicts)(x, level), gaussian_denoiser("v")(x, level), atol=1e-9)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("level", [DATA, NOISE], ids=["data", "noise"])
def test_the_ends_are_finite_alone_and_merged(predicts, level):
    """At sigma = 0 and alpha = 0 there is an answer, never NaN."""
    denoiser = gaussian_denoiser(predicts, torch.float32)
    x = gaussian_samples(9, level).float()
    assert bool(torch.isfinite(denoiser(x, level)).all())
    assert bool(torch.isfinite(merged(denoiser, x, [level, LEVELS[2]], [4, 5])).all())


@pytest.mark.parametrize("name", ["mlp", "synthetic"])
def test_merged_requests_get_what_each_gets_alone(name):
    """One call with a level for each request differs from one call each by at most 1e-6."""
    denoiser = random_networks()[name]
    counts = [1, 7, 2, 40, 3]
    x = torch.randn(sum(counts), 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = merged(denoiser, x, LEVELS, counts)
        alone = torch.cat([denoiser(p, at) for p, at in zip(x.split(counts), LEVELS, strict=True)])
    assert float((together - alone).abs().max()) <= 1e-6 * max(1.0, float(alone.abs().max()))


@pytest.mark.parametrize(
    ("time_input", "told"),
    [("timestep", 0.25), ("lambda", 0.5), ("scaled-lambda", 2.0)],
)
def test_a_network_hears_the_time_as_it_was_trained(time_input, told):
    """Weights know one scale: with another a shipped model answers with noise."""
    heard = []

    class Listening(torch.nn.Module):
        def forward(self, x, times, rows=None):
            heard.append(float(times))
            return x

    level = Level(math.exp(0.5), 1.0, 0.25)
    Denoiser(Listening(), time_input=time_input)(torch.zeros(1, 2), level)
    assert heard == [pytest.approx(told)]


# Flow maps, with the exact one of Gaussian data

SCHEDULE = CosineSchedule()
FIRST, LAST = SCHEDULE.level(SCHEDULE.lambda_max), SCHEDULE.level(SCHEDULE.lambda_min)
HALF = SCHEDULE.level(0.0)


class ExactMap(torch.nn.Module):
    """The mean velocity of Gaussian data from `times` to `to`, in closed form; their velocity without `to`."""

    flow_map = True

    def __init__(self):
        super().__init__()
        self.still = GaussianNetwork("v")

    def forward(self, x, times, rows=None, to=None):
        times = times if rows is None else times[rows]
        to = times if to is None else (to if rows is None else to[rows])
        out = self.still(x, times).clone()
        for k in range(len(x)):
            start, end = (SCHEDULE.level(float(t[k % len(t)])) for t in (times, to))
            if abs(end.phi - start.phi) > 1e-9:
                moved = gaussian_map(x[k : k + 1], start, end)[0]
                out[k] = (moved - x[k]) / (end.phi - start.phi)
        return out


@pytest.fixture
def exact():
    return Denoiser(ExactMap(), "v", "lambda")


@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_an_exact_map_is_exact_with_any_number_of_steps(exact, evaluations):
    """Encoding ends at the exact latent, and decoding takes it back."""
    settings = SolverSettings("flow-map", evaluations=evaluations)
    x = gaussian_samples(6, FIRST)
    z = encode(x, exact, SCHEDULE, settings)
    assert torch.allclose(z, gaussian_map(x, FIRST, LAST), atol=1e-6)
    assert torch.allclose(decode(z, exact, SCHEDULE, settings), x, atol=1e-5)


def test_merged_steps_get_what_each_gets_alone(exact):
    """One call answers a step, another step and a velocity."""
    x = gaussian_samples(6, HALF)
    levels, to = [FIRST, LAST, HALF], [HALF, FIRST, None]
    together = merged(exact, x, levels, [2, 3, 1], None, to)
    alone = [
        exact(part, *pair) for part, *pair in zip(x.split([2, 3, 1]), levels, [None] * 3, to, strict=True)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_a_network_of_velocities_is_refused():
    """It does not know the mean over an interval, and must not be taken for a flow map."""
    settings = SolverSettings("flow-map", evaluations=4)
    with pytest.raises(SettingsInvalid, match="velocities at one level alone"):
        encode(gaussian_samples(2, FIRST), gaussian_denoiser(), SCHEDULE, settings)
