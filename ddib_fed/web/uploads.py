"""The files that were dropped: kept in a private folder, and read at once as `ddib translate` reads them later.

What cannot be sent is refused by name.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddib_fed import Run
from ddib_fed.errors import DdibError, DiskFull, InputError, ItemNotFound, UsageError
from ddib_fed.files import is_disk_full, make_private_folders
from ddib_fed.terminal import escape
from ddib_fed.web.guard import hinted_in_words

MOST_BYTES: Final = 1 << 30  # of a file: as many as a client sends as one item
MAX_FILES: Final = 20_000
MAX_NAME: Final = 400
MAX_PART: Final = 200
"""Bytes of a file's name: a file system takes 255, with what results and temporary files have besides."""
DROPPED: Final = "dicom"
"""Name of the folder with the files of a translation; after it are called the results of DICOM files."""
_ONE_AT_A_TIME: Final = threading.Lock()
"""A volume or a map takes a few times its size while it is read, and files are dropped several at once."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was dropped; plain ones go to the node as they are."""

    number: int
    label: str  # its path in what was dropped, which leads nowhere else
    path: Path
    size_bytes: int
    is_plain: bool = True
    warnings: tuple[str, ...] = ()


class Uploads:
    """The files, by number; for several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[int, Upload] = {}
        self._next = 0
        self._lock = threading.Lock()

    async def add(self, label: str, chunks: AsyncIterator[bytes]) -> Upload:
        label = safe_label(label)
        if not label:
            raise UsageError("a file without a name was dropped")
        with self._lock:
            if len(self._files) >= MAX_FILES:
                raise UsageError(f"{MAX_FILES} files are here already", hint="translate these first")
            number = self._next
            self._next += 1
        folder = self.folder / f"{number:05}"
        path = folder / label
        try:
            size = await _write(path, chunks)
            is_plain, warnings = await asyncio.to_thread(_looked_at, path, label)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, DdibError):
                renamed(error, folder)
            raise
        upload = Upload(number, label, path, size, is_plain, warnings)
        with self._lock:
            self._files[number] = upload
        return upload

    def list(self) -> tuple[Upload, ...]:
        with self._lock:
            return tuple(sorted(self._files.values(), key=lambda each: each.label.casefold()))

    def remove(self, number: int) -> None:
        with self._lock:
            file = self._files.pop(number, None)
        if file is None:
            raise ItemNotFound(f"there is no file {number}", hint="load the page again")
        shutil.rmtree(self.folder / f"{number:05}", ignore_errors=True)

    def clear(self) -> None:
        for each in self.list():
            self.remove(each.number)

    def take(self) -> tuple[Upload, ...]:
        """Hand over all files, and forget them."""
        with self._lock:
            taken, self._files = tuple(self._files.values()), {}
        return taken

    def put_back(self, files: Sequence[Upload]) -> None:
        with self._lock:
            self._files.update({each.number: each for each in files})


def safe_label(name: str) -> str:
    """Return the browser's path without parts that leave a folder, hide a file or do not print."""
    parts = (part.strip().lstrip(". ") for part in escape(name.strip())[:MAX_NAME].split("/"))
    return "/".join(_shortened(part.encode()) for part in parts if part)


def _shortened(name: bytes) -> str:
    """Cut the middle of a name that is too long for the files of results."""
    return (name if len(name) <= MAX_PART else name[: MAX_PART - 40] + name[-40:]).decode(errors="ignore")


def renamed(error: DdibError, folder: Path) -> DdibError:
    """Put the names that the person knows into an error, in place of paths in a private folder."""
    for private in (f"{folder}: {DROPPED}/", f"{folder}/"):
        error.detail = error.detail.replace(private, "")
    error.detail = error.detail.replace(str(folder), "the DICOM files")
    error.hint = error.hint.replace(f"{folder}/", "")
    return error


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> int:
    size = 0
    try:
        make_private_folders(path.parent)
        with path.open("xb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > MOST_BYTES:
                    raise InputError(f"{path} is larger than {MOST_BYTES} bytes", hop="client")
                file.write(chunk)
    except OSError as error:
        kind = DiskFull if is_disk_full(error) else InputError
        raise kind(
            f"{path} cannot be kept: {error.strerror}", hop="client", hint="make room in /tmp"
        ) from error
    return size


def _looked_at(path: Path, label: str) -> tuple[bool, tuple[str, ...]]:
    with _ONE_AT_A_TIME, hinted_in_words():
        return Run.look(path, label)


def arranged(files: Sequence[Upload], folder: Path) -> Path:
    """Arrange the files in a folder as they were dropped; numbers tell files of one name apart."""
    dropped = folder / DROPPED
    # The deepest first: a file that is called like a folder gets a number.
    for each in sorted(files, key=lambda each: -each.label.count("/")):
        path = dropped / each.label
        numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
        at = next(place for place in itertools.chain([path], numbered) if not place.exists())
        make_private_folders(at.parent)
        try:
            os.link(each.path, at)
        except OSError:
            shutil.copyfile(each.path, at)
    return dropped
