"""Seconds of work that shares one engine: what runs at the same time shares the time, by rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class SharedTime:
    """Divides the time in which anything runs among all that runs, as if each row took an equal part."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rows = 0
        self._at = 0.0
        self._per_row = 0.0
        """Seconds that a row has had that ran all the time."""

    def begin(self, rows: int) -> Callable[[], float]:
        """Work on `rows` rows (at least 1) begins; call what is returned once, at its end, for its seconds."""
        with self._lock:
            self._pass()
            self._rows += rows
            start = self._per_row

        def end() -> float:
            with self._lock:
                self._pass()
                self._rows -= rows
                return (self._per_row - start) * rows

        return end

    def _pass(self) -> None:
        now = self._clock()
        if self._rows:
            self._per_row += (now - self._at) / self._rows
        self._at = now
