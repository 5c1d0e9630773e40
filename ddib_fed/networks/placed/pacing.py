"""Keeps the host at most a few calls ahead of the device.

Without a synchronisation per step the host could queue a whole trajectory before its first step is computed: progress
would be reported too early, cancelled rows would be computed to their end, and requests that come meanwhile would not
be merged. The device never idles for it: while the host waits, later calls are queued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ddib_fed.diffusion.running import Run

CALLS_AHEAD = 2

Mark = Callable[[], Callable[[], None]]
"""Marks what is queued on the device so far; what it returns waits until that is done."""


class Paced:
    """Runs a network, waiting first for the call that was queued `CALLS_AHEAD` calls before."""

    def __init__(self, run: Run, mark: Mark) -> None:
        self.run = run
        self._mark = mark
        self._queued: deque[Callable[[], None]] = deque()

    def __call__(self, x: Tensor, times: Tensor, rows: Tensor | None, extra: Mapping[str, Tensor]) -> Tensor:
        while len(self._queued) >= CALLS_AHEAD:
            try:
                wait = self._queued.popleft()
            except IndexError:  # another thread has taken it
                break
            wait()
        answer = self.run(x, times, rows, extra)
        self._queued.append(self._mark())
        return answer


def cuda_mark(device: torch.device) -> Mark:
    """Marks of the stream that is current on a CUDA device."""

    def mark() -> Callable[[], None]:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        done: Callable[[], None] = event.synchronize
        return done

    return mark
