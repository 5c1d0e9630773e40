"""Keeps memory that tensors on the CPU have freed, for the next ones.

glibc gives freed memory of some megabytes back to the system, and takes page faults to have it again: thousands of them
in one call of the shipped picture networks at 64 pictures, 8 % of its time.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from functools import lru_cache

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
LARGEST_FROM_HEAP = 32 << 20
"""Bytes of one tensor: the most that glibc serves from its heap on 64-bit machines."""
KEPT_BYTES = 256 << 20
"""Free memory at the end of the heap that stays with the process."""


ARENAS = 2
"""Heaps of a process of many threads. By default a thread gets one of eight per core, and each keeps what its threads
once needed: the memory of a node grows until every heap has seen the largest job."""


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    return _told({_MMAP_THRESHOLD: LARGEST_FROM_HEAP, _TRIM_THRESHOLD: KEPT_BYTES})


@lru_cache(maxsize=1)
def share_heaps() -> bool:
    return _told({_ARENA_MAX: ARENAS})


def _told(parameters: Mapping[int, int]) -> bool:
    """Set parameters of mallopt(3)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    answers = [mallopt(name, value) for name, value in parameters.items()]
    return all(answers)
