"""eps, x0 and v networks are one function; merged requests get what each would get alone; the ends are finite."""

from __future__ import annotations

import math

import pytest
import torch

from ddib_fed.diffusion.denoiser import Denoiser, eps_from_v, v_from_eps, v_from_x0, x0_from_v
from ddib_fed.diffusion.schedule import Level, LinearSchedule
from ddib_fed.errors import SettingsInvalid
from ddib_fed.networks.mlp import ResidualMLP, SyntheticModel
from tests.diffusion.gaussian_data import gaussian_denoiser, gaussian_samples

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


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: f"{level.lam:.1f}")
def test_conversions_are_each_others_inverse(level):
    """v from eps or x0 gives them back."""
    x, eps = gaussian_samples(50, level), torch.randn(50, 2, dtype=torch.float64)
    v = v_from_eps(eps, x, level.alpha, level.sigma)
    assert torch.allclose(eps_from_v(v, x, level.alpha, level.sigma), eps, atol=1e-10)
    x0 = x0_from_v(v, x, level.alpha, level.sigma)
    assert torch.allclose(v_from_x0(x0, x, level.alpha, level.sigma), v, atol=1e-10)


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
    assert bool(torch.isfinite(denoiser.evaluate_merged(x, [level, LEVELS[2]], [4, 5])).all())


def test_what_a_network_cannot_know_is_zero():
    """An eps network says nothing of x0 at alpha = 0, an x0 network nothing of eps at sigma = 0."""
    x = torch.randn(3, 2)
    assert torch.equal(v_from_eps(x.clone(), x, 0.0, 1.0), torch.zeros_like(x))
    assert torch.equal(v_from_x0(x.clone(), x, 1.0, 0.0), torch.zeros_like(x))


@pytest.mark.parametrize("name", ["mlp", "synthetic"])
def test_merged_requests_get_what_each_gets_alone(name):
    """One call with a level for each request differs from one call each by at most 1e-6."""
    denoiser = random_networks()[name]
    counts = [1, 7, 2, 40, 3]
    x = torch.randn(sum(counts), 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        merged = denoiser.evaluate_merged(x, LEVELS, counts)
        alone = torch.cat([denoiser(p, at) for p, at in zip(x.split(counts), LEVELS, strict=True)])
    assert float((merged - alone).abs().max()) <= 1e-6 * max(1.0, float(alone.abs().max()))


@pytest.mark.parametrize("name", ["mlp", "synthetic"])
def test_each_row_may_have_its_own_level(name):
    """Levels given as three columns are those given as requests."""
    denoiser = random_networks()[name]
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(1))
    rows = [LEVELS[i % 5] for i in range(10)]
    table = torch.tensor(rows, dtype=torch.float64)
    with torch.no_grad():
        by_column = denoiser.evaluate(x, table[:, 2], table[:, 0], table[:, 1])
        by_request = denoiser.evaluate_merged(x, rows, [1] * 10)
    assert torch.allclose(by_column, by_request, rtol=1e-6, atol=1e-6)


def test_large_batches_are_computed_in_pieces_with_the_same_result():
    """Rows do not depend on the rows beside them, however they are cut."""
    denoiser = random_networks()["mlp"]
    x = torch.randn(3000, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, part = denoiser(x, LEVELS[1]), denoiser(x[2040:2060], LEVELS[1])
    assert torch.allclose(whole[2040:2060], part, atol=1e-6)


def test_answers_in_the_states_dtype():
    """A float32 network answers a float64 state in float64."""
    x = torch.randn(4, 2, dtype=torch.float64)
    assert random_networks()["mlp"](x, LEVELS[0]).dtype == torch.float64


def test_learned_variances_are_ignored():
    """Output channels beyond the input's do not count."""
    network = SyntheticModel(num_channels=32, out_channels=4)
    assert Denoiser(network, "eps", "timestep")(torch.randn(4, 2), LEVELS[1]).shape == (4, 2)


def test_condition_reaches_the_network():
    """What a query is conditioned on is handed over by name."""

    class Shifted(torch.nn.Module):
        def forward(self, x, times, rows=None, *, y):
            return x + y

    x = torch.zeros(3, 2)
    y = torch.ones(3, 2)
    assert torch.equal(Denoiser(Shifted(), "v", "lambda")(x, LEVELS[0], {"y": y}), y)


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
