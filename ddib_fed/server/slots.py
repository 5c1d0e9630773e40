"""Bounded slots for concurrent work; excess work is refused at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ddib_fed.errors import TooManyStreams


class Slots:
    """Counts running work, in total and per identity, and refuses excess.

    Args:
        per_identity: Cap for one identity.
        total: Cap for all.
    """

    def __init__(self, per_identity: int, total: int | None = None) -> None:
        self._per_identity = per_identity
        self._total = total
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    @property
    def active(self) -> int:
        """How many run now."""
        with self._lock:
            return self._taken.total()

    @contextmanager
    def taken(self, identity: str) -> Iterator[None]:
        """Hold one place, or raise TooManyStreams at once."""
        with self._lock:
            if self._taken[identity] >= self._per_identity:
                self._refuse(f"{identity} has {self._per_identity} calls open", self._per_identity)
            if self._total is not None and self._taken.total() >= self._total:
                self._refuse(f"{self._total} streams are open", self._total)
            self._taken[identity] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[identity] -= 1
                if self._taken[identity] <= 0:
                    del self._taken[identity]

    @staticmethod
    def _refuse(detail: str, limit: int) -> NoReturn:
        raise TooManyStreams(detail, facts={"limit": limit}, retry_after_s=1.0)
