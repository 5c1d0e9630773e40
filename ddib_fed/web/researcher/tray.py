"""The files that were dropped and not sent yet, in a private folder; what cannot be sent is refused by name."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddib_fed.client.payload import MAX_ITEM_BYTES
from ddib_fed.errors import DdibError, DiskFull, InputError, ItemNotFound, UsageError
from ddib_fed.files import is_disk_full
from ddib_fed.terminal import escape
from ddib_fed.web.researcher.recognising import Kind, Recognised, recognise

MAX_FILES: Final = 20_000
MAX_NAME: Final = 400
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ ()+=@,-]+")
_DIGITS: Final = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Dropped:
    """One file."""

    number: int
    label: str
    path: Path
    size_bytes: int
    kind: Kind = Kind.PLAIN
    warnings: tuple[str, ...] = ()


class Tray:
    """The files, by number; for several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[int, Dropped] = {}
        self._next = 0
        self._lock = threading.Lock()

    async def add(self, label: str, chunks: AsyncIterator[bytes]) -> Dropped:
        """Keep a file, once it is known that it can be sent."""
        shown = escape(label.strip())[:MAX_NAME]
        leaf = safe_name(shown.rpartition("/")[2])
        if not leaf:
            raise UsageError("a file without a name was dropped")
        with self._lock:
            if len(self._files) >= MAX_FILES:
                raise UsageError(f"{MAX_FILES} files are here already", hint="translate these first")
            number = self._next
            self._next += 1
        path = self.folder / f"{number:05}" / leaf
        try:
            size = await _write(path, chunks)
            found = await asyncio.to_thread(_recognised, path, shown)
        except DdibError as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise renamed(error, {str(path): shown}) from error
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        dropped = Dropped(number, shown, path, size, found.kind, found.warnings)
        with self._lock:
            self._files[number] = dropped
        return dropped

    def list(self) -> tuple[Dropped, ...]:
        with self._lock:
            return tuple(sorted(self._files.values(), key=lambda each: natural(each.label)))

    def remove(self, number: int) -> None:
        """Remove a file."""
        with self._lock:
            found = self._files.pop(number, None)
        if found is None:
            raise ItemNotFound(f"there is no file {number}", hint="load the page again")
        shutil.rmtree(found.path.parent, ignore_errors=True)

    def clear(self) -> None:
        for each in self.list():
            self.remove(each.number)

    def take(self) -> tuple[Dropped, ...]:
        """All files, which are the caller's from now on."""
        taken = self.list()
        with self._lock:
            for each in taken:
                self._files.pop(each.number, None)
        return taken

    def put_back(self, files: Sequence[Dropped]) -> None:
        with self._lock:
            self._files.update({each.number: each for each in files})


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A key by which names are sorted with the numbers in them as numbers."""
    return tuple(
        (0, int(part)) if part.isdecimal() else (1, part.casefold()) for part in _DIGITS.split(name) if part
    )


def safe_name(name: str) -> str:
    return _UNSAFE.sub("_", name).lstrip(". ")[-120:]


def renamed(error: DdibError, labels: dict[str, str]) -> DdibError:
    """The error with the names that the person knows instead of paths in the private folder."""
    for path, label in sorted(labels.items(), key=lambda named: -len(named[0])):
        error.detail = error.detail.replace(path, label)
        error.hint = error.hint.replace(path, label)
    error.args = (error.detail,)
    return error


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> int:
    """Write the bytes as they come; their number."""
    path.parent.mkdir(mode=0o700)
    size = 0
    try:
        with path.open("xb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > MAX_ITEM_BYTES:
                    raise InputError(
                        f"{path} is too large: {MAX_ITEM_BYTES} bytes are the limit", hop="client"
                    )
                file.write(chunk)
    except OSError as error:
        kind = DiskFull if is_disk_full(error) else InputError
        raise kind(
            f"{path} cannot be kept: {error.strerror}", hop="client", hint="make room in /tmp"
        ) from error
    return size


def _recognised(path: Path, label: str) -> Recognised:
    return recognise(path, Path(label.partition("/")[0]))
