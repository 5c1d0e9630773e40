"""Captures one call of a network as a CUDA graph, whose replay launches all its kernels at once.

A capture runs nothing that depends on a value on the host: a network with such control flow is refused by torch when it
is captured, and `placement` then says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddib_fed.networks.placed.buckets import Buffers, Runner

WARM_UP_CALLS = 3
"""Calls before a capture, in which libraries choose their algorithms and allocate what they keep."""


class Capturing:
    """Captures the calls of one network. Its graphs share memory: an answer is copied out before another graph runs."""

    def __init__(self) -> None:
        self._pool: Any = None  # a handle, whose type torch does not publish

    def __call__(self, network: nn.Module, buffers: Buffers) -> Runner:
        device = buffers.x.device

        def call() -> Tensor:
            answer: Tensor = network(buffers.x, buffers.times, **buffers.extra)
            return answer

        with torch.no_grad(), torch.cuda.device(device):
            current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS):
                    call()
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Copies to the host by other threads go on meanwhile.
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                answer = call()
            self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return answer

        return replay
