"""Runs a network at a few fixed numbers of rows, in buffers that stay where they are.

What a CUDA graph replays, or torch.compile specialised, is one call at one shape on tensors at fixed places. So a call
of n rows is copied into the buffers of the least bucket that holds n, run there, and its first n rows are copied out.
The rows beyond n hold what an earlier call left: rows do not see each other. Every row has a time of its own in the
buffers, so that calls whose rows were merged and calls of one level are the same call.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.running import Run
from ddib_fed.diffusion.transfers import on_device


@dataclass(frozen=True, slots=True)
class Buffers:
    """The inputs of one bucket, written before each run."""

    x: Tensor
    times: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)


Runner = Callable[[], Tensor]
"""Runs the network on its buffers; the answer may be overwritten by the next run."""
Maker = Callable[[nn.Module, Buffers], Runner]


def buckets_up_to(most: int) -> tuple[int, ...]:
    """Numbers of rows 1, 2, 3, 4, 6, 8, 12, ... up to `most`, which is one: at most a third of a bucket is padding."""
    found = {most}
    power = 1
    while power < most:
        found |= {size for size in (power, power + power // 2) if size <= most}
        power *= 2
    return tuple(sorted(found))


class Bucketed:
    """Runs a network in buckets."""

    def __init__(self, eager: Run, network: nn.Module, make: Maker, buckets: Sequence[int]) -> None:
        self._eager = eager
        self._network = network
        self._make = make
        self._buckets = tuple(buckets)
        self._runners: dict[tuple[object, ...], tuple[Buffers, Runner]] = {}
        self._lock = threading.Lock()  # buffers hold one call at a time
        self.made = self.replayed = self.called = 0

    def __call__(self, x: Tensor, times: Tensor, rows: Tensor | None, extra: Mapping[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled() or len(x) > self._buckets[-1]:
            self.called += 1
            return self._eager(x, times, rows, extra)
        with self._lock:
            buffers, run = self._runner(x, times, extra)
            self.replayed += 1
            count = len(x)
            buffers.x[:count].copy_(x)
            _lay_times(buffers.times[:count], times, rows)
            for name, value in extra.items():
                held = buffers.extra[name][:count]
                if name == "to":
                    _lay_times(held, value, rows)
                else:
                    held.copy_(value)
            return run()[:count].clone()

    def _runner(self, x: Tensor, times: Tensor, extra: Mapping[str, Tensor]) -> tuple[Buffers, Runner]:
        size = self._buckets[bisect.bisect_left(self._buckets, len(x))]
        inputs = tuple(sorted((name, value.dtype, value.shape[1:]) for name, value in extra.items()))
        key = (size, x.dtype, x.shape[1:], inputs)
        if key not in self._runners:

            def buffer(like: Tensor) -> Tensor:
                return torch.zeros(size, *like.shape[1:], dtype=like.dtype, device=x.device)

            buffers = Buffers(
                buffer(x), buffer(times), {name: buffer(value) for name, value in extra.items()}
            )
            self._runners[key] = buffers, self._make(self._network, buffers)
            self.made += 1
        return self._runners[key]


def _lay_times(held: Tensor, times: Tensor, rows: Tensor | None) -> None:
    if rows is None:
        held.fill_(float(times))
    else:
        torch.index_select(on_device(times, held.device), 0, rows, out=held)
