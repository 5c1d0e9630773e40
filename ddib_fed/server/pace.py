"""Ends a stream whose sender stalls longer than a stated time between two messages.

A receiver that waits for a message holds a thread and a file, so every wait is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from ddib_fed.errors import DeadlineExceeded
from ddib_fed.rpc.ahead import Late, ReadAhead

SLOWEST_BYTES_PER_S: Final = 64 << 10
"""Something announced may take as long as its bytes at this rate: half of what a client itself waits for."""
READ_AHEAD: Final = 4
"""Messages that are read before they are asked for: reading does not wait for each one's digest. As many may have been
handed over already: 8 MiB of chunks at most."""

M = TypeVar("M")


class Pace:
    """How long the next message may take.

    Args:
        stall_s: Between two messages.
        always: Whether it applies also between two objects; otherwise only inside one.
    """

    def __init__(self, stall_s: float, *, always: bool) -> None:
        self._stall_s = stall_s
        self._always = always
        self._until: float | None = None

    def begin(self, size_bytes: int) -> None:
        """An object of this size was announced."""
        self._until = time.monotonic() + self._stall_s + size_bytes / SLOWEST_BYTES_PER_S

    def end(self) -> None:
        """It is complete."""
        self._until = None

    def wait_s(self) -> float | None:
        """Seconds for the next message; None for no limit."""
        if self._until is None:
            return self._stall_s if self._always else None
        return max(0.0, min(self._stall_s, self._until - time.monotonic()))

    @property
    def stall_s(self) -> float:
        """Between two messages."""
        return self._stall_s


class paced(Generic[M]):  # noqa: N801 - reads as the statement it is
    """The messages of a stream, read on a thread of its own; a context manager.

    Args:
        messages: The stream; it ends, or raises, when its call does.
        pace: How long each may take.
    """

    def __init__(self, messages: Iterator[M], pace: Pace) -> None:
        self._ahead = ReadAhead(messages, READ_AHEAD, "upload")
        self._pace = pace

    def __enter__(self) -> Iterator[M]:
        """Begin to read."""
        self._ahead.__enter__()
        return self._taken()

    def __exit__(self, *exc_info: object) -> None:
        """The caller reads no further: the thread ends with its call."""
        self._ahead.__exit__(*exc_info)

    def _taken(self) -> Iterator[M]:
        """The messages.

        Raises:
            DeadlineExceeded: The next one did not come in time.
        """
        try:
            yield from self._ahead.each(self._pace.wait_s)
        except Late:
            raise DeadlineExceeded(
                "the sender stalled in the middle of its stream",
                hint="the same command again",
                facts={"stall_s": f"{self._pace.stall_s:g}"},
            ) from None
