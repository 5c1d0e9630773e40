"""Room on a full disk for what makes room: a file that is given up for the books of a delivery or a deletion.

What a client has the node remove is written down first. Without a reserve, a disk that results have filled could not be
emptied by removing them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from ddib_fed.errors import DiskFull
from ddib_fed.files import is_disk_full

RESERVE_BYTES: Final = 1 << 20
"""Lines of the audit log, and pages of the job database, for some hundreds of items."""
NAME: Final = ".reserve"

_Answer = TypeVar("_Answer")


class Reserve:
    """A file of zeros in the state folder, private; backups leave it out."""

    def __init__(self, state: Path) -> None:
        self._path = state / NAME

    def keep(self) -> None:
        """Have it again; half of the room that there is, where there is too little."""
        if self._size() >= RESERVE_BYTES:
            return
        with suppress(OSError):
            try:
                self._write()
            except OSError:
                os.truncate(self._path, self._size() // 2)
                raise

    def making_room(self, act: Callable[[], _Answer]) -> _Answer:
        """What `act` returns; if it meets a full disk, it is called once more without the reserve."""
        try:
            return act()
        except (DiskFull, OSError) as error:
            if not (isinstance(error, DiskFull) or is_disk_full(error)) or not self._give():
                raise
            return act()
        finally:
            self.keep()

    def _size(self) -> int:
        with suppress(OSError):
            return self._path.stat().st_size
        return 0

    def _write(self) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(bytes(RESERVE_BYTES))
            while left:
                left = left[os.write(file, left) :]
        finally:
            os.close(file)

    def _give(self) -> bool:
        size = self._size()
        with suppress(OSError):
            self._path.unlink()
        return size > 0
