"""Decode calls that run now, counted, so that a node that drains can wait for their end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class RunningCalls:
    """Counts calls from any thread."""

    def __init__(self) -> None:
        self._active = 0
        self._idle = threading.Condition()

    @property
    def active(self) -> int:
        return self._active

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Inside, one call more runs."""
        with self._idle:
            self._active += 1
        try:
            yield
        finally:
            with self._idle:
                self._active -= 1
                self._idle.notify_all()

    def wait_idle(self, timeout_s: float) -> None:
        with self._idle:
            self._idle.wait_for(lambda: not self._active, max(0.0, timeout_s))
