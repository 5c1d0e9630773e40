"""What the store says of a disk that fails, and that it does not believe a clock that is set while it is open."""

from __future__ import annotations

import errno
import sqlite3
import time
from pathlib import Path

import pytest

from ddib_fed.errors import DiskFull
from source_node.jobs.database import JobDatabase
from source_node.jobs.store import JobStore
from tests.source_node.jobs.job_examples import running, submit

HOUR_S = 3_600.0


class FailingConnection:
    """A connection whose statements of one kind meet an error of SQLite's."""

    def __init__(self, real: sqlite3.Connection, code: int, word: str) -> None:
        self._real, self._code, self._word = real, code, word

    def __getattr__(self, name: str):
        return getattr(self._real, name)

    def execute(self, statement: str, *values):
        if statement.startswith(self._word):
            error = sqlite3.OperationalError("planted")
            error.sqlite_errorcode = self._code
            raise error
        return self._real.execute(statement, *values)


@pytest.fixture
def database(tmp_path: Path):
    made = JobDatabase(tmp_path / "jobs.sqlite")
    yield made
    made.close()


def use(database: JobDatabase, word: str) -> None:
    """Read, or write a row."""
    if word == "SELECT":
        database.read("SELECT 1")
        return
    with database.transaction() as db:
        db.execute("INSERT INTO node_state (key, value) VALUES ('x', 1)")


# The extended codes that SQLite gives: a failed sync, and a database moved away.
@pytest.mark.parametrize(
    ("code", "number"),
    [
        (sqlite3.SQLITE_IOERR | 4 << 8, errno.EIO),
        (sqlite3.SQLITE_READONLY | 4 << 8, errno.EROFS),
        (sqlite3.SQLITE_CANTOPEN, errno.EIO),
    ],
)
@pytest.mark.parametrize("word", ["INSERT", "COMMIT", "SELECT"])
def test_a_disk_that_fails_is_an_os_error(database: JobDatabase, code: int, number: int, word: str) -> None:
    """A job that meets it is tried again; before, it ended with an internal error. Nothing half done stays."""
    real = database._connection
    database._connection = FailingConnection(real, code, word)  # type: ignore[assignment]
    with pytest.raises(OSError, match="job database failed") as failed:
        use(database, word)
    assert failed.value.errno == number
    database._connection = real
    with database.transaction() as db:
        db.execute("INSERT INTO node_state (key, value) VALUES ('y', 1)")
    assert [row["key"] for row in database.read("SELECT key FROM node_state")] == ["y"]


def test_a_full_disk_and_our_own_bugs_are_told_apart(database: JobDatabase) -> None:
    """The first passes; a statement that is wrong does not."""
    real = database._connection
    database._connection = FailingConnection(real, sqlite3.SQLITE_FULL, "COMMIT")  # type: ignore[assignment]
    with pytest.raises(DiskFull), database.transaction():
        pass
    database._connection = real
    with pytest.raises(sqlite3.OperationalError), database.transaction() as db:
        db.execute("INSERT INTO nowhere VALUES (1)")


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
def test_a_clock_that_is_set_neither_ends_nor_delays_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    """An hour either way, while a job waits for a second and another has half an hour to live."""
    store = JobStore(tmp_path / "jobs.sqlite", tmp_path / "spool")
    job = running(store, deadline_s=HOUR_S / 2)
    store.put_back(job.job_id, 0.05)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step_s)
    time.sleep(0.1)
    found = store.claim()
    assert found is not None
    assert 0 < found.deadline - store.now() < HOUR_S / 2
    store.close()


def test_a_start_does_not_wait_for_what_an_earlier_clock_said(tmp_path: Path) -> None:
    """Put back for a second by a clock that was an hour fast: due at once."""
    fast = JobStore(tmp_path / "jobs.sqlite", tmp_path / "spool", clock=lambda: time.time() + HOUR_S)
    waiting = submit(fast)
    assert fast.claim() is not None
    fast.put_back(waiting.job_id, 1.0)
    fast.close()
    store = JobStore(tmp_path / "jobs.sqlite", tmp_path / "spool")
    assert store.claim() is None
    store.release_running()
    assert store.claim() is not None
    store.close()
