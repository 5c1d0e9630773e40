"""The next piece of a batch, made on a thread of its own while the network works on the present one.

Every piece is a function of (seed, step, rows), so a run with this thread, without it, or resumed in between computes
the same numbers. On CUDA the piece also lies on the device: it was copied from pinned memory, in the order of the
stream, and nobody waited.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from ddib_fed.processes import beside_here


class Piece(NamedTuple):
    """Some rows of a step's batch."""

    step: int
    first: int
    stop: int


Make = Callable[[Piece], Any]


class Prefetch:
    """Gives pieces, and has the one that comes next made in the meantime."""

    def __init__(self, make: Make, device: torch.device, *, ahead: bool) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, "training-batches") if ahead else None
        if self._thread is not None and device.type == "cuda":
            # Which GPU is the current one is a fact of each thread.
            self._thread.submit(torch.cuda.set_device, device)
        self._next: tuple[Piece, Future[Any]] | None = None

    def get(self, piece: Piece, following: Piece | None) -> Any:
        """The piece; `following` is begun, and given when it is asked for."""
        if self._thread is None:
            return self._make(piece)
        expected, self._next = self._next, None
        if expected is None or expected[0] != piece:
            # After a restart or a smaller microbatch: what was begun is of no use to anybody.
            expected = piece, self._thread.submit(self._make, piece)
        if following is not None:
            self._next = following, self._thread.submit(self._make, following)
        return expected[1].result()

    def close(self) -> None:
        """End the thread; pieces are made when they are asked for from now on."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread, self._next = None, None


def pays(device: torch.device, threads: int) -> bool:
    """Whether a thread for it pays: always beside a GPU, else where the threads of torch leave a core free."""
    if device.type == "cuda":
        return True
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return free > threads * beside_here()
