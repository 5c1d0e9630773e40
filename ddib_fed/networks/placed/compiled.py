"""Compiles a network with torch.compile, for each bucket by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddib_fed.networks.placed.buckets import Buffers, Runner


def compiled(network: nn.Module, buffers: Buffers) -> Runner:
    """The runner that calls the compiled network on its buffers."""
    mode = "max-autotune" if buffers.x.device.type == "cuda" else "default"
    fast = torch.compile(network, mode=mode, dynamic=False)

    def run() -> Tensor:
        answer: Tensor = fast(buffers.x, buffers.times, **buffers.extra)
        return answer

    with torch.no_grad():
        run()
    return run
