"""Networks of points: times told once or for each row, and the two levels of a flow map."""

import pytest
import torch

from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import MlpConfig, SyntheticConfig
from ddib_fed.networks.mlp import ResidualMLP, SyntheticModel
from tests.networks.picture_networks import filled

NETWORKS = {
    "mlp": lambda: filled(ResidualMLP(MlpConfig(width=32, blocks=2))),
    "synthetic": lambda: filled(SyntheticModel(SyntheticConfig(num_channels=64, num_res_blocks=1))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_time_one_a_row_and_pointed_to_agree(name):
    """(1,), (N,) and (K,) with rows are three ways to say the same."""
    network = NETWORKS[name]()
    x = torch.randn(6, 2)
    times = torch.tensor([0.5, 2.0])
    rows = torch.tensor([0, 0, 1, 0, 1, 1])
    with torch.no_grad():
        pointed = network(x, times, rows=rows)
        for_each = network(x, times[rows])
        alone = torch.cat([network(x[i : i + 1], times[rows[i] : rows[i] + 1]) for i in range(6)])
    assert torch.allclose(pointed, for_each, atol=1e-6)
    assert torch.allclose(pointed, alone, atol=1e-6)


TIMES, ROWS = torch.tensor([-4.0, 3.0]), torch.tensor([0, 1, 1, 0])


@pytest.fixture
def networks():
    """A network with weights that are nowhere zero, and a flow map that starts from them."""
    plain = filled(build_network(MlpConfig()))
    mapped = build_network(MlpConfig(flow_map=True))
    missing = mapped.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing
    assert all("span" in name for name in missing)
    return plain, mapped.eval()


@pytest.fixture
def x():
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


def test_starts_from_the_velocities_of_the_network_it_is_made_of(networks, x):
    """With the weights of a network of velocities, u(x, t, t) is its v."""
    plain, mapped = networks
    with torch.no_grad():
        expected = plain(x, TIMES, rows=ROWS)
        assert torch.allclose(mapped(x, TIMES, rows=ROWS), expected, atol=1e-5)
        assert torch.allclose(mapped(x, TIMES, rows=ROWS, to=TIMES), expected, atol=1e-5)


def test_rows_have_their_own_spans(networks, x):
    mapped = filled(networks[1])
    with torch.no_grad():
        to = torch.tensor([5.0, -6.0])
        whole = mapped(x, TIMES, rows=ROWS, to=to)
        for k in range(len(x)):
            alone = mapped(x[k : k + 1], TIMES[ROWS[k], None], to=to[ROWS[k], None])
            assert torch.allclose(alone, whole[k : k + 1], atol=1e-4)
        assert not torch.allclose(whole, mapped(x, TIMES, rows=ROWS), atol=1e-2)
