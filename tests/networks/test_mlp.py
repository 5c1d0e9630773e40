"""Networks: their size, their state dicts, and times told once or for each row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ddib_fed.networks.mlp import ResidualMLP, SyntheticModel

GOLDEN = Path(__file__).parent.parent / "data" / "synthetic_linear.safetensors"


def filled(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1)
    return network.eval()


NETWORKS = {
    "mlp": lambda: filled(ResidualMLP(width=32, blocks=2)),
    "synthetic": lambda: filled(SyntheticModel(num_channels=64, num_res_blocks=1)),
}


def test_the_public_networks_state_dict_is_unchanged():
    """Every name and shape of the public code's file, and no other."""
    with safe_open(GOLDEN, "pt") as file:
        names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118 - not a mapping
        theirs = {name.removeprefix("model."): tuple(file.get_tensor(name).shape) for name in names}
    ours = {
        k: tuple(v.shape) for k, v in SyntheticModel(num_channels=128, num_res_blocks=3).state_dict().items()
    }
    assert ours == theirs


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


@pytest.mark.parametrize("rows", [1, 65])
def test_rows_of_many_levels_agree_with_one_call_a_level(rows):
    """Whether the blocks' scales and shifts are looked up at once, or block by block."""
    network, kept = NETWORKS["mlp"](), {}
    x, times, at = torch.randn(rows, 2), torch.tensor([0.5, 2.0, -3.0]), torch.arange(rows) % 3
    with torch.inference_mode():
        alone = torch.stack([network(x, time[None]) for time in times])[at, torch.arange(rows)]
        for _ in range(2):
            assert torch.allclose(network(x, times, rows=at, kept=kept), alone, atol=1e-6)
