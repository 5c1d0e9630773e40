"""What clients decide is written down inside its transaction: before it is done, and not if nothing changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ddib_fed.protocol.messages import JobState
from source_node.records import Job
from source_node.store import JobStore
from tests.source_node.jobs.job_examples import ALICE, LIMITS, decode, files, running, submit


class Book:
    """What was written down, and whether it was done."""

    def __init__(self, store: JobStore) -> None:
        self.lines: list[tuple[object, bool]] = []
        self._store = store

    @contextmanager
    def __call__(self, *values: object) -> Iterator[None]:
        assert self._store._db._connection.in_transaction, "it is not committed yet"
        try:
            yield
        except BaseException:
            self.lines.append((*values, False))
            raise
        self.lines.append((*values, True))


class FullDisk:
    """A connection that cannot commit."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if statement == "COMMIT":
            error = sqlite3.OperationalError("planted")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return self._connection.execute(statement, *values)


@pytest.fixture
def book(store) -> Book:
    return Book(store)


def delivered(store: JobStore) -> tuple[Job, bytes]:
    """A job that has ended, with an item to be delivered."""
    job = running(store, b"one", b"two")
    digest = decode(store, job)
    store.finish(job.job_id, "FAILED")
    return job, digest


Act = Callable[[JobStore, Book], Callable[[], object]]


def _acknowledge(store: JobStore, book: Book) -> Callable[[], object]:
    job, digest = delivered(store)
    return lambda: store.acknowledge(job.job_id, ALICE, [(0, digest)], recorded=book)


def _delete(store: JobStore, book: Book) -> Callable[[], object]:
    job, _ = delivered(store)
    return lambda: store.delete(job.job_id, ALICE, recorded=book)


def _cancel_running(store: JobStore, book: Book) -> Callable[[], object]:
    job = running(store)
    return lambda: store.cancel(job.job_id, ALICE, recorded=book)


def _cancel_queued(store: JobStore, book: Book) -> Callable[[], object]:
    job = submit(store)
    return lambda: store.cancel(job.job_id, ALICE, recorded=book)


ACTS = [_acknowledge, _delete, _cancel_running, _cancel_queued]


def state(store: JobStore) -> object:
    return [(store.get(job.job_id), store.is_cancelled(job.job_id)) for job in store.list(ALICE)]


@pytest.mark.parametrize("prepare", ACTS)
def test_a_change_is_written_down_before_it_is_committed(store, book, prepare: Act) -> None:
    """Once."""
    prepare(store, book)()
    assert [line[-1] for line in book.lines] == [True]


@pytest.mark.parametrize("prepare", ACTS)
def test_a_change_that_is_not_committed_is_taken_back(store, book, tmp_path, prepare: Act) -> None:
    """Nothing has changed, on the disk or in memory, and the writer gets the error."""
    act = prepare(store, book)
    before, there = state(store), files(tmp_path)
    real = store._db._connection
    store._db._connection = FullDisk(real)
    try:
        with pytest.raises(OSError, match="disk"):
            act()
    finally:
        store._db._connection = real
    assert [line[-1] for line in book.lines] == [False]
    assert (state(store), files(tmp_path)) == (before, there)


@pytest.mark.parametrize("prepare", ACTS)
def test_what_cannot_be_written_down_is_not_done(store, tmp_path, prepare: Act) -> None:
    """Not even in memory."""

    def full(*_values: object) -> None:
        raise OSError(28, "No space left on device")

    act = prepare(store, full)
    before, there = state(store), files(tmp_path)
    with pytest.raises(OSError, match="No space"):
        act()
    assert (state(store), files(tmp_path)) == (before, there)


def test_a_job_that_waits_again_after_it_was_to_stop_is_ended(store, book) -> None:
    """It was running when its client cancelled it, and was put back."""
    job = running(store)
    store.cancel(job.job_id, ALICE)
    store.put_back(job.job_id, 0)
    assert store.cancel(job.job_id, ALICE, recorded=book) == JobState.CANCELLED
    assert len(book.lines) == 1


def test_what_expires_is_written_down_with_its_owner(store, clock, book) -> None:
    """Nobody asked for it, so the line says whose it was."""
    job, _ = delivered(store)
    clock.now += LIMITS.retention_s
    assert store.expire(recorded=book) == 1
    assert book.lines == [({job.job_id: ALICE}, True)]
