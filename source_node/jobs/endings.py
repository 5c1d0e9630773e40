"""What clients decide of their jobs: cancelled, delivered, deleted; and what nobody fetched in time.

Each change is written down by `recorded` inside its transaction, once it is known what changes and before it is
committed; what changes nothing is not written down.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from ddib_fed.errors import ChunkCorrupt, StateConflict
from ddib_fed.wire.jobs import ItemState, JobState
from source_node.jobs.group_commit import transition
from source_node.jobs.queries import JobQueries
from source_node.jobs.records import PENDING_ITEMS, ErrorRecord, JobLimits, Part
from source_node.jobs.rows import delete_parts, end_job, save_state, update_item

Dropped = Sequence[str]
"""Names of files that go."""
Recording = AbstractContextManager[object]
"""What was written down is done inside; left with an exception, it was not done."""
CANCELLED_ERROR: ErrorRecord = {"reason": "CANCELLED", "sentence": "cancelled", "incident": "", "facts": {}}


def unrecorded(*_given: object) -> Recording:
    return nullcontext()


class JobEndings(JobQueries):
    """How jobs and their results leave a store; a part of `JobStore`."""

    limits: JobLimits
    _clock: Callable[[], float]
    _cancelled: set[str]

    @contextmanager
    def _deciding(self) -> Iterator[tuple[sqlite3.Connection, ExitStack]]:
        with ExitStack() as recording, self._db.transaction() as db:
            yield db, recording

    def is_cancelled(self, job_id: str) -> bool:
        return job_id in self._cancelled

    def cancel(self, job_id: str, owner: str, *, recorded: Callable[[], Recording] = unrecorded) -> JobState:
        """Stop a job: at once when it is queued, at its next step when it runs; the state that it has now."""
        dropped: Dropped = []
        with self._db.unchanging():
            with self._deciding() as (db, recording):
                row = self._row(job_id, owner)
                state = JobState(row["state"])
                if state.ended or (state == JobState.RUNNING and row["cancel_requested"]):
                    return state
                recording.enter_context(recorded())
                if state == JobState.QUEUED:
                    state = JobState.CANCELLED
                    dropped = self._end(db, job_id, state, None)
                else:
                    db.execute("UPDATE jobs SET cancel_requested = 1 WHERE job_id = ?", (job_id,))
            if not state.ended:
                self._cancelled.add(job_id)
        if state.ended:
            self._after_end(job_id, dropped)
        return state

    def acknowledge(
        self,
        job_id: str,
        owner: str,
        items: Iterable[tuple[int, bytes]],
        *,
        recorded: Callable[[Sequence[int]], Recording] = unrecorded,
    ) -> int:
        """The client has written these items: remove their files; how many are still to be delivered."""
        delivered: list[tuple[int, list[str]]] = []
        with self._deciding() as (db, recording):
            self._row(job_id, owner)
            for item, sha256 in dict(items).items():
                state = self._item(job_id, item).state
                if state == ItemState.DELIVERED:
                    continue
                _, dropped = transition(job_id, item, state, ItemState.DELIVERED)
                if self._part(job_id, item, Part.TRANSLATION).sha256 != sha256:
                    raise ChunkCorrupt(
                        f"item {item} of job {job_id} was written with another digest", facts={"item": item}
                    )
                update_item(db, job_id, item, ItemState.DELIVERED)
                delivered.append((item, delete_parts(db, job_id, item, dropped)))
            if delivered:
                recording.enter_context(recorded([item for item, _ in delivered]))
        for _, names in delivered:
            self._spool.remove(job_id, names)
        progress = self.progress(job_id)
        return progress.items - progress.count(ItemState.DELIVERED, ItemState.FAILED)

    def delete(self, job_id: str, owner: str, *, recorded: Callable[[], Recording] = unrecorded) -> None:
        """Remove an ended job and all that is kept of it."""
        with self._deciding() as (db, recording):
            state = JobState(self._row(job_id, owner)["state"])
            if not state.ended:
                raise StateConflict(
                    f"job {job_id} is {state}", hint=f"ddib job cancel {job_id}", facts={"state": state}
                )
            recording.enter_context(recorded())
            db.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
        self._spool.remove_job(job_id)

    def expire(self, *, recorded: Callable[[Mapping[str, str]], Recording] = unrecorded) -> int:
        """Remove ended jobs that nobody fetched in time; how many. Also saves the time, against a kill."""
        ended = [state for state in JobState if state.ended]
        with self._deciding() as (db, recording):
            save_state(db, "open_s", self._clock())
            rows = db.execute(
                "SELECT job_id, owner FROM jobs WHERE state IN (?, ?, ?) AND expires <= ?",
                (*ended, self._clock()),
            ).fetchall()
            if rows:
                recording.enter_context(recorded({row["job_id"]: row["owner"] for row in rows}))
            db.executemany("DELETE FROM jobs WHERE job_id = ?", [(row["job_id"],) for row in rows])
        for row in rows:
            self._spool.remove_job(row["job_id"])
        return len(rows)

    def _end(
        self, db: sqlite3.Connection, job_id: str, state: JobState, error: ErrorRecord | None
    ) -> Dropped:
        """Inside a transaction; which items' files go."""
        pending = self._in_states(job_id, PENDING_ITEMS)
        if not state.ended or (state == JobState.FINISHED and pending):
            raise StateConflict(f"job {job_id} with {len(pending)} items left cannot become {state}")
        if state == JobState.CANCELLED:
            error = error or CANCELLED_ERROR
        dropped: list[str] = []
        for item in pending:
            update_item(db, job_id, item, ItemState.FAILED, error=error)
            dropped += delete_parts(db, job_id, item, Part)
        end_job(db, job_id, state, expires=self._clock() + self.limits.retention_s, error=error)
        return dropped

    def _after_end(self, job_id: str, dropped: Dropped) -> None:
        self._cancelled.discard(job_id)
        self._spool.remove(job_id, dropped)
