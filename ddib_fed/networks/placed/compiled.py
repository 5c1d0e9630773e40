"""Compiles a network with torch.compile, for each bucket by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddib_fed.networks.placed.buckets import Buffers, Runner


def compiled(network: nn.Module, buffers: Buffers) -> Runner:
    """The runner that calls the compiled network on its buffers.

    On a GPU kernels are chosen by measuring (mode max-autotune, which replays CUDA graphs too); a CPU has nothing to
    choose from.

    Raises:
        RuntimeError: There is no compiler, or torch cannot compile the network.
    """
    mode = "max-autotune" if buffers.x.device.type == "cuda" else "default"
    fast = torch.compile(network, mode=mode, dynamic=False)

    def run() -> Tensor:
        answer: Tensor = fast(buffers.x, buffers.times, **buffers.extra)
        return answer

    with torch.no_grad():
        run()
    return run
