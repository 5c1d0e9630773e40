"""Keeps private files of jobs in the spool; no name from a client reaches the disk.

A file with a row in the database is whole and, unless it is an unanswered latent, on the disk. It is never written
again: a new file has a new name. Files without a row are swept at start.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from io import BufferedReader
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from ddib_fed.errors import DiskFull, ItemNotFound
from ddib_fed.files import RETRY_AFTER_S, check_private_folder, is_disk_full, sync_folder
from ddib_fed.store import Transaction, sync_files
from ddib_fed.v1 import common_pb2

T = TypeVar("T")


class SpoolPart(StrEnum):
    """Kinds of an item's files; ENCODED has one for each range, and a client fetches the last four."""

    INPUT = "input"
    ENCODED = "encoded"
    TRANSLATION = "translation"
    RETURNED = "returned"
    LATENT = "latent"
    SOURCE = "source"


class SpoolFile(NamedTuple):
    """A row of `parts`: a file in the spool, with its size and digest."""

    part: SpoolPart
    range: int
    file: str
    media_type: int
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to store, in place of an earlier one of its part and range."""

    part: SpoolPart
    data: bytes
    media_type: int = common_pb2.MEDIA_TYPE_NPY
    range: int = 0
    sha256: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", hashlib.sha256(self.data).digest())


_JOB = re.compile(r"[0-9a-f]{32}\Z")
_FILE = re.compile(r"[0-9]{1,9}\.[a-z_]{1,32}-[0-9a-f]{16}\Z")


class Spool:
    """Files of mode 0600 in a folder of mode 0700 for each job; safe to use from any thread."""

    def __init__(self, folder: Path) -> None:
        check_private_folder(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = str(folder)
        self._lock = threading.Lock()
        self.used_bytes = sum(os.stat(path).st_size for job in _names(self._folder) for path in _names(job))

    def new_job(self) -> str:
        """Create the folder of a new job; return its unguessable id."""
        job_id = secrets.token_hex(16)
        os.mkdir(self._job(job_id), mode=0o700)
        return job_id

    def new_file(self, job_id: str, item: int, part: str) -> GrowingFile:
        """Open a new file, to be written while its bytes arrive; `sync` makes it durable."""
        name = f"{item:d}.{part}-{secrets.token_hex(8)}"
        return GrowingFile(name, self._path(job_id, name), self._count)

    def sync(self, job_id: str, files: Iterable[str]) -> None:
        """Bring files of a new job, and their names, to the disk."""
        with _naming_a_full_disk():
            sync_files([self._path(job_id, file) for file in files])
            sync_folder(self._folder)

    def put(self, transaction: Transaction, job_id: str, item: int, new: NewFile) -> SpoolFile:
        """Write a new file and return its row; the transaction makes it durable, unless it is a latent."""
        file = self.new_file(job_id, item, new.part)
        transaction.undo.append(lambda: self.remove(job_id, [file.name]))
        with closing(file):
            file.write(new.data)
        if new.part != SpoolPart.ENCODED:
            transaction.written.append(self._path(job_id, file.name))
        return SpoolFile(new.part, new.range, file.name, new.media_type, file.size_bytes, new.sha256)

    def open(self, job_id: str, file: str) -> BufferedReader:
        try:
            return open(self._path(job_id, file), "rb")
        except FileNotFoundError as error:
            item = file.partition(".")[0]
            raise ItemNotFound(
                f"item {item} of job {job_id} has no file {file}", facts={"item": item}
            ) from error

    def read(self, job_id: str, file: str) -> bytes:
        with self.open(job_id, file) as opened:
            return opened.read()

    def remove(self, job_id: str, files: Iterable[str]) -> None:
        for file in files:
            self._unlink(self._path(job_id, file))

    def remove_job(self, job_id: str) -> None:
        self._remove_folder(self._job(job_id))

    def sweep(self, known: Collection[tuple[str, str]]) -> int:
        """Remove every file but these (job, file); return how many were removed. Call it only at start."""
        keep = {self._path(*key) for key in known}
        jobs = {os.path.dirname(path) for path in keep}
        removed = 0
        for folder in _names(self._folder):
            is_folder = os.path.isdir(folder)
            orphans = [path for path in _names(folder) if path not in keep] if is_folder else [folder]
            removed += len(orphans)
            for path in orphans:
                self._unlink(path)
            if is_folder and folder not in jobs:
                self._remove_folder(folder)
        return removed

    def _job(self, job_id: str) -> str:
        return os.path.join(self._folder, _checked(_JOB, job_id))

    def _path(self, job_id: str, file: str) -> str:
        return os.path.join(self._job(job_id), _checked(_FILE, file))

    def _unlink(self, path: str) -> None:
        with suppress(FileNotFoundError):
            size = os.stat(path).st_size
            os.unlink(path)
            self._count(-size)

    def _remove_folder(self, folder: str) -> None:
        for path in _names(folder):
            self._unlink(path)
        shutil.rmtree(folder, ignore_errors=True)

    def _count(self, size: int) -> None:
        with self._lock:
            self.used_bytes += size


class GrowingFile:
    """A new file of mode 0600; what is written counts in the spool at once."""

    def __init__(self, name: str, path: str, count: Callable[[int], None]) -> None:
        self.name = name
        self.size_bytes = 0
        self._count = count
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with _naming_a_full_disk():
            self._file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)

    def write(self, data: bytes | memoryview, /) -> None:
        left = memoryview(data)
        with _naming_a_full_disk():
            while left:
                written = self._file.write(left) or 0
                self.size_bytes += written
                self._count(written)
                left = left[written:]

    def close(self) -> None:
        self._file.close()


@contextmanager
def _naming_a_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull("the disk of the spool is full", retry_after_s=RETRY_AFTER_S) from error
        raise


def _names(folder: str) -> Sequence[str]:
    return [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []


def _checked(pattern: re.Pattern[str], name: str) -> str:
    if not pattern.match(name):
        raise ValueError(f"{name!r} is no name in the spool")
    return name


RESERVE_BYTES: Final = 1 << 20
RESERVE_NAME: Final = ".reserve"


class Reserve:
    """A file of zeros in the state folder, removed so that a full disk can be cleared."""

    def __init__(self, state: Path) -> None:
        self._path = state / RESERVE_NAME

    def keep(self) -> None:
        """Recreate the reserve; on a disk with too little space, with half of it."""
        if self._size() >= RESERVE_BYTES:
            return
        with suppress(OSError):
            try:
                with open(self._path, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                    file.write(bytes(RESERVE_BYTES))
            except OSError:
                os.truncate(self._path, self._size() // 2)
                raise

    def making_room(self, act: Callable[[], T]) -> T:
        """Return the result of `act`; on a full disk, remove the reserve and call it again."""
        try:
            return act()
        except (DiskFull, OSError) as error:
            if not (isinstance(error, DiskFull) or is_disk_full(error)) or not self._size():
                raise
            self._path.unlink(missing_ok=True)
            return act()
        finally:
            self.keep()

    def _size(self) -> int:
        with suppress(OSError):
            return self._path.stat().st_size
        return 0
