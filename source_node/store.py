"""The jobs of a source node, with their items and files: read, received, worked on, ended.

Another's job is as good as none; bytes are checked against the digest they were written with.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from ddib_fed.errors import ChunkCorrupt, DdibError, ItemNotFound, JobNotFound, StateConflict
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.v1 import common_pb2
from ddib_fed.v1.common_pb2 import ErrorDetail
from ddib_fed.v1.translation_pb2 import JobHeader
from source_node.database import JobDatabase
from source_node.group_commit import Change, GroupCommit, NewFile, transition
from source_node.records import (
    PENDING_ITEMS,
    Item,
    Job,
    JobLimits,
    Part,
    PartRecord,
    delete_parts,
    item_from_row,
    job_from_row,
    part_from_row,
    save_state,
    update_item,
)
from source_node.spool import Spool
from source_node.staging import Due, Queue, Staging

DEFAULT_LIST = 100
LONGEST_LIST = 1_000

Recording = AbstractContextManager[object]
"""What was written down is done inside; left with an exception, it was not done."""
CANCELLED_ERROR: ErrorDetail = ErrorDetail(reason="CANCELLED", sentence="cancelled")


@dataclass(frozen=True, slots=True)
class Progress:
    """How many items of a job are in each state."""

    by_state: Mapping[ItemState, int]

    @property
    def items(self) -> int:
        return sum(self.by_state.values())

    def count(self, *states: ItemState) -> int:
        return sum(self.by_state.get(state, 0) for state in states)

    @property
    def done(self) -> int:
        return self.items - self.count(*PENDING_ITEMS)


NOTHING_YET = Progress({})
"""Of a job that was deleted meanwhile."""


def unrecorded(*_given: object) -> Recording:
    return nullcontext()


def _oldest(due: Sequence[Due]) -> Due | None:
    return due[0] if due else None


class JobStore:
    """The jobs of one node; safe to use from any thread. Close it."""

    def __init__(
        self,
        database: Path,
        spool: Path,
        limits: JobLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or JobLimits()
        self._db = JobDatabase(database)
        self._clock, self._before = clock, self._saved("open_s") - clock()
        self._spool = Spool(spool)
        self._commits = GroupCommit(self._db, self._spool)
        self._queue = Queue(self._db, self.limits)
        self._staging_lock = threading.Lock()
        self._staged_bytes: Counter[str] = Counter()
        rows = self._db.read("SELECT job_id, file FROM parts")
        self.swept_files = self._spool.sweep({(row["job_id"], row["file"]) for row in rows})
        self._cancelled = {
            row["job_id"] for row in self._db.read("SELECT job_id FROM jobs WHERE cancel_requested = 1")
        }
        self.boot = int(self._saved("boot")) + 1
        """How many times the store was opened, this time included."""
        with self._db.transaction() as db:
            save_state(db, "boot", self.boot)

    def _saved(self, key: str) -> float:
        rows = self._db.read("SELECT value FROM node_state WHERE key = ?", (key,))
        return float(rows[0]["value"]) if rows else 0.0

    def now(self) -> float:
        """Seconds in which the store was open, now and before: deadlines count them."""
        return self._before + self._clock()

    def unix_time(self, moment: float) -> float:
        return time.time() + moment - self.now()

    def close(self) -> None:
        """Finish the changes that were given, and let another process have the store."""
        self._commits.close()
        if not self._db.closed:
            with suppress(OSError, DdibError), self._db.transaction() as db:  # or as after a kill
                save_state(db, "open_s", self.now())
        self._db.close()

    # Read

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """A job with its items."""
        with self._db.unchanging():
            row = self._row(job_id, owner)
            items = self._db.read("SELECT * FROM items WHERE job_id = ? ORDER BY item", (job_id,))
        return job_from_row(row, items)

    def head(self, job_id: str, owner: str | None = None) -> Job:
        """A job without its items."""
        return job_from_row(self._row(job_id, owner))

    def item(self, job_id: str, item: int) -> Item:
        rows = self._db.read("SELECT * FROM items WHERE job_id = ? AND item = ?", (job_id, item))
        if not rows:
            raise ItemNotFound(f"job {job_id} has no item {item}", facts={"item": item})
        return item_from_row(rows[0])

    def progress(self, job_id: str) -> Progress:
        return self.progress_of([job_id]).get(job_id, NOTHING_YET)

    def progress_of(self, job_ids: Sequence[str]) -> Mapping[str, Progress]:
        """How many items are in each state, of at most `LONGEST_LIST` jobs; without those that are gone."""
        marks = ", ".join("?" * len(job_ids))
        rows = self._db.read(
            f"SELECT job_id, state, count(*) AS n FROM items WHERE job_id IN ({marks})"  # noqa: S608 - marks
            " GROUP BY job_id, state",
            tuple(job_ids),
        )
        found: dict[str, dict[ItemState, int]] = {}
        for row in rows:
            found.setdefault(row["job_id"], {})[ItemState(row["state"])] = row["n"]
        return {job_id: Progress(by_state) for job_id, by_state in found.items()}

    def _in_states(self, job_id: str, states: Collection[ItemState]) -> tuple[int, ...]:
        """Numbers of the items in these states, in order."""
        marks = ", ".join("?" * len(states))
        rows = self._db.read(
            f"SELECT item FROM items WHERE job_id = ? AND state IN ({marks}) ORDER BY item",  # noqa: S608 - marks
            (job_id, *states),
        )
        return tuple(row["item"] for row in rows)

    def first_failed(self, job_id: str) -> Item | None:
        failed = self._in_states(job_id, [ItemState.FAILED])
        return self.item(job_id, failed[0]) if failed else None

    def ready(self, job_id: str) -> tuple[int, ...]:
        return self._in_states(job_id, [ItemState.DECODED])

    def list(self, owner: str, limit: int = DEFAULT_LIST) -> tuple[Job, ...]:
        """The owner's jobs, newest first, without items; at most `limit` (0 for 100, never over 1,000)."""
        rows = self._db.read(
            "SELECT * FROM jobs WHERE owner = ? ORDER BY number DESC LIMIT ?",
            (owner, min(limit or DEFAULT_LIST, LONGEST_LIST)),
        )
        return tuple(map(job_from_row, rows))

    def since(self, moment: float) -> tuple[Job, ...]:
        """Jobs that were accepted or have ended from a moment (Unix seconds) on, oldest first, without items."""
        rows = self._db.read(
            "SELECT * FROM jobs WHERE created >= ? OR finished >= ? ORDER BY number", (moment, moment)
        )
        return tuple(map(job_from_row, rows))

    def counts(self) -> Mapping[JobState, int]:
        """How many jobs are in each state."""
        rows = self._db.read("SELECT state, count(*) AS n FROM jobs GROUP BY state")
        return dict.fromkeys(JobState, 0) | {JobState(row["state"]): row["n"] for row in rows}

    @property
    def spool_bytes(self) -> int:
        return self._spool.used_bytes

    def _records(self, job_id: str, item: int) -> Sequence[PartRecord]:
        rows = self._db.read("SELECT * FROM parts WHERE job_id = ? AND item = ?", (job_id, item))
        return [part_from_row(row) for row in rows]

    def parts(self, job_id: str, item: int) -> Mapping[Part, PartRecord]:
        """The files of an item, without those of ranges."""
        return {record.part: record for record in self._records(job_id, item) if record.range is None}

    def ranges(self, job_id: str, item: int) -> Mapping[int, PartRecord]:
        return {record.range: record for record in self._records(job_id, item) if record.range is not None}

    def _part(self, job_id: str, item: int, part: Part) -> PartRecord:
        record = self.parts(job_id, item).get(part)
        if record is None:
            raise ItemNotFound(f"item {item} of job {job_id} has no {part}", facts={"item": item})
        return record

    def read_part(self, job_id: str, item: int, part: Part | PartRecord) -> bytes:
        """A file of an item, checked against the digest that it was written with."""
        with self.open_part(job_id, item, part) as file:
            return file.read()

    def open_part(self, job_id: str, item: int, part: Part | PartRecord) -> BufferedReader:
        """As `read_part`, but a file open at its start."""
        record = part if isinstance(part, PartRecord) else self._part(job_id, item, part)
        file = self._spool.open(job_id, record.file)
        if hashlib.file_digest(file, "sha256").digest() != record.sha256:
            file.close()
            raise ChunkCorrupt(
                f"{record.name} of item {item} of job {job_id} has changed on disk", facts={"item": item}
            )
        file.seek(0)
        return file

    def _row(self, job_id: str, owner: str | None = None) -> Any:
        rows = self._db.read("SELECT * FROM jobs WHERE job_id = ?", (job_id,))
        if not rows or owner not in {None, rows[0]["owner"]}:
            raise JobNotFound(f"there is no job {job_id}", hint="ddib job list")
        return rows[0]

    def _require_running(self, job_id: str) -> None:
        state = self._row(job_id)["state"]
        if state != JobState.RUNNING:
            raise StateConflict(f"job {job_id} is {state}", facts={"state": state})

    # Receive

    def stage(self, owner: str, request: JobHeader, away: Collection[str] = ()) -> Staging:
        """Receive a job: ``with store.stage(owner, request) as staging: staging.add(...); staging.commit()``."""
        return Staging(
            db=self._db,
            spool=self._spool,
            limits=self.limits,
            clock=self.now,
            owner=owner,
            request=request,
            place=self._queue.place(owner, request.target_institution, away, self.now()),
            share=self._share,
            held_bytes=self._queue.spool_bytes,
        )

    def _share(self, owner: str, change: int) -> int:
        """Count bytes of a client's jobs that are being received; how many there are now."""
        with self._staging_lock:
            self._staged_bytes[owner] += change
            now = self._staged_bytes[owner]
            if now <= 0:
                del self._staged_bytes[owner]
            return now

    # Work

    def claim(self, choose: Callable[[Sequence[Due]], Due | None] = _oldest) -> Job | None:
        """A queued job that is due, running from now on; None when there is none."""
        now = self.now()
        due = self._queue.due(now)
        chosen = choose(due) if due else None
        if chosen is None:
            return None
        with self._db.transaction() as db:
            changed = db.execute(
                "UPDATE jobs SET state = ?, started = ? WHERE job_id = ? AND state = ?",
                (JobState.RUNNING, now, chosen.job_id, JobState.QUEUED),
            ).rowcount
        return self.get(chosen.job_id) if changed else None

    def waiting_for(self, target: str) -> Sequence[str]:
        return self._queue.waiting_for(target)

    def put_back(self, job_id: str, delay_s: float, error: ErrorDetail | None = None) -> None:
        """Queue a running job again, to be claimed later: its peer is away and others need the worker."""
        with self._db.transaction() as db:
            self._require_running(job_id)
            db.execute(
                "UPDATE jobs SET state = ?, not_before = ?, error = coalesce(?, error) WHERE job_id = ?",
                (JobState.QUEUED, self.now() + delay_s, error and error.SerializeToString(), job_id),
            )

    def release_running(self) -> tuple[Job, ...]:
        """At start: queue again what was left running, or end it when it was to be cancelled; those that ended."""
        with self._db.transaction() as db:
            db.execute("UPDATE jobs SET not_before = 0 WHERE state = ?", (JobState.QUEUED,))
        rows = self._db.read("SELECT job_id FROM jobs WHERE state = ?", (JobState.RUNNING,))
        ended = []
        for job_id in [row["job_id"] for row in rows]:
            if self.is_cancelled(job_id):
                self.finish(job_id, JobState.CANCELLED)
                ended.append(self.get(job_id))
            else:
                self.put_back(job_id, 0)
        return tuple(ended)

    def keep(self, change: Change) -> Future[None]:
        """Keep files of an item of a running job, and take it further, all of it or nothing."""
        if change.state == ItemState.DELIVERED:
            raise StateConflict("an item becomes DELIVERED by acknowledge()")
        return self._commits.submit(change)

    @property
    def groups(self) -> int:
        return self._commits.groups

    def put_part(
        self, job_id: str, item: int, part: Part, data: bytes, media_type: int = common_pb2.MEDIA_TYPE_NPY
    ) -> None:
        self.keep(Change(job_id, item, (NewFile(part, data, media_type),))).result()

    def advance(
        self, job_id: str, item: int, state: ItemState | str, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """As `keep`, one step; on the disk when this returns."""
        state = ItemState(state)
        if state in {ItemState.DELIVERED, ItemState.FAILED}:
            raise StateConflict(f"an item becomes {state} by acknowledge() or fail_item()")
        self.keep(Change(job_id, item, state=state, provenance=provenance)).result()

    def fail_item(self, job_id: str, item: int, error: ErrorDetail) -> None:
        self.keep(Change(job_id, item, state=ItemState.FAILED, error=error)).result()

    # End

    def finish(self, job_id: str, state: JobState | str, error: ErrorDetail | None = None) -> None:
        """End a running job, once. Items left to do fail with it; decoded ones wait for the client."""
        with self._db.transaction() as db:
            self._require_running(job_id)
            dropped = self._end(db, job_id, JobState(state), error)
        self._after_end(job_id, dropped)

    def is_cancelled(self, job_id: str) -> bool:
        return job_id in self._cancelled

    def cancel(self, job_id: str, owner: str, *, recorded: Callable[[], Recording] = unrecorded) -> JobState:
        """Stop a job: at once when it is queued, at its next step when it runs; the state that it has now."""
        dropped: Sequence[str] = []
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
                state = self.item(job_id, item).state
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
            save_state(db, "open_s", self.now())
            rows = db.execute(
                "SELECT job_id, owner FROM jobs WHERE state IN (?, ?, ?) AND expires <= ?",
                (*ended, self.now()),
            ).fetchall()
            if rows:
                recording.enter_context(recorded({row["job_id"]: row["owner"] for row in rows}))
            db.executemany("DELETE FROM jobs WHERE job_id = ?", [(row["job_id"],) for row in rows])
        for row in rows:
            self._spool.remove_job(row["job_id"])
        return len(rows)

    @contextmanager
    def _deciding(self) -> Iterator[tuple[sqlite3.Connection, ExitStack]]:
        with ExitStack() as recording, self._db.transaction() as db:
            yield db, recording

    def _end(
        self, db: sqlite3.Connection, job_id: str, state: JobState, error: ErrorDetail | None
    ) -> Sequence[str]:
        """Inside a transaction; names of the files that go."""
        pending = self._in_states(job_id, PENDING_ITEMS)
        if not state.ended or (state == JobState.FINISHED and pending):
            raise StateConflict(f"job {job_id} with {len(pending)} items left cannot become {state}")
        if state == JobState.CANCELLED:
            error = error or CANCELLED_ERROR
        dropped: list[str] = []
        for item in pending:
            update_item(db, job_id, item, ItemState.FAILED, error=error)
            dropped += delete_parts(db, job_id, item, Part)
        db.execute(
            "UPDATE jobs SET state = ?, finished = ?, expires = ?, error = ? WHERE job_id = ?",
            (
                state,
                time.time(),
                self.now() + self.limits.retention_s,
                error and error.SerializeToString(),
                job_id,
            ),
        )
        return dropped

    def _after_end(self, job_id: str, dropped: Iterable[str]) -> None:
        self._cancelled.discard(job_id)
        self._spool.remove(job_id, dropped)
