"""The spool: one private file for each (job, item, part); no name from a client reaches the disk.

A file under its final name is whole and on the disk; what no row of the database names is swept at
start.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ddib_fed.errors import ItemNotFound, QueueFull
from ddib_fed.files import check_private_folder, sync_each, sync_folder, write_aside

_JOB = re.compile(r"[0-9a-f]{32}\Z")
_PART = re.compile(r"[a-z_]{1,32}(\.[0-9]{1,6})?\Z")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# How often a full disk is worth looking at again.
RETRY_AFTER_S = 60.0


class Spool:
    """Files of mode 0600 in folders of mode 0700.

    Args:
        folder: Where; made when it is not there.

    Raises:
        ConfigError: It is no folder, or not this user's alone.
    """

    def __init__(self, folder: Path) -> None:
        check_private_folder(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = folder
        self._lock = threading.Lock()
        self._used_bytes = sum(path.stat().st_size for path in folder.glob("*/*"))

    @property
    def used_bytes(self) -> int:
        """Bytes in all files."""
        return self._used_bytes

    def new_job_id(self) -> str:
        """An id that nobody can guess, and a folder of its own for what is being received."""
        job_id = secrets.token_hex(16)
        self._staging(job_id).mkdir(mode=0o700)
        return job_id

    def stage(self, job_id: str, item: int, part: str) -> StagedFile:
        """A new file of a job that is being received, to be written as its bytes come; not the job's until `adopt`.

        Raises:
            QueueFull: The disk is full.
        """
        with _disk_full_as_queue_full():
            return StagedFile(self._staging(job_id) / f"{item}.{_checked(_PART, part)}", self._count)

    def read_staged(self, job_id: str, item: int, part: str) -> bytes:
        """What a staged file holds."""
        return (self._staging(job_id) / f"{item:d}.{_checked(_PART, part)}").read_bytes()

    def adopt(self, job_id: str, durable: Collection[str]) -> None:
        """All that was staged becomes the job's, at once.

        Args:
            job_id: Which job.
            durable: Parts that are on the disk when this returns; others can be made again.

        Raises:
            QueueFull: The disk is full.
        """
        staging = self._staging(job_id)
        with _disk_full_as_queue_full():
            paths = [path for path in staging.iterdir() if path.name.partition(".")[2] in durable]
            for error in sync_each(paths).values():
                raise error
        sync_folder(staging)
        staging.rename(self._job(job_id))
        sync_folder(self._folder)

    def abandon(self, job_id: str) -> None:
        """Remove what was staged."""
        self._remove_tree(self._staging(job_id))

    def put_together(self, files: Sequence[ToWrite]) -> Mapping[int, Exception]:
        """Write, or replace, files; of each either the old or the new one is there whatever happens.

        Returns:
            Why files could not be written, by their place in `files`: QueueFull for a full disk. All others are on the
            disk.
        """
        failed: dict[int, Exception] = {}
        temporary: dict[int, Path] = {}
        folders: dict[Path, list[int]] = {}
        for number, file in enumerate(files):
            path = self._path(file.job_id, file.item, file.part)
            folders.setdefault(path.parent, []).append(number)
            with _noting(number, failed):
                temporary[number] = write_aside(path, file.data)
        unsynced = sync_each(list(temporary.values()))
        for place, (number, aside) in enumerate(temporary.items()):
            with _noting(number, failed):
                if place in unsynced:
                    raise unsynced[place]
                self._place(aside, files[number])
        for folder, numbers in folders.items():
            try:
                with _disk_full_as_queue_full():
                    sync_folder(folder)
            except (OSError, QueueFull) as error:
                failed |= {number: error for number in numbers if number not in failed}
        for number in failed.keys() & temporary.keys():
            temporary[number].unlink(missing_ok=True)
        return failed

    def _place(self, aside: Path, file: ToWrite) -> None:
        path = self._path(file.job_id, file.item, file.part)
        before = path.stat().st_size if path.exists() else 0
        aside.replace(path)
        self._count(len(file.data) - before)

    def get(self, job_id: str, item: int, part: str) -> bytes:
        """What a file holds.

        Raises:
            ItemNotFound: There is none.
        """
        try:
            return self._path(job_id, item, part).read_bytes()
        except FileNotFoundError as error:
            raise ItemNotFound(f"item {item} of job {job_id} has no {part}", facts={"item": item}) from error

    def open(self, job_id: str, item: int, part: str) -> BufferedReader:
        """A file, for reading.

        Raises:
            ItemNotFound: There is none.
        """
        try:
            return self._path(job_id, item, part).open("rb")
        except FileNotFoundError as error:
            raise ItemNotFound(f"item {item} of job {job_id} has no {part}", facts={"item": item}) from error

    def has(self, job_id: str, item: int, part: str) -> bool:
        """Whether there is such a file."""
        return self._path(job_id, item, part).exists()

    def remove(self, job_id: str, item: int, parts: Iterable[str]) -> None:
        """Remove files of an item, those that are there."""
        for part in parts:
            self._unlink(self._path(job_id, item, part))

    def remove_job(self, job_id: str) -> None:
        """Remove everything of a job."""
        self._remove_tree(self._job(job_id))

    def sweep(self, known: Collection[tuple[str, int, str]]) -> int:
        """Remove every file that is not among these (job, item, part); how many there were. Only at start."""
        keep = {self._path(*key) for key in known}
        jobs = {path.parent for path in keep}
        removed = 0
        for folder in list(self._folder.iterdir()):
            orphans = [path for path in folder.iterdir() if path not in keep] if folder.is_dir() else [folder]
            removed += len(orphans)
            for path in orphans:
                self._unlink(path)
            if folder.is_dir() and folder not in jobs:
                self._remove_tree(folder)
        return removed

    def _staging(self, job_id: str) -> Path:
        return self._folder / f".{_checked(_JOB, job_id)}"

    def _job(self, job_id: str) -> Path:
        return self._folder / _checked(_JOB, job_id)

    def _path(self, job_id: str, item: int, part: str) -> Path:
        return self._job(job_id) / f"{item:d}.{_checked(_PART, part)}"

    def _unlink(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return
        self._count(-size)

    def _remove_tree(self, folder: Path) -> None:
        if not folder.exists():
            return
        for path in folder.iterdir():
            self._unlink(path)
        shutil.rmtree(folder, ignore_errors=True)

    def _count(self, size: int) -> None:
        with self._lock:
            self._used_bytes += size


@dataclass(frozen=True, slots=True)
class ToWrite:
    """A file for `Spool.put_together`."""

    job_id: str
    item: int
    part: str
    data: bytes


class StagedFile:
    """A file of mode 0600 that grows; what is written counts in the spool at once."""

    def __init__(self, path: Path, count: Callable[[int], None]) -> None:
        self.path = path
        self.size_bytes = 0
        self._count = count
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)

    def write(self, data: bytes | memoryview, /) -> None:
        """Append.

        Raises:
            QueueFull: The disk is full.
        """
        left = memoryview(data)
        with _disk_full_as_queue_full():
            while left:
                left = left[self._file.write(left) or 0 :]
        self.size_bytes += len(data)
        self._count(len(data))

    def close(self) -> None:
        """Let go of it: it is on the disk after `Spool.adopt`; whoever staged it removes it otherwise."""
        self._file.close()


class _disk_full_as_queue_full:  # noqa: N801 - reads as the statement it is
    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise QueueFull("the disk of the spool is full", retry_after_s=RETRY_AFTER_S) from error


@contextmanager
def _noting(number: int, failed: dict[int, Exception]) -> Iterator[None]:
    """A file that cannot be written leaves the others as they are."""
    try:
        with _disk_full_as_queue_full():
            yield
    except (OSError, QueueFull) as error:
        failed[number] = error


def _checked(pattern: re.Pattern[str], name: str) -> str:
    """What may become part of a path: only names that the node made itself."""
    if not pattern.match(name):
        raise ValueError(f"{name!r} is no name in the spool")
    return name
