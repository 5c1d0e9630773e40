"""What the store says of a disk that fails, and that it counts no time by a clock that is set."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from ddib_fed.errors import DiskFull
from source_node.database import JobDatabase
from source_node.records import Part
from source_node.store import JobStore
from tests.source_node.jobs.job_examples import LIMITS, Clock, decode, running, submit

HOUR_S, DAY_S, YEAR_S = 3_600.0, 86_400.0, 365 * 86_400.0


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


def set_clock(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    real = time.clock_gettime
    monkeypatch.setattr(time, "time", lambda: real(time.CLOCK_REALTIME) + by_s)


def overdue(store: JobStore) -> list[bool]:
    found: list[bool] = []
    store.claim(lambda due: found.extend(each.overdue for each in due))
    return found


@pytest.mark.parametrize(
    ("before_s", "after_s"),
    [(0, 8 * DAY_S), (0, 5 * YEAR_S), (0, -5 * YEAR_S), (-5 * YEAR_S, 0), (5 * YEAR_S, 0)],
    ids=["a suspend of 8 days", "set forward", "set back", "years slow at first", "years fast at first"],
)
def test_a_restart_under_another_clock_neither_ends_nor_prolongs_jobs(
    open_store, clock: Clock, monkeypatch: pytest.MonkeyPatch, before_s: float, after_s: float
) -> None:
    """Results that nobody fetched and jobs that wait live as long as they would have lived."""
    set_clock(monkeypatch, before_s)
    store = open_store()
    ended = running(store)
    decode(store, ended)
    store.finish(ended.job_id, "FINISHED")
    waiting = submit(store)
    clock.now += 40
    store.close()
    set_clock(monkeypatch, after_s)
    clock.now = 7.0  # a machine that was started anew counts anew
    again = open_store()
    assert again.expire() == 0
    assert again.read_part(ended.job_id, 0, Part.TRANSLATION) == b"translation"
    assert overdue(again) == [False]
    assert again.get(waiting.job_id).deadline - again.now() == LIMITS.default_deadline_s - 40
    clock.now += 10
    assert overdue(again) == [True]
    clock.now += LIMITS.retention_s - 50 - 1
    assert again.expire() == 0
    clock.now += 1
    assert again.expire() == 1


def test_a_client_reads_when_a_result_goes_by_the_clock_of_now(
    store: JobStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the node runs until then."""
    ended = running(store)
    decode(store, ended)
    store.finish(ended.job_id, "FINISHED")
    clock.now += 40
    monkeypatch.setattr(time, "time", lambda: 5_000.0)
    assert store.unix_time(store.get(ended.job_id).expires) == 5_000 + LIMITS.retention_s - 40


def test_a_kill_forgets_no_more_than_the_time_since_the_last_look(
    store: JobStore, clock: Clock, tmp_path: Path
) -> None:
    """What the disk holds at that moment is what the next start finds."""
    clock.now += 40
    store.expire()
    clock.now += 5
    shutil.copytree(tmp_path, tmp_path / "killed")
    after = JobStore(tmp_path / "killed" / "jobs.sqlite", tmp_path / "killed" / "spool", clock=clock)
    assert after.now() == 40
    after.close()
