"""Bounded slots for concurrent work; excess work is refused at once, and nobody can take all of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from ddib_fed.errors import TooManyStreams

SHARE: Final = 2
"""Somebody may have so many times as many places as are free."""
KEPT: Final = 16
"""One of so many places is for those who have none."""


def within_share(taken: int, free: int, total: int) -> bool:
    return free > 0 and (taken == 0 or taken < SHARE * (free - total // KEPT))


class Slots:
    """Counts running work, in total and per identity, and refuses excess."""

    def __init__(self, per_identity: int, total: int | None = None) -> None:
        self._per_identity = per_identity
        self._total = total
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    @property
    def active(self) -> int:
        with self._lock:
            return self._taken.total()

    @contextmanager
    def taken(self, identity: str) -> Iterator[None]:
        """Hold one place, or raise TooManyStreams at once."""
        with self._lock:
            if self._taken[identity] >= self._per_identity:
                self._refuse(f"{identity} has {self._per_identity} calls open", self._per_identity)
            if self._total is not None:
                free = self._total - self._taken.total()
                if free <= 0:
                    self._refuse(f"{self._total} streams are open", self._total)
                if not within_share(self._taken[identity], free, self._total):
                    self._refuse(f"{identity} has its share of {self._total} streams", self._taken[identity])
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
