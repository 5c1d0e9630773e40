"""Ends a stream whose sender stalls, or sends nothing at all, longer than a stated time.

A receiver that waits for a message holds a thread and a file, so every wait is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from ddib_fed.errors import DeadlineExceeded
from ddib_fed.rpc.calls import Late, ReadAhead

SLOWEST_BYTES_PER_S: Final = 64 << 10
"""Something announced may take as long as its bytes at this rate: half of what a client itself waits for."""
READ_AHEAD: Final = 4
"""Messages that are read before they are asked for: reading does not wait for each one's digest. As many may have been
handed over already: 8 MiB of chunks at most."""

M = TypeVar("M")


class Pace:
    """How long the next message may take."""

    def __init__(self, stall_s: float, *, between_s: float, busy: Callable[[], bool] = lambda: False) -> None:
        self._stall_s = stall_s
        self._between_s = between_s
        self._busy = busy
        self._until: float | None = None
        self._worked = False

    def begin(self, size_bytes: int) -> None:
        self._until = time.monotonic() + self._stall_s + size_bytes / SLOWEST_BYTES_PER_S

    def end(self) -> None:
        self._until = None

    def wait_s(self) -> float:
        """Seconds for the next message."""
        if self._until is None:
            self._worked = self._busy()
            return self._between_s
        return max(0.0, min(self._stall_s, self._until - time.monotonic()))

    def late(self) -> None:
        """The time for the next message is over: return if it begins anew."""
        if self._until is not None:
            raise DeadlineExceeded(
                "the sender stalled in the middle of its stream",
                hint="the same command again",
                facts={"stall_s": f"{self._stall_s:g}"},
            )
        # Where an answer went out within this time, the sender has had only a part of it.
        if not (self._worked or self._busy()):
            raise DeadlineExceeded(
                "the sender kept its stream open and sent nothing",
                hint="the same command again",
                facts={"idle_s": f"{self._between_s:g}"},
            )

    def each(self, ahead: ReadAhead[M]) -> Iterator[M]:
        """The messages of a stream that is read ahead."""
        while True:
            try:
                yield from ahead.each(self.wait_s)
            except Late:
                self.late()
            else:
                return
