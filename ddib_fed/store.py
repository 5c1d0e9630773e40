"""The node's one SQLite database: jobs, items, quotas and the audit log, private, in WAL mode, with `synchronous=FULL`.

A write is a function of a `Transaction`. One thread takes the writes that were queued, runs each in a savepoint of one
transaction, syncs the files that they want on the disk, commits once, and only then resolves their futures: what a
resolved future says is on the disk, and what failed has left nothing.
"""

import errno
import fcntl
import os
import shutil
import sqlite3
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from ddib_fed.errors import ConfigError, DdibError, DiskFull, Draining
from ddib_fed.files import RETRY_AFTER_S, check_private_file, is_disk_full, sync_each, sync_folder

T = TypeVar("T")
Rows = Sequence[sqlite3.Row]
Read = Callable[..., Rows]

SCHEMA: Final = 9  # a database of another number is refused: this one counts the changes of `_TABLES`
MOST_WRITES: Final = 256
MOST_BYTES: Final = 32 << 20
"""A transaction with its files is bounded, so that no write waits long, or with much memory."""
TOGETHER: Final = 32
PATIENCE_S: Final = 0.05  # patient writes are committed together, as a commit costs as much as some of them
BUSY_MS: Final = 10_000
"""A command that writes to the audit log waits at most so long for the node's transaction, and the node for it."""
_DISK_ERRORS: Final = {
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
    sqlite3.SQLITE_CORRUPT: errno.EIO,
    sqlite3.SQLITE_NOTADB: errno.EIO,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}
_TABLES: Final = (
    "CREATE TABLE audit (number INTEGER PRIMARY KEY, line TEXT NOT NULL) STRICT",
    "CREATE TABLE node_state (key TEXT PRIMARY KEY, value REAL NOT NULL)",
    """CREATE TABLE quotas (
        quota TEXT NOT NULL, who TEXT NOT NULL, since REAL NOT NULL, spent INTEGER NOT NULL, PRIMARY KEY (quota, who)
    ) STRICT""",
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
        range INTEGER NOT NULL,
        file TEXT NOT NULL,
        media_type INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        sha256 BLOB NOT NULL,
        PRIMARY KEY (job_id, item, part, range),
        FOREIGN KEY (job_id, item) REFERENCES items (job_id, item) ON DELETE CASCADE
    ) WITHOUT ROWID""",
)


class Transaction:
    """What one write does; used on the store's thread, inside the function that was given to `NodeStore.write`."""

    def __init__(self, db: sqlite3.Connection, shared: set[str]) -> None:
        self.shared = shared
        self.execute = db.execute
        self.executemany = db.executemany
        self.written: list[str] = []
        self.afterwards: list[Callable[[], object]] = []
        """Called once the transaction is on the disk, before the future is resolved."""
        self.undo: list[Callable[[], object]] = []  # called if the write is given up

    def read(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        return self.execute(statement, values).fetchall()


@dataclass(slots=True, eq=False)
class _Write(Generic[T]):
    function: Callable[[Transaction], T]
    size_bytes: int
    future: Future[T] = field(default_factory=Future)
    result: T | None = None
    error: BaseException | None = None
    afterwards: Sequence[Callable[[], object]] = ()
    undo: Sequence[Callable[[], object]] = ()

    def finish(self) -> None:
        for act in self.afterwards if self.error is None else self.undo:
            with suppress(Exception):  # the write is decided; a start removes what is left
                act()
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]  # the function has returned


class NodeStore:
    """The database of one node, for any thread, to be closed; `shared` lets a command write beside a running node."""

    def __init__(self, path: Path, *, shared: bool = False, called: Path | None = None) -> None:
        check_private_file(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path, self._called = path, called or path
        self._lock = -1 if shared else _lock_file(path)
        self._changed = threading.Condition()
        self._reading = threading.Lock()
        self._waiting: deque[_Write[Any]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = self._urgent = False
        self._replaced = self._unwritten = ""
        self.commits = 0
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._file = _identity(path)
            # The audit log has a check of its own, and may be large.
            self._writer = self._connect(() if shared else ("jobs", "items", "parts"))
            self._reader = self._connect()
        except BaseException:
            self._unlock()
            raise

    def _connect(self, checked: Sequence[str] = ()) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        try:
            self._prepare(connection, checked)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.DatabaseError):
                raise self._unusable(error) from error
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, checked: Sequence[str]) -> None:
        for setting in (
            f"busy_timeout = {BUSY_MS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {setting}")
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in (*_TABLES, f"PRAGMA user_version = {SCHEMA}"):
                    connection.execute(statement)
            connection.execute("COMMIT")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA:
            raise ConfigError(
                f"{self._called} has schema {version}, of another release; this one knows {SCHEMA}",
                hint="use that release, or set another [node] state folder",
            )
        for table in checked:
            answer = connection.execute(f"PRAGMA quick_check({table})").fetchone()[0]
            if answer != "ok":
                raise sqlite3.DatabaseError(answer)

    def _unusable(self, error: sqlite3.DatabaseError) -> DdibError:
        code, what = _code_of(error), f"the database {self._called}"
        if code == sqlite3.SQLITE_FULL:
            return DiskFull(f"the disk of {what} is full", hint=f"df -h {self._called.parent}")
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return ConfigError(f"another program holds {what}", hint=f"fuser -v {self._called}")
        return ConfigError(
            f"{what} cannot be used: {error}",
            hint="restore it from a backup, or move it away: its jobs and its audit log are then lost",
        )

    def read(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        """Return rows that are on the disk; never wait for a write."""
        with self._reading, _failing_disk_as_os_error():
            return self._reader.execute(statement, values).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[Read]:
        """Yield a `read` whose answers are all of one moment."""
        with self._reading, _failing_disk_as_os_error():
            self._reader.execute("BEGIN")
            try:
                yield lambda statement, values=(): self._reader.execute(statement, values).fetchall()
            finally:
                self._reader.execute("ROLLBACK")  # nothing was written; a COMMIT may fail, and leave it open

    def write(
        self, function: Callable[[Transaction], T], *, size_bytes: int = 0, patient: bool = False
    ) -> Future[T]:
        """Queue a write; its future gets the function's result once that is on the disk, or its error.

        `size_bytes` is its memory until then; a `patient` one waits a little for others to go with. The future may also
        raise DiskFull, and OSError for a failing disk or a replaced database.
        """
        write: _Write[T] = _Write(function, size_bytes)
        with self._changed:
            if self._closed:
                raise Draining("the store is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="store", daemon=True)
                self._thread.start()
            self._waiting.append(write)
            self._urgent = self._urgent or not patient
            if len(self._waiting) == 1 or self._is_due():
                self._changed.notify_all()
        return write.future

    def flush(self) -> None:
        """Write patient writes to the disk now."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()

    def _is_due(self) -> bool:
        return self._urgent or self._closed or len(self._waiting) >= TOGETHER

    @property
    def problem(self) -> str | None:
        """The problem of the database, for the node's health; None if there is none."""
        return self._replaced or self._unwritten or None

    def _run(self) -> None:
        while group := self._next():
            try:
                with _failing_disk_as_os_error():
                    self._commit(group)
            except BaseException as error:  # noqa: BLE001 - goes to those who wait for the writes
                for write in group:
                    write.error = write.error or error
                if isinstance(error, OSError | DiskFull):
                    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
                    self._unwritten = f"the database {self.path} cannot be written: {why}"
            # Nobody waits for the files of another write to be removed.
            for write in sorted(group, key=lambda write: bool(write.afterwards)):
                write.finish()

    def _next(self) -> list[_Write[Any]]:
        """Return the pending writes, up to the limits; none when the store is closed."""
        group: list[_Write[Any]] = []
        size_bytes = 0
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._changed.wait_for(self._is_due, PATIENCE_S)  # patient ones wait for others
            while self._waiting and len(group) < MOST_WRITES:
                size_bytes += self._waiting[0].size_bytes
                if group and size_bytes > MOST_BYTES:
                    break
                group.append(self._waiting.popleft())
            self._urgent = self._urgent and bool(self._waiting)
        return group

    def _commit(self, group: Sequence[_Write[Any]]) -> None:
        self._require_same_file()
        db, before, files, shared = self._writer, self._writer.total_changes, list[str](), set[str]()
        self._roll_back()  # what a failed rollback left
        db.execute("BEGIN IMMEDIATE")
        try:
            for write in group:
                files += self._one(write, shared)
            sync_files(files)
        except BaseException:
            self._roll_back()
            raise
        try:
            db.execute("COMMIT")
        except BaseException as error:
            # But for a full disk the rows may be on it, and the files that they name stay: the next start compares.
            full = _code_of(error) == sqlite3.SQLITE_FULL
            for write in group:
                write.undo = write.undo if full or write.error else ()
            self._roll_back()
            raise
        if db.total_changes > before:
            self.commits += 1
            self._unwritten = ""

    def _one(self, write: _Write[Any], shared: set[str]) -> Sequence[str]:
        """Run one write in its savepoint; return the files that are to be synced with it."""
        db, transaction, before = self._writer, Transaction(self._writer, shared), set(shared)
        db.execute("SAVEPOINT one")
        write.undo = transaction.undo
        try:
            with _failing_disk_as_os_error():
                write.result = write.function(transaction)
        except BaseException as error:
            write.error = error
            if not db.in_transaction:  # SQLite has given up all of it
                raise
            db.execute("ROLLBACK TO one")
            transaction.written.clear()
            shared.intersection_update(before)
        else:
            write.afterwards = transaction.afterwards
        db.execute("RELEASE one")
        return transaction.written

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):  # the first error counts
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def _require_same_file(self) -> None:
        if not self._replaced and _identity(self.path) != self._file:
            self._replaced = (
                f"the database {self.path} was replaced or removed while the node ran, and nothing is written any "
                "more: keep the file, find out who can write to it, compare it with a peer's anchors (ddib audit "
                "verify --anchors FILE), then restart the node"
            )
        if self._replaced:
            raise OSError(errno.ESTALE, self._replaced)

    def close(self) -> None:
        """Finish the writes that were queued, and let another process have the database."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        with self._reading:
            self._reader.close()
            self._writer.close()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def rehearse(path: Path) -> tuple[int, int]:
    """Open a copy of the database as a start would, changing nothing; return the numbers of jobs and audit lines."""
    check_private_file(path)
    with tempfile.TemporaryDirectory(prefix="ddib-check-") as folder:
        used = path.with_name(path.name + ".lock").exists()
        lock = _lock_file(path, fcntl.LOCK_SH) if used else -1  # no node starts while it is copied
        try:
            for name in (path.name, f"{path.name}-wal"):
                if path.with_name(name).exists():
                    shutil.copyfile(path.with_name(name), Path(folder, name))
        finally:
            if used:
                os.close(lock)
        with closing(NodeStore(Path(folder, path.name), called=path)) as copy:
            row = copy.read("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM audit)")[0]
            return int(row[0]), int(row[1])


def sync_files(files: Sequence[str]) -> None:
    """Sync new files and their names to the disk."""
    for error in sync_each(files).values():
        raise error
    for folder in {file.rpartition("/")[0] for file in files}:
        sync_folder(folder)


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_dev, status.st_ino


def _code_of(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


@contextmanager
def _failing_disk_as_os_error() -> Iterator[None]:
    """Raise DiskFull or OSError for a failing disk; other errors of SQLite are bugs."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = _code_of(error)
        if code == sqlite3.SQLITE_FULL:
            raise DiskFull("the disk of the database is full", retry_after_s=RETRY_AFTER_S) from error
        if code in _DISK_ERRORS:
            busy = code == sqlite3.SQLITE_BUSY
            reason = "another program holds the database" if busy else "the disk of the database failed"
            raise OSError(_DISK_ERRORS[code], reason) from error
        raise
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull("the disk of the node is full", retry_after_s=RETRY_AFTER_S) from error
        raise


def _lock_file(path: Path, kind: int = fcntl.LOCK_EX) -> int:
    """Return a lock that goes when the process goes, however it goes."""
    name = path.with_name(path.name + ".lock")
    check_private_file(name)
    descriptor = os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"another node is running on {path.parent}",
            hint="ddib status, or give this node a state folder of its own",
        ) from error
    return descriptor
