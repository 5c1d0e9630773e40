"""The clock by which jobs are accepted, wait and expire."""

from __future__ import annotations

import time
from collections.abc import Callable


def steady_clock() -> Callable[[], float]:
    """Unix time that nobody sets while the process runs: a clock put right neither ends jobs nor delays them."""
    start = time.time() - time.monotonic()
    return lambda: start + time.monotonic()
