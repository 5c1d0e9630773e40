"""The spool: private files of jobs; no name from a client reaches the disk.

A file that a row of the database names is whole and on the disk, and is never written again: what takes its place has
another name. What no row names is swept at start.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final, TypeVar

from ddib_fed.errors import DiskFull, ItemNotFound
from ddib_fed.files import RETRY_AFTER_S, check_private_folder, is_disk_full, sync_each, sync_folder

_JOB = re.compile(r"[0-9a-f]{32}\Z")
_FILE = re.compile(r"[0-9]{1,9}\.[a-z_]{1,32}(\.[0-9]{1,6})?(-[0-9a-f]{16})?\Z")


class Spool:
    """Files of mode 0600 in folders of mode 0700."""

    def __init__(self, folder: Path) -> None:
        check_private_folder(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = str(folder)
        self._lock = threading.Lock()
        self._used_bytes = sum(os.stat(path).st_size for job in _names(self._folder) for path in _names(job))

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def new_job_id(self) -> str:
        """An id that nobody can guess, and a folder of its own for what is being received."""
        job_id = secrets.token_hex(16)
        os.mkdir(self._staging(job_id), mode=0o700)
        return job_id

    def stage(self, job_id: str, file: str) -> StagedFile:
        with _naming_a_full_disk():
            return StagedFile(os.path.join(self._staging(job_id), _checked(_FILE, file)), self._count)

    def read_staged(self, job_id: str, file: str) -> bytes:
        return _read(os.path.join(self._staging(job_id), _checked(_FILE, file)))

    def adopt(self, job_id: str, durable: Collection[str]) -> None:
        """All that was staged becomes the job's, at once."""
        staging = self._staging(job_id)
        with _naming_a_full_disk():
            for error in sync_each([os.path.join(staging, name) for name in durable]).values():
                raise error
        sync_folder(staging)
        os.rename(staging, self._job(job_id))
        sync_folder(self._folder)

    def abandon(self, job_id: str) -> None:
        self._remove_tree(self._staging(job_id))

    def put_together(self, files: Sequence[ToWrite]) -> Mapping[int, Exception]:
        """Write new files."""
        failed: dict[int, Exception] = {}
        written: dict[int, str] = {}
        folders: dict[str, list[int]] = {}
        for number, file in enumerate(files):
            path = self._path(file.job_id, file.name)
            with _noting(number, failed):
                write_new(path, file.data)
                self._count(len(file.data))
                written[number] = path
                folders.setdefault(os.path.dirname(path), []).append(number)
        unsynced = sync_each(list(written.values()))
        for place, number in enumerate(written):
            with _noting(number, failed):
                if place in unsynced:
                    raise unsynced[place]
        for folder, numbers in folders.items():
            try:
                with _naming_a_full_disk():
                    sync_folder(folder)
            except (OSError, DiskFull) as error:
                failed |= {number: error for number in numbers if number not in failed}
        for number in failed.keys() & written.keys():
            self._unlink(written[number])
        return failed

    def get(self, job_id: str, file: str) -> bytes:
        with self.open(job_id, file) as opened:
            return opened.read()

    def open(self, job_id: str, file: str) -> BufferedReader:
        """A file, for reading."""
        try:
            return open(self._path(job_id, file), "rb")
        except FileNotFoundError as error:
            item = file.partition(".")[0]
            raise ItemNotFound(
                f"item {item} of job {job_id} has no file {file}", facts={"item": item}
            ) from error

    def remove(self, job_id: str, files: Iterable[str]) -> None:
        for file in files:
            self._unlink(self._path(job_id, file))

    def remove_job(self, job_id: str) -> None:
        self._remove_tree(self._job(job_id))

    def sweep(self, known: Collection[tuple[str, str]]) -> int:
        """Remove every file that is not among these (job, file); how many there were. Only at start."""
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
                self._remove_tree(folder)
        return removed

    def _staging(self, job_id: str) -> str:
        return os.path.join(self._folder, "." + _checked(_JOB, job_id))

    def _job(self, job_id: str) -> str:
        return os.path.join(self._folder, _checked(_JOB, job_id))

    def _path(self, job_id: str, file: str) -> str:
        return os.path.join(self._job(job_id), _checked(_FILE, file))

    def _unlink(self, path: str) -> None:
        try:
            size = os.stat(path).st_size
            os.unlink(path)
        except FileNotFoundError:
            return
        self._count(-size)

    def _remove_tree(self, folder: str) -> None:
        if not os.path.exists(folder):
            return
        for path in _names(folder):
            self._unlink(path)
        shutil.rmtree(folder, ignore_errors=True)

    def _count(self, size: int) -> None:
        with self._lock:
            self._used_bytes += size


@dataclass(frozen=True, slots=True)
class ToWrite:
    """A file for `Spool.put_together`."""

    job_id: str
    name: str
    data: bytes


class StagedFile:
    """A file of mode 0600 that grows; what is written counts in the spool at once."""

    def __init__(self, path: str, count: Callable[[int], None]) -> None:
        self.size_bytes = 0
        self._count = count
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)

    def write(self, data: bytes | memoryview, /) -> None:
        """Append."""
        left = memoryview(data)
        with _naming_a_full_disk():
            while left:
                left = left[self._file.write(left) or 0 :]
        self.size_bytes += len(data)
        self._count(len(data))

    def close(self) -> None:
        self._file.close()


class _naming_a_full_disk:  # noqa: N801 - reads as the statement it is
    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and is_disk_full(error):
            raise DiskFull("the disk of the spool is full", retry_after_s=RETRY_AFTER_S) from error


@contextmanager
def _noting(number: int, failed: dict[int, Exception]) -> Iterator[None]:
    try:
        with _naming_a_full_disk():
            yield
    except (OSError, DiskFull) as error:
        failed[number] = error


def write_new(path: str, data: bytes) -> None:
    """Write a private file that is not there yet; the caller syncs it. Nothing is left of one that fails."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    opened = os.open(path, flags, 0o600)
    try:
        with os.fdopen(opened, "wb", buffering=0) as file:
            left = memoryview(data)
            while left:
                left = left[file.write(left) or 0 :]
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(path)
        raise


def _names(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []


def new_name(item: int, part: str) -> str:
    return f"{item:d}.{part}-{secrets.token_hex(8)}"


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _checked(pattern: re.Pattern[str], name: str) -> str:
    if not pattern.match(name):
        raise ValueError(f"{name!r} is no name in the spool")
    return name


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
