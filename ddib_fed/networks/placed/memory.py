"""Keeps memory that tensors on the CPU have freed, for the next ones.

glibc gives freed memory of some megabytes back to the system, and takes page faults to have it again: thousands of them
in one call of the shipped picture networks at 64 pictures, 8 % of its time.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
LARGEST_FROM_HEAP = 32 << 20
"""Bytes of one tensor: the most that glibc serves from its heap on 64-bit machines."""
KEPT_BYTES = 256 << 20
"""Free memory at the end of the heap that stays with the process."""


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """From now on keep up to 256 MiB of freed memory; whether this system's C library can be told so."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_FROM_HEAP)) and bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
