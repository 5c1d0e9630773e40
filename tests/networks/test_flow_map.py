"""A network of two levels starts from a network of velocities, and each row has a span of its own."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import MlpConfig

TIMES, ROWS = torch.tensor([-4.0, 3.0]), torch.tensor([0, 1, 1, 0])


@pytest.fixture
def networks():
    """A network with weights that are nowhere zero, and a flow map that starts from them."""
    torch.manual_seed(1)
    plain = build_network(MlpConfig())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.1)
    mapped = build_network(MlpConfig(flow_map=True))
    missing = mapped.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing
    assert all("span" in name for name in missing)
    return plain.eval(), mapped.eval()


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
    """A batch with a step of its own for each row gives what each row gets alone."""
    _, mapped = networks
    with torch.no_grad():
        for parameter in mapped.parameters():
            parameter.normal_(std=0.1)
        to = torch.tensor([5.0, -6.0])
        whole = mapped(x, TIMES, rows=ROWS, to=to)
        for k in range(len(x)):
            alone = mapped(x[k : k + 1], TIMES[ROWS[k], None], to=to[ROWS[k], None])
            assert torch.allclose(alone, whole[k : k + 1], atol=1e-4)
        assert not torch.allclose(whole, mapped(x, TIMES, rows=ROWS), atol=1e-2)
