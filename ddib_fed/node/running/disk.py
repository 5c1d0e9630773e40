"""Whether a node can write: it says so before a job finds out, and again when there is room.

A file is written and removed in each folder: that also finds a full quota, a read-only mount and a broken disk, which
the number of free bytes does not show.
"""

from __future__ import annotations

import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ddib_fed.files import is_disk_full

LEAST_FREE_BYTES: Final = 8 << 20
"""Below it the node is degraded: half of what a start asks for, room for the books of the jobs that it has."""
PROBE_BYTES: Final = 64 << 10
LOOK_EVERY_S: Final = 2.0
_PROBE: Final = ".room"


class DiskWatch:
    """Looks at a node's folders when it is asked, at most every `LOOK_EVERY_S`; safe to use from any thread."""

    def __init__(self, folders: Sequence[Path], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folders = tuple(dict.fromkeys(folders))
        self._clock = clock
        self._lock = threading.Lock()
        self._looked: float | None = None
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the node cannot write, with the folder; None while it can."""
        with self._lock:
            now = self._clock()
            if self._looked is None or now - self._looked >= LOOK_EVERY_S:
                self._looked = now
                self._problem = next(filter(None, map(_problem_of, self._folders)), None)
            return self._problem


def _problem_of(folder: Path) -> str | None:
    if not folder.is_dir():  # made when it is first needed
        return None
    try:
        free = shutil.disk_usage(folder).free
        if free >= LEAST_FREE_BYTES:
            _write(folder / _PROBE)
            return None
    except OSError as error:
        if not is_disk_full(error):
            return f"{folder} cannot be written: {error.strerror or error}"
        free = 0
    room = f"{free >> 10} KiB left, {LEAST_FREE_BYTES >> 20} MiB needed"
    return f"the disk of {folder} is full ({room}); df -h {shlex.quote(str(folder))}"


def _write(path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    try:
        left = memoryview(bytes(PROBE_BYTES))
        while left:
            left = left[os.write(file, left) :]
    finally:
        os.close(file)
        with suppress(OSError):
            path.unlink()
