"""What was last wrong with the calls to each peer, for the operator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ddib_fed.errors import DdibError


class PeerProblems:
    """The last failure of each peer since its last success; safe to use from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, str]] = {}

    def failed(self, institution: str, error: DdibError) -> None:
        with self._lock:
            self._last[institution] = self._clock(), f"{error.detail} [{error.reason}]"

    def answered(self, institution: str) -> None:
        with self._lock:
            self._last.pop(institution, None)

    def of(self, institution: str) -> tuple[float, str]:
        with self._lock:
            return self._last.get(institution, (0.0, ""))
