"""Where the bytes of a large object land: one buffer, written once and never copied again.

Large buffers are used again: the kernel fills fresh memory with zeros before it is written, which costs more than
writing what was received. One is taken only after the last view of it is gone.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from contextlib import suppress
from typing import Final

# From here on huge pages save most of the cost of touching fresh memory (64 MiB: 9 ms instead of 40).
_HUGE: Final = 4 << 20
KEPT_BYTES: Final = 256 << 20
"""Of buffers that are not in use. The kernel may take this memory back at any time (MADV_FREE)."""


class Landing:
    """A buffer of announced size; memory is taken as it is written, not when it is made."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = _memory(size_bytes)
        self._written = 0

    def write(self, data: bytes | memoryview, /) -> None:
        """Write the next bytes."""
        end = self._written + len(data)
        self._memory[self._written : end] = data
        self._written = end

    def whole(self) -> memoryview:
        return self._memory[: self._written].toreadonly()


class Buffers:
    """Large buffers, kept for the next object when the last view of one is gone."""

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: list[mmap.mmap] = []
        # A buffer comes back wherever its last view dies, by the garbage collector also inside `take`.
        self._lock = threading.RLock()

    @property
    def kept_bytes(self) -> int:
        with self._lock:
            return sum(map(len, self._kept))

    def take(self, size_bytes: int) -> memoryview:
        """A buffer of this size, of undefined content."""
        with self._lock:
            fitting = [each for each in self._kept if size_bytes <= len(each) <= 2 * size_bytes]
            found = min(fitting, key=len, default=None)
            if found is not None:
                self._kept.remove(found)
        memory = found or _mapped(size_bytes)
        # Every view of the buffer refers to this object, so it lives as long as the last of them.
        lent = (ctypes.c_char * len(memory)).from_buffer(memory)
        weakref.finalize(lent, self._give, memory).atexit = False
        return memoryview(lent).cast("B")[:size_bytes]

    def _give(self, memory: mmap.mmap) -> None:
        with self._lock:
            if self.kept_bytes + len(memory) > self._most_bytes:
                return
            if hasattr(mmap, "MADV_FREE"):
                with suppress(OSError):  # an older kernel: the memory stays with the process
                    memory.madvise(mmap.MADV_FREE)
            self._kept.append(memory)


_BUFFERS: Final = Buffers()


def _memory(size_bytes: int) -> memoryview:
    return memoryview(bytearray(size_bytes)) if size_bytes < _HUGE else _BUFFERS.take(size_bytes)


def _mapped(size_bytes: int) -> mmap.mmap:
    # Private: the shared memory that is the default has no huge pages.
    made = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them; small pages do as well
            made.madvise(mmap.MADV_HUGEPAGE)
    return made
