"""The SQLite database of a source node: private, in WAL mode, with this release's schema.

A transaction that has ended without an exception is on the disk; one process at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddib_fed.errors import ConfigError, DdibError, DiskFull
from ddib_fed.files import RETRY_AFTER_S, check_private_file

_DISK_ERRORS = {
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
}
SCHEMA = 7
"""Counts the changes of `_TABLES`; a database of another number is refused."""
_TABLES = (
    """CREATE TABLE node_state (
        key TEXT PRIMARY KEY,
        value REAL NOT NULL
    )""",
    """CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        request_id TEXT NOT NULL,
        content BLOB NOT NULL,
        request BLOB NOT NULL,
        target TEXT NOT NULL,
        state TEXT NOT NULL,
        created REAL NOT NULL,
        started REAL NOT NULL DEFAULT 0,
        finished REAL NOT NULL DEFAULT 0,
        deadline REAL NOT NULL,
        expires REAL NOT NULL,
        not_before REAL NOT NULL DEFAULT 0,
        cancel_requested INTEGER NOT NULL DEFAULT 0,
        error BLOB,
        UNIQUE (owner, request_id)
    )""",
    "CREATE INDEX jobs_by_state ON jobs (state, number)",
    """CREATE TABLE items (
        job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
        item INTEGER NOT NULL,
        state TEXT NOT NULL,
        media_type INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        sha256 BLOB NOT NULL,
        provenance TEXT NOT NULL DEFAULT '{}',
        error BLOB,
        PRIMARY KEY (job_id, item)
    ) WITHOUT ROWID""",
    """CREATE TABLE parts (
        job_id TEXT NOT NULL,
        item INTEGER NOT NULL,
        part TEXT NOT NULL,
        file TEXT NOT NULL,
        media_type INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        sha256 BLOB NOT NULL,
        PRIMARY KEY (job_id, item, part),
        FOREIGN KEY (job_id, item) REFERENCES items (job_id, item) ON DELETE CASCADE
    ) WITHOUT ROWID""",
)


def rehearse(path: Path) -> int:
    """Open a copy of the database as a start would, so that nothing here is changed."""
    lock = path.with_name(path.name + ".lock")
    for file in (path, lock):
        check_private_file(file)
    try:
        guard = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        guard = -1
    try:
        if guard >= 0:
            _take(guard, path, fcntl.LOCK_SH)  # beside another check, and for a moment only
        with tempfile.TemporaryDirectory(prefix="ddib-check-") as folder:
            for suffix in ("", "-wal"):
                if path.with_name(path.name + suffix).exists():
                    shutil.copyfile(path.with_name(path.name + suffix), Path(folder) / (path.name + suffix))
            copy = JobDatabase(Path(folder) / path.name, called=path)
            try:
                return int(copy.read("SELECT count(*) FROM jobs")[0][0])
            finally:
                copy.close()
    finally:
        if guard >= 0:
            os.close(guard)


class JobDatabase:
    """One connection, one lock: writers wait for one another, and nobody sees half a transaction."""

    def __init__(self, path: Path, *, called: Path | None = None) -> None:
        check_private_file(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._called = called or path
        self._lock = threading.RLock()
        self._inside = False
        self._guard = _lock_file(path)
        try:
            self._connection = self._connect()
        except BaseException:
            os.close(self._guard)
            raise

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        try:
            for pragma in (
                "journal_mode = WAL",
                "synchronous = FULL",
                "foreign_keys = ON",
                "busy_timeout = 5000",
            ):
                connection.execute(f"PRAGMA {pragma}")
            self._check(connection)
            self._require_schema(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise self._unusable(error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if answer != "ok":
            raise self._damaged(answer)

    def _unusable(self, error: sqlite3.DatabaseError) -> DdibError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return DiskFull(
                f"the disk of the job database {self._called} is full", hint=f"df -h {self._called.parent}"
            )
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return ConfigError(
                f"another program holds the job database {self._called}", hint=f"fuser -v {self._called}"
            )
        return self._damaged(str(error))

    def _damaged(self, detail: str) -> ConfigError:
        return ConfigError(
            f"the job database {self._called} cannot be used: {detail}",
            hint="restore it from a backup, or move it away: its jobs are then lost",
        )

    def _require_schema(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in {0, SCHEMA}:
            raise ConfigError(
                f"{self._called} has schema {version}, of another release; this one knows {SCHEMA}",
                hint="use that release, or set another [node] state folder",
            )
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            for statement in (*_TABLES, f"PRAGMA user_version = {SCHEMA}"):
                connection.execute(statement)
            connection.execute("COMMIT")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside happens, durably, or nothing does."""
        with self._lock, _failing_disk_as_os_error():
            if self._inside:
                raise RuntimeError("a transaction was begun inside a transaction")
            self._roll_back()  # what a failed rollback left
            self._connection.execute("BEGIN IMMEDIATE")
            self._inside = True
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the first error counts
                    self._roll_back()
                raise
            finally:
                self._inside = False

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock, _failing_disk_as_os_error():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        with self._lock:
            yield

    @property
    def closed(self) -> bool:
        return self._guard < 0

    def close(self) -> None:
        """Close; what was committed stays."""
        with self._lock:
            self._connection.close()
            if self._guard >= 0:
                os.close(self._guard)
                self._guard = -1


@contextmanager
def _failing_disk_as_os_error() -> Iterator[None]:
    """A failing disk is an OSError, which passes; other errors of SQLite are bugs, which end a job."""
    try:
        yield
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise DiskFull("the disk of the job database is full", retry_after_s=RETRY_AFTER_S) from error
        if code in _DISK_ERRORS:
            raise OSError(_DISK_ERRORS[code], "the disk of the job database failed") from error
        raise


def _lock_file(path: Path) -> int:
    """A lock that goes when the process goes, however it goes."""
    name = path.with_name(path.name + ".lock")
    check_private_file(name)
    descriptor = os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        _take(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _take(descriptor: int, path: Path, kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"another node is running on {path.parent}",
            hint="ddib status, or give this node a state folder of its own",
        ) from error
