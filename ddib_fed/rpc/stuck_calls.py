"""Ends streams that gRPC has ended without waking their reader.

When a server stops hard just as a stream begins, gRPC (seen with 1.85.3 over TLS) may learn the call's status and still
wait for its next message: reading it never returns, and neither the deadline nor cancelling the call changes that. Only
closing the channel does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

STUCK_S: Final = 3.0
"""What was received before a call's end is read at once: a reader that waits for so long after it is stuck."""
LOOK_EVERY_S: Final = 0.5


class StuckCalls:
    """Watches the readers of one channel's streams; its thread runs while a reader waits."""

    def __init__(self, close: Callable[[], None], *, stuck_s: float = STUCK_S) -> None:
        self._close = close
        self._stuck_s = stuck_s
        self._lock = threading.Lock()
        self._reading: dict[int, Any] = {}
        self._ended: dict[int, float] = {}
        self._thread: threading.Thread | None = None
        self.found = False

    @contextmanager
    def reading(self, call: Any) -> Iterator[None]:
        """Context while a reader waits for the next answer of a call."""
        with self._lock:
            self._reading[id(call)] = call
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="stuck-calls", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._reading.pop(id(call), None)
                self._ended.pop(id(call), None)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            with self._lock:
                if not self._reading:
                    self._thread = None
                    return
                if not self._any_stuck():
                    continue
                self.found, self._thread = True, None
            self._close()
            return

    def _any_stuck(self) -> bool:
        now = time.monotonic()
        for key, call in self._reading.items():
            if not call.is_active():
                self._ended.setdefault(key, now)
        return any(now - since > self._stuck_s for since in self._ended.values())
