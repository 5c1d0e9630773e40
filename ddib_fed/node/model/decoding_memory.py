"""A budget of memory for decoding and writing files.

A file's need is computed from its header before it is decoded; a file over the whole budget is refused,
and one that does not fit now waits for the running ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ddib_fed.errors import DdibError, ImageTooLarge

MIB = 1 << 20


class DecodingMemory:
    """The budget of one node, shared by its threads.

    Args:
        total_bytes: Limit for all files decoded or written at once.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._taken = 0
        self._changed = threading.Condition()
        # One caller at a time waits for memory; a caller past this point waits no more, so it gives back what it holds.
        self._gate = threading.Lock()

    @property
    def taken_bytes(self) -> int:
        """Bytes handed out now."""
        return self._taken

    @property
    def waits(self) -> bool:
        """Whether a caller waits for memory now."""
        return self._gate.locked()

    @contextmanager
    def file(
        self,
        size_bytes: int,
        load: Callable[[], bytes],
        cost: Callable[[bytes], int],
        too_large: type[DdibError] = ImageTooLarge,
    ) -> Iterator[bytes]:
        """A file's content, with its memory reserved while it is used.

        Args:
            size_bytes: Its size.
            load: Reads it.
            cost: Computes the bytes needed in addition to it, from its header.
            too_large: The error for a file over the budget.

        Raises:
            DdibError: `too_large`; what `load` or `cost` raise.
        """
        held = 0
        try:
            with self._gate:
                held += self._take(size_bytes, too_large)
                content = load()
                more = cost(content)
                self._check(size_bytes + more, too_large)
                held += self._take(more, too_large)
            yield content
        finally:
            self._give(held)

    @contextmanager
    def work(self, size_bytes: int, too_large: type[DdibError] = ImageTooLarge) -> Iterator[None]:
        """Reserve memory for output.

        Raises:
            DdibError: `too_large`: it is over the budget.
        """
        with self._gate:
            held = self._take(size_bytes, too_large)
        try:
            yield
        finally:
            self._give(held)

    def _check(self, size_bytes: int, too_large: type[DdibError]) -> None:
        if size_bytes > self._total:
            raise too_large(
                f"it takes {size_bytes // MIB} MiB of memory to decode, {self._total // MIB} are the limit",
                hint="make the picture smaller, or let the node's operator raise limits.decode_memory_mib",
                facts={"memory_mib": size_bytes // MIB, "limit_mib": self._total // MIB},
            )

    def _take(self, size_bytes: int, too_large: type[DdibError]) -> int:
        self._check(size_bytes, too_large)
        with self._changed:
            while self._taken + size_bytes > self._total:
                self._changed.wait()
            self._taken += size_bytes
        return size_bytes

    def _give(self, size_bytes: int) -> None:
        with self._changed:
            self._taken -= size_bytes
            self._changed.notify_all()
