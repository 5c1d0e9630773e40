"""How threads share the cores: how many torch takes for one computation, and whether this one runs in real time.

One thread by default; a second one on a busy machine makes small networks much slower.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with `count` threads of torch, and put the former number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def runs_in_real_time() -> bool:
    """Whether this thread has a real-time policy, under which no thread of equal priority interrupts it."""
    if not hasattr(os, "sched_getscheduler"):  # other systems than Linux
        return False
    return os.sched_getscheduler(0) in {os.SCHED_FIFO, os.SCHED_RR}
