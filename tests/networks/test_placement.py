"""What runs a network in its place answers as the network does, and imports no more than it needs."""

import pytest
import torch

from ddib_fed.diffusion.denoiser import network_times, run_plain
from ddib_fed.models.bundle import pretrained
from ddib_fed.networks.config import MlpConfig
from ddib_fed.networks.mlp import ResidualMLP
from ddib_fed.networks.placement import MOST_LEVELS, Remembering
from tests.diffusion.gaussian_data import merged

pytestmark = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's compilers


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("domain", ["moons", "satellite"])
def test_what_is_remembered_of_a_level_changes_no_answer(domain):
    """The second call at a level, for which nothing of it is computed, answers as the first and as merged rows."""
    bundle = pretrained(domain)
    denoiser = bundle.denoiser()
    levels = bundle.schedule.levels(torch.tensor([0.5, -1.5]))
    x = torch.randn(3, *bundle.manifest.sample_shape)
    first = [denoiser(x, level) for level in levels]
    again = [denoiser(x, level) for level in levels]
    plain = [run_plain(denoiser.network, x, told, None, {}) for told in times_of(bundle, levels)]
    together = merged(denoiser, torch.cat([x, x]), levels, [3, 3])
    for found, same, other in zip(first, again, plain, strict=True):
        assert torch.equal(found, same)
        assert torch.equal(found, other)
    assert torch.allclose(torch.cat(first), together, atol=1e-4)


def times_of(bundle, levels):
    table = torch.tensor(levels, dtype=torch.float64)
    return network_times(table, bundle.manifest.time_input).float()[:, None]


def test_what_is_remembered_is_bounded():
    run = Remembering(ResidualMLP(MlpConfig(width=16, blocks=2, embedding=8, features=8)))
    for step in range(MOST_LEVELS + 5):
        run(torch.zeros(1, 2), torch.tensor([float(step)]), None, {})
    assert len(run._levels) == MOST_LEVELS
