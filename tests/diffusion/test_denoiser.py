"""eps, x0 and v networks are one function; merged requests get what each would get alone; the ends are finite."""

from __future__ import annotations

import math

import pytest
import torch

from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.schedule import Level, LinearSchedule
from ddib_fed.errors import SettingsInvalid
from ddib_fed.networks.mlp import ResidualMLP, SyntheticModel
from tests.diffusion.gaussian_data import gaussian_denoiser, gaussian_samples, merged

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


@pytest.mark.parametrize(("predicts", "time"), [("score", "lambda"), ("v", "sigma")])
def test_refuses_unknown_kinds(predicts, time):
    """Parameterisations and time inputs that do not exist are named errors."""
    with pytest.raises(SettingsInvalid):
        Denoiser(ResidualMLP(width=32, blocks=1), predicts, time)


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
