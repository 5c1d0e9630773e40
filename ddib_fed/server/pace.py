"""Ends a stream whose sender stalls longer than a stated time between two messages.

A receiver that waits for a message holds a thread and a file, so every wait is bounded.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from ddib_fed.errors import DeadlineExceeded

SLOWEST_BYTES_PER_S: Final = 64 << 10
"""Something announced may take as long as its bytes at this rate: half of what a client itself waits for."""
_POLL_S: Final = 0.2
READ_AHEAD: Final = 4
"""Messages that are read before they are asked for, 4 MiB at most: reading does not wait for each one's digest."""

M = TypeVar("M")


class _End:
    """The stream is over, by this error if there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


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
        self._messages = messages
        self._pace = pace
        self._queue: queue.Queue[M | _End] = queue.Queue(READ_AHEAD)
        self._left = threading.Event()

    def __enter__(self) -> Iterator[M]:
        """Begin to read."""
        threading.Thread(target=self._read, name="upload", daemon=True).start()
        return self._taken()

    def __exit__(self, *exc_info: object) -> None:
        """The caller reads no further: the thread ends with its call."""
        self._left.set()

    def _read(self) -> None:
        end = _End(None)
        try:
            for message in self._messages:
                if not self._put(message):
                    return
        except BaseException as error:  # noqa: BLE001 - raised again on the handler's thread
            end = _End(error)
        self._put(end)

    def _put(self, item: M | _End) -> bool:
        while not self._left.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def _taken(self) -> Iterator[M]:
        """The messages.

        Raises:
            DeadlineExceeded: The next one did not come in time.
        """
        while True:
            try:
                item = self._queue.get(timeout=self._pace.wait_s())
            except queue.Empty:
                raise DeadlineExceeded(
                    "the sender stalled in the middle of its stream",
                    hint="the same command again",
                    facts={"stall_s": f"{self._pace.stall_s:g}"},
                ) from None
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
