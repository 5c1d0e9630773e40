"""Captures one call of a network as a CUDA graph, whose replay launches all its kernels at once.

A capture runs nothing that depends on a value on the host: a network with such control flow is refused by torch when it
is captured, and `placement` then says so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddib_fed.networks.placed.buckets import Buffers, Runner

WARM_UP_CALLS = 3
"""Calls before a capture, in which libraries choose their algorithms and allocate what they keep."""


def captured(network: nn.Module, buffers: Buffers) -> Runner:
    """The runner that replays a graph of the network on its buffers.

    Raises:
        RuntimeError: torch cannot capture the network's call.
    """
    device = buffers.x.device
    with torch.no_grad(), torch.cuda.device(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                network(buffers.x, buffers.times, **buffers.extra)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Copies to the host by other threads go on meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            answer: Tensor = network(buffers.x, buffers.times, **buffers.extra)

    def replay() -> Tensor:
        graph.replay()
        return answer

    return replay
