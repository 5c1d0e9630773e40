"""A budget of memory and threads for decoding and writing files, shared fairly by the clients.

A file's need is computed from its header before it is decoded; one over the budget is refused. What does not fit now
waits, the clients in turn, so that nobody waits behind all files of another. Small files have memory of their own, so
that they do not wait for large ones, nor large ones for ever.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ddib_fed.errors import Cancelled, DdibError, ImageTooLarge

MIB = 1 << 20
SMALL: Final = 4
"""Small files share a quarter of the budget in addition to it."""
LOOK_S: Final = 0.5
"""How often a waiting file looks whether its call has ended."""


class DecodingMemory:
    """The budget of one node, shared by its threads."""

    def __init__(self, total_bytes: int, of_one: int = max(1, (os.cpu_count() or 1) // 2)) -> None:
        self._total = total_bytes
        self._of_one = of_one
        self._small, self._large = _Part(total_bytes // SMALL), _Part(total_bytes)
        self._running: Counter[str] = Counter()
        self._changed = threading.Condition()

    @property
    def taken_bytes(self) -> int:
        return sum(part.total_bytes - part.free_bytes for part in (self._small, self._large))

    @property
    def waiting(self) -> int:
        with self._changed:
            return sum(len(files) for part in (self._small, self._large) for files in part.waiting.values())

    @contextmanager
    def file(
        self,
        client: str,
        size_bytes: int,
        load: Callable[[], bytes],
        cost: Callable[[bytes], int],
        *,
        ended: Callable[[], bool] = lambda: False,
        too_large: type[DdibError] = ImageTooLarge,
    ) -> Iterator[bytes]:
        """A file's content, with its memory reserved while it is used."""
        with self.work(client, size_bytes, ended=ended, too_large=too_large):
            need = size_bytes + cost(load())
        with self.work(client, need, ended=ended, too_large=too_large):
            yield load()

    @contextmanager
    def work(
        self,
        client: str,
        size_bytes: int,
        *,
        ended: Callable[[], bool] = lambda: False,
        too_large: type[DdibError] = ImageTooLarge,
    ) -> Iterator[None]:
        """Reserve memory."""
        if size_bytes > self._total:
            raise too_large(
                f"it takes {size_bytes // MIB} MiB of memory to decode, {self._total // MIB} are the limit",
                hint="make the picture smaller, or let the node's operator raise limits.decode_memory_mib",
                facts={"memory_mib": size_bytes // MIB, "limit_mib": self._total // MIB},
            )
        part = self._large if size_bytes > self._small.total_bytes else self._small
        file = _File(client, size_bytes)
        with self._changed:
            part.waiting.setdefault(client, deque()).append(file)
        try:
            with self._changed:
                self._hand_out()
                while not ended():
                    if file.has_memory:
                        break
                    self._changed.wait(LOOK_S)
                else:
                    raise Cancelled("the call has ended for which a file was to be decoded")
            yield
        finally:
            with self._changed:
                if file.has_memory:
                    part.free_bytes += size_bytes
                    self._running[client] -= 1
                    self._running += Counter()  # forgets clients that have none
                else:
                    part.take(file)
                self._hand_out()

    def _hand_out(self) -> None:
        """Memory to those whose turn it is."""
        for part in (self._small, self._large):
            while (file := self._next(part)) is not None:
                part.take(file)
                part.free_bytes -= file.size_bytes
                file.has_memory = True
                self._running[file.client] += 1
        self._changed.notify_all()

    def _next(self, part: _Part) -> _File | None:
        for client, files in part.waiting.items():
            if self._running[client] < self._of_one:
                return files[0] if files[0].size_bytes <= part.free_bytes else None
        return None


@dataclass(slots=True, eq=False)
class _File:
    client: str
    size_bytes: int
    has_memory: bool = False


class _Part:
    """A part of the budget, and the clients' files that wait for it, in the order of the clients' turns."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = self.free_bytes = total_bytes
        self.waiting: dict[str, deque[_File]] = {}

    def take(self, file: _File) -> None:
        """A file waits no longer: its client's next turn is after those of all others."""
        files = self.waiting.pop(file.client)
        files.remove(file)
        if files:
            self.waiting[file.client] = files
