"""Cancelling and deadline of a piece of work, shared between threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ddib_fed.errors import Cancelled, DdibError, DeadlineExceeded


class Control:
    """Says to whoever works on something whether to go on; shared between threads."""

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._error: DdibError | None = None
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    def cancel(self, error: DdibError | None = None) -> None:
        """Stop at the next step; the first reason given stays."""
        with self._lock:
            if self._cancelled.is_set():
                return
            self._error = error or Cancelled()
            self._cancelled.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    @contextmanager
    def interrupting(self, callback: Callable[[], object]) -> Iterator[None]:
        """Inside, cancelling calls `callback`, on the thread that cancels: for threads that wait and cannot `check`."""
        with self._lock:
            late = self._cancelled.is_set()
            if not late:
                self._callbacks.append(callback)
        if late:
            callback()
        try:
            yield
        finally:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def error(self) -> DdibError | None:
        """Why the work is over; None while it may go on."""
        if self._cancelled.is_set():
            return self._error
        if self.deadline is not None and time.monotonic() > self.deadline:
            return DeadlineExceeded()
        return None

    @property
    def over(self) -> bool:
        return self.error is not None

    def remaining_s(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Return when the work may go on."""
        if (error := self.error) is not None:
            raise error
