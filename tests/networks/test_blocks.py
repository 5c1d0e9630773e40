"""Attention written out computes what torch's fused kernel computes."""

import pytest
import torch
from torch.nn import functional

from ddib_fed.networks.layers import attention


@pytest.mark.parametrize("positions", [3, 64, 65])
def test_attention_and_its_gradient_are_torchs_own(positions):
    """Written out where a gradient is needed over few positions, and by the fused kernel: the same to rounding."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, positions, 8, generator=generator, dtype=torch.float64) for _ in range(4)]
    *inputs, towards = parts
    found = []
    for attend in (attention, functional.scaled_dot_product_attention):
        asked = [part.clone().requires_grad_() for part in inputs]
        seen = attend(*asked)
        seen.backward(towards)
        found.append([seen.detach(), *(part.grad for part in asked)])
    assert all(torch.allclose(ours, theirs, atol=1e-12) for ours, theirs in zip(*found, strict=True))


def test_attention_keeps_its_type_under_autocast():
    query = torch.randn(1, 2, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(query, query, query).dtype == torch.bfloat16
