"""Stores the jobs of a source node, with their items and files, from their acceptance to their end.

Each change is one write to the database, together with its line of the audit log. A file is written before its row and
removed after it, and its bytes are checked against its digest. An item goes RECEIVED, ENCODED, DECODED, DELIVERED, or
from one of the first two to FAILED.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, NamedTuple

from ddib_fed.errors import (
    ChunkCorrupt,
    DdibError,
    ItemNotFound,
    JobNotFound,
    RequestIdConflict,
    StateConflict,
)
from ddib_fed.node.config import LimitsSection
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.security.audit import AuditLog, Head, Value
from ddib_fed.store import Read, Transaction
from ddib_fed.v1.common_pb2 import ErrorDetail
from ddib_fed.v1.translation_pb2 import JobHeader
from source_node.spool import NewFile, Reserve, Spool, SpoolFile, SpoolPart

JOB_DEADLINE_S: Final = 86_400.0
"""A job fails after so much running time of the node. No call lasts longer (`CONNECTION_GRACE_S`)."""
OPEN_STATES: Final = (JobState.QUEUED, JobState.RUNNING)
PENDING_ITEMS: Final = (ItemState.RECEIVED, ItemState.ENCODED)
CANCELLED_ERROR: Final = ErrorDetail(reason="CANCELLED", sentence="cancelled")
RESULTS: Final = SpoolPart.TRANSLATION, SpoolPart.RETURNED, SpoolPart.LATENT, SpoolPart.SOURCE
"""A client fetches results in this order."""
ALL: Final = frozenset(SpoolPart)

# For each change of state: the part that must be in the spool before, and the parts that the spool drops afterwards.
# An item goes back to RECEIVED if its latent cannot be sent any more.
TRANSITIONS: Final[Mapping[tuple[ItemState, ItemState], tuple[SpoolPart | None, frozenset[SpoolPart]]]] = {
    (ItemState.RECEIVED, ItemState.RECEIVED): (None, ALL - {SpoolPart.INPUT}),
    (ItemState.RECEIVED, ItemState.ENCODED): (SpoolPart.ENCODED, frozenset()),
    (ItemState.RECEIVED, ItemState.DECODED): (
        SpoolPart.TRANSLATION,
        ALL.difference(RESULTS),
    ),  # by the map alone
    (ItemState.ENCODED, ItemState.RECEIVED): (None, ALL - {SpoolPart.INPUT}),
    (ItemState.ENCODED, ItemState.DECODED): (SpoolPart.TRANSLATION, ALL.difference(RESULTS)),
    (ItemState.DECODED, ItemState.DELIVERED): (None, ALL),
    (ItemState.RECEIVED, ItemState.FAILED): (None, ALL),
    (ItemState.ENCODED, ItemState.FAILED): (None, ALL),
}
MOMENTS: Final = "created", "started", "finished", "deadline", "expires"
JOB_OF_REQUEST: Final = "SELECT * FROM jobs WHERE owner = ? AND request_id = ?"


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item of a stored job, with the size and digest of the client's file."""

    index: int
    state: ItemState
    media_type: int
    size_bytes: int
    sha256: bytes
    provenance: Mapping[str, Any] = field(default_factory=dict)
    error: ErrorDetail | None = None


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A stored job; `list` and `head` leave the items out."""

    job_id: str
    owner: str
    request: JobHeader
    state: JobState
    created: float
    started: float
    finished: float
    deadline: float
    expires: float
    error: ErrorDetail | None
    items: tuple[StoredItem, ...] = ()

    @property
    def accepted(self) -> float:
        return self.deadline - self.request.deadline_s


class ItemCounts(NamedTuple):
    """Numbers of a job's items, by state."""

    items: int = 0
    done: int = 0
    failed: int = 0
    delivered: int = 0


class Change(NamedTuple):
    """A step of an item: new files, its new state, its record, its error."""

    item: int
    files: Sequence[NewFile] = ()
    state: ItemState | None = None
    provenance: Mapping[str, Any] | None = None
    error: ErrorDetail | None = None

    @property
    def size_bytes(self) -> int:
        return sum(len(file.data) for file in self.files)


class DueJob(NamedTuple):
    job_id: str
    owner: str
    target: str
    items: int
    size_bytes: int
    overdue: bool


def classes_of(request: JobHeader, item: int) -> tuple[str, str]:
    """Return the source and the target class of an item as the client named them; empty for none."""
    classes = request.item_classes[item] if request.item_classes else request
    return classes.source_class, classes.target_class


class JobStore:
    """The jobs of one node; safe to use from any thread. Close it before the node's database."""

    def __init__(
        self,
        audit: AuditLog,
        spool: Path,
        limits: LimitsSection | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or LimitsSection()
        self.spool, self._reserve = Spool(spool), Reserve(spool.parent)
        self._audit, self._store = audit, audit.store
        self.read, self.flush = self._store.read, self._store.flush
        self._clock, self._before = clock, self._saved("open_s") - clock()
        rows = self.read("SELECT job_id, file FROM parts")
        self.swept_files = self.spool.sweep({(row["job_id"], row["file"]) for row in rows})
        self.boot = int(self._saved("boot")) + 1
        """The boot number rises with each opening of the store."""
        self._store.write(lambda write: _save_state(write, "boot", self.boot)).result()

    def _saved(self, key: str) -> float:
        rows = self.read("SELECT value FROM node_state WHERE key = ?", (key,))
        return float(rows[0]["value"]) if rows else 0.0

    @property
    def retention_s(self) -> float:
        return self.limits.result_days * 86_400

    def now(self) -> float:
        """Return the seconds for which the store has been open in all; deadlines count them."""
        return self._before + self._clock()

    def unix_time(self, moment: float) -> float:
        return time.time() + moment - self.now()

    def close(self) -> None:
        """Save the time; the database stays open."""
        with suppress(OSError, DdibError):  # or as after a kill
            self._store.write(lambda write: _save_state(write, "open_s", self.now())).result()

    def get(self, job_id: str, owner: str | None = None) -> StoredJob:
        with self._store.snapshot() as read:
            row = _own_row(read, job_id, owner)
            items = read("SELECT * FROM items WHERE job_id = ? ORDER BY item", (job_id,))
        return _job(row, items)

    def head(self, job_id: str, owner: str | None = None) -> StoredJob:
        return _job(_own_row(self.read, job_id, owner))

    def item_with_parts(
        self, job_id: str, item: int
    ) -> tuple[StoredItem, Mapping[tuple[SpoolPart, int], SpoolFile]]:
        with self._store.snapshot() as read:
            return _item(_item_row(read, job_id, item)), _files(read, job_id, item)

    def progress(self, job_id: str) -> ItemCounts:
        """Return a job's counts; zeros if it is deleted."""
        return self.progress_of([job_id]).get(job_id, ItemCounts())

    def progress_of(self, job_ids: Sequence[str]) -> Mapping[str, ItemCounts]:
        """Return the counts of at most 1,000 jobs, leaving out deleted ones."""
        rows = self.read(
            "SELECT job_id, count(*), sum(state NOT IN (?, ?)), sum(state = ?), sum(state = ?) FROM items"  # noqa: S608 - marks
            f" WHERE job_id IN ({', '.join('?' * len(job_ids))}) GROUP BY job_id",
            (*PENDING_ITEMS, ItemState.FAILED, ItemState.DELIVERED, *job_ids),
        )
        return {job_id: ItemCounts(*counts) for job_id, *counts in rows}

    def ready(self, job_id: str) -> tuple[int, ...]:
        rows = self.read(
            "SELECT item FROM items WHERE job_id = ? AND state = ? ORDER BY item", (job_id, ItemState.DECODED)
        )
        return tuple(row["item"] for row in rows)

    def list(self, owner: str, limit: int = 100) -> tuple[StoredJob, ...]:
        """Return the owner's newest jobs, without items."""
        rows = self.read("SELECT * FROM jobs WHERE owner = ? ORDER BY number DESC LIMIT ?", (owner, limit))
        return tuple(map(_job, rows))

    def counts(self) -> Mapping[JobState, int]:
        rows = self.read("SELECT state, count(*) AS n FROM jobs GROUP BY state")
        return dict.fromkeys(JobState, 0) | {JobState(row["state"]): row["n"] for row in rows}

    def parts(self, job_id: str, item: int) -> Mapping[tuple[SpoolPart, int], SpoolFile]:
        return _files(self.read, job_id, item)

    def read_part(self, job_id: str, item: int, part: SpoolPart, place: int = 0) -> bytes:
        """Return the content of an item's file; raise unless it has its digest."""
        record = self.parts(job_id, item).get((part, place))
        if record is None:
            raise ItemNotFound(f"item {item} of job {job_id} has no {part}", facts={"item": item})
        with self.open_file(job_id, item, record) as file:
            return file.read()

    def open_file(self, job_id: str, item: int, record: SpoolFile) -> BufferedReader:
        """Open an item's file; raise unless it has its digest."""
        file = self.spool.open(job_id, record.file)
        if hashlib.file_digest(file, "sha256").digest() != record.sha256:
            file.close()
            raise ChunkCorrupt(
                f"{record.part} of item {item} of job {job_id} has changed on disk", facts={"item": item}
            )
        file.seek(0)
        return file

    def open_jobs(self) -> Sequence[tuple[str, str]]:
        rows = self.read("SELECT owner, target FROM jobs WHERE state IN (?, ?)", OPEN_STATES)
        return [(row["owner"], row["target"]) for row in rows]

    def spool_bytes(self, owner: str) -> int:
        rows = self.read(
            "SELECT coalesce(sum(size_bytes), 0) FROM parts"
            " WHERE job_id IN (SELECT job_id FROM jobs WHERE owner = ?)",
            (owner,),
        )
        return int(rows[0][0])

    def accepted(self, owner: str, request_id: str) -> JobHeader | None:
        """Return the request that was accepted by this id, if one was."""
        rows = self.read(JOB_OF_REQUEST, (owner, request_id))
        return JobHeader.FromString(rows[0]["request"]) if rows else None

    def insert(
        self,
        job_id: str,
        owner: str,
        request: JobHeader,
        files: Sequence[SpoolFile],
        *,
        new: bool,
        mark: Callable[[bool], object],
    ) -> tuple[str, bool]:
        """Queue a job of synced files, one an item; return its id, and whether the request had been accepted before.

        A request that is not `new` may only repeat an accepted one. `mark` hears whether the files must be kept.
        """
        content, now = _content_digest(request, files), self.now()
        request = JobHeader.FromString(request.SerializeToString())
        request.deadline_s = request.deadline_s or round(JOB_DEADLINE_S)
        deadline = now + request.deadline_s
        # fmt: off
        row = (
            job_id, owner, request.request_id, content, request.SerializeToString(), request.target_institution,
            JobState.QUEUED, time.time(), deadline, deadline + self.retention_s,
        )
        # fmt: on

        def write(db: Transaction) -> tuple[str, bool]:
            earlier = db.read(JOB_OF_REQUEST, (owner, request.request_id))
            if earlier and earlier[0]["content"] != content:
                raise RequestIdConflict(
                    f"request {request.request_id} is job {earlier[0]['job_id']}, with other content",
                    hint="use a new request id",
                    facts={"job": earlier[0]["job_id"]},
                )
            if earlier:
                return str(earlier[0]["job_id"]), True
            if not new:  # it holds no place, and was not charged
                raise RequestIdConflict(
                    f"the job of request {request.request_id} was deleted while the request came again",
                    hint="submit it again with a new request id",
                    facts={"job": "deleted while the request came again"},
                )
            mark(True)
            db.undo.append(lambda: mark(False))
            db.execute(
                "INSERT INTO jobs"
                " (job_id, owner, request_id, content, request, target, state, created, deadline, expires)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            db.executemany(
                "INSERT INTO items (job_id, item, state, media_type, size_bytes, sha256) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (job_id, item, ItemState.RECEIVED, file.media_type, file.size_bytes, file.sha256)
                    for item, file in enumerate(files)
                ],
            )
            _insert_parts(db, job_id, enumerate(files))
            self._audit.append(
                db,
                "job_accepted",
                job=job_id,
                client=owner,
                target=request.target_institution,
                items=len(files),
            )
            return job_id, False

        return self._store.write(write).result()

    def due(self) -> Sequence[DueJob]:
        """Return the queued jobs that may run now, oldest first."""
        now = self.now()
        rows = self.read(
            "SELECT jobs.job_id, owner, target, count(items.item) AS items,"
            " coalesce(sum(items.size_bytes), 0) AS size_bytes, deadline <= ? AS overdue FROM jobs"
            " LEFT JOIN items ON items.job_id = jobs.job_id AND items.state IN (?, ?)"
            " WHERE jobs.state = ? AND (not_before <= ? OR deadline <= ?)"
            " GROUP BY jobs.job_id ORDER BY number",
            (now, *PENDING_ITEMS, JobState.QUEUED, now, now),
        )
        return [DueJob(*row) for row in rows]

    def claim(self, job_id: str) -> StoredJob | None:
        """Set a queued job to RUNNING and return it; None if it is queued no more."""

        def write(db: Transaction) -> int:
            return db.execute(
                "UPDATE jobs SET state = ?, started = ? WHERE job_id = ? AND state = ?",
                (JobState.RUNNING, self.now(), job_id, JobState.QUEUED),
            ).rowcount

        return self.get(job_id) if self._store.write(write).result() else None

    def in_state(self, state: JobState, target: str = "") -> Sequence[str]:
        """Return the jobs in a state, for one institution or for all."""
        query = "SELECT job_id FROM jobs WHERE state = ? AND ? IN ('', target) ORDER BY number"
        return [row["job_id"] for row in self.read(query, (state, target))]

    def put_back(self, job_id: str, delay_s: float, error: ErrorDetail | None = None) -> None:
        """Queue a running job again, to be claimed after a delay."""

        def write(db: Transaction) -> None:
            _require_running(db, job_id)
            db.execute(
                "UPDATE jobs SET state = ?, not_before = ?, error = coalesce(?, error) WHERE job_id = ?",
                (JobState.QUEUED, self.now() + delay_s, error and error.SerializeToString(), job_id),
            )

        self._store.write(write).result()

    def release_running(self) -> Sequence[StoredJob]:
        """At start, queue interrupted jobs again or, after a request to cancel, end them; return the ended ones."""
        self._store.write(
            lambda db: db.execute("UPDATE jobs SET not_before = 0 WHERE state = ?", (JobState.QUEUED,))
        ).result()
        ended = []
        for job_id in self.in_state(JobState.RUNNING):
            if self.is_cancelled(job_id):
                self.finish(job_id, JobState.CANCELLED)
                ended.append(self.get(job_id))
            else:
                self.put_back(job_id, 0)
        return ended

    def keep(self, job_id: str, change: Change, *, patient: bool = False) -> Future[None]:
        """Apply a change to an item of a running job, as a whole or not at all."""
        return self._store.write(
            lambda db: self._change(db, job_id, change), size_bytes=change.size_bytes, patient=patient
        )

    def send(self, job_id: str, changes: Sequence[Change], lines: Sequence[Mapping[str, Value]]) -> Head:
        """Store latents and audit lines before the latents leave; return the head of the log."""

        def write(db: Transaction) -> Head:
            for change in changes:
                self._change(db, job_id, change)
            return self._audit.append_each(db, "latent_sent", lines)

        size_bytes = sum(change.size_bytes for change in changes)
        return self._store.write(write, size_bytes=size_bytes).result()

    def _change(self, db: Transaction, job_id: str, change: Change) -> None:
        item, state = change.item, change.state
        _require_running(db, job_id)
        before = ItemState(_item_row(db.read, job_id, item)["state"])
        needed, dropped = None, frozenset[SpoolPart]()
        if state is not None:
            needed, dropped = _transition(job_id, item, before, state)
        elif before not in PENDING_ITEMS:
            raise StateConflict(f"item {item} of job {job_id} is {before}")
        kept, new = _files(db.read, job_id, item), {(file.part, file.range) for file in change.files}
        if needed and all(part != needed for part, _ in (*kept, *new)):
            raise StateConflict(f"item {item} of job {job_id} cannot be {state}: it has no {needed}")
        self._drop(db, job_id, item, [f for key, f in kept.items() if f.part in dropped or key in new])
        _insert_parts(db, job_id, [(item, self.spool.put(db, job_id, item, file)) for file in change.files])
        if state is not None or change.provenance is not None:
            _update_item(db, job_id, item, state or before, provenance=change.provenance, error=change.error)

    def finish(self, job_id: str, state: JobState | str, error: ErrorDetail | None = None) -> None:
        """End a running job and fail its pending items; decoded ones stay for the client."""
        state = JobState(state)

        def write(db: Transaction) -> None:
            _require_running(db, job_id)
            self._end(db, job_id, state, error)
            reason = error.reason if error else CANCELLED_ERROR.reason if state == JobState.CANCELLED else ""
            self._audit.append(db, f"job_{state.lower()}", job=job_id, reason=reason)

        self._store.write(write).result()

    def is_cancelled(self, job_id: str) -> bool:
        """Return True if the client has asked to cancel a job that is still open."""
        rows = self.read("SELECT cancel_requested, state FROM jobs WHERE job_id = ?", (job_id,))
        return bool(rows and rows[0]["cancel_requested"] and rows[0]["state"] in OPEN_STATES)

    def cancel(self, job_id: str, owner: str) -> JobState:
        """Stop a queued job at once, a running one at its next step; return its state."""

        def write(db: Transaction) -> JobState:
            row = _own_row(db.read, job_id, owner)
            state = JobState(row["state"])
            if state.ended or (state == JobState.RUNNING and row["cancel_requested"]):
                return state
            self._audit.append(db, "job_cancel", job=job_id, client=owner)
            if state == JobState.QUEUED:
                self._end(db, job_id, JobState.CANCELLED, None)
                return JobState.CANCELLED
            db.execute("UPDATE jobs SET cancel_requested = 1 WHERE job_id = ?", (job_id,))
            return state

        return self._store.write(write).result()

    def sending(self, job_id: str, owner: str, items: Sequence[int]) -> None:
        """Write an audit line before results go to a client."""
        self._reserve.making_room(
            lambda: self._audit.write("results_sent", job=job_id, client=owner, items=list(map(str, items)))
        )

    def acknowledge(self, job_id: str, owner: str, items: Iterable[tuple[int, bytes]]) -> int:
        """Remove the files of items that the client has written; return how many are still to be delivered."""
        digests = dict(items)

        def write(db: Transaction) -> None:
            _own_row(db.read, job_id, owner)
            delivered: list[str] = []
            for item, sha256 in digests.items():
                state = ItemState(_item_row(db.read, job_id, item)["state"])
                if state == ItemState.DELIVERED:
                    continue
                _transition(job_id, item, state, ItemState.DELIVERED)
                kept = _files(db.read, job_id, item)
                if kept[SpoolPart.TRANSLATION, 0].sha256 != sha256:
                    raise ChunkCorrupt(
                        f"item {item} of job {job_id} was written with another digest", facts={"item": item}
                    )
                self._drop(db, job_id, item, kept.values())
                _update_item(db, job_id, item, ItemState.DELIVERED)
                delivered.append(str(item))
            if delivered:
                self._audit.append(db, "items_delivered", job=job_id, client=owner, items=delivered)

        self._reserve.making_room(lambda: self._store.write(write).result())
        progress = self.progress(job_id)
        return progress.items - progress.delivered - progress.failed

    def delete(self, job_id: str, owner: str) -> None:
        """Remove an ended job with its files; raise if it is open."""

        def write(db: Transaction) -> None:
            if not (state := JobState(_own_row(db.read, job_id, owner)["state"])).ended:
                raise StateConflict(
                    f"job {job_id} is {state}", hint=f"ddib job cancel {job_id}", facts={"state": state}
                )
            self._remove(db, "job_deleted", job_id, owner)

        self._reserve.making_room(lambda: self._store.write(write).result())

    def expire(self) -> int:
        """Remove expired jobs, and save the time in case of a kill; return how many were removed."""

        def write(db: Transaction) -> int:
            _save_state(db, "open_s", self.now())
            rows = db.read(
                "SELECT job_id, owner FROM jobs WHERE state NOT IN (?, ?) AND expires <= ?",
                (*OPEN_STATES, self.now()),
            )
            for row in rows:
                self._remove(db, "job_expired", row["job_id"], row["owner"])
            return len(rows)

        return self._reserve.making_room(lambda: self._store.write(write).result())

    def _remove(self, db: Transaction, act: str, job_id: str, owner: str) -> None:
        self._audit.append(db, act, job=job_id, client=owner)
        db.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
        db.afterwards.append(lambda: self.spool.remove_job(job_id))

    def _end(self, db: Transaction, job_id: str, state: JobState, error: ErrorDetail | None) -> None:
        rows = db.read(
            "SELECT item FROM items WHERE job_id = ? AND state IN (?, ?)", (job_id, *PENDING_ITEMS)
        )
        if not state.ended or (state == JobState.FINISHED and rows):
            raise StateConflict(f"job {job_id} with {len(rows)} items left cannot become {state}")
        if state == JobState.CANCELLED:
            error = error or CANCELLED_ERROR
        for (item,) in rows:
            _update_item(db, job_id, item, ItemState.FAILED, error=error)
            self._drop(db, job_id, item, _files(db.read, job_id, item).values())
        db.execute(
            "UPDATE jobs SET state = ?, finished = ?, expires = ?, error = ? WHERE job_id = ?",
            (state, time.time(), self.now() + self.retention_s, error and error.SerializeToString(), job_id),
        )

    def _drop(self, db: Transaction, job_id: str, item: int, files: Collection[SpoolFile]) -> None:
        """Delete the rows of an item's files; the files go when the transaction is on the disk."""
        if not files:
            return
        db.executemany(
            "DELETE FROM parts WHERE job_id = ? AND item = ? AND part = ? AND range = ?",
            [(job_id, item, row.part, row.range) for row in files],
        )
        db.afterwards.append(lambda: self.spool.remove(job_id, [row.file for row in files]))


def _content_digest(request: JobHeader, files: Iterable[SpoolFile]) -> bytes:
    """Return a digest of the request, without its id, and of the files."""
    settings = JobHeader.FromString(request.SerializeToString())
    settings.ClearField("request_id")
    digest = hashlib.sha256(settings.SerializeToString(deterministic=True))
    for file in files:
        digest.update(f" {file.media_type} {file.sha256.hex()}".encode())
    return digest.digest()


def _save_state(db: Transaction, key: str, value: float) -> None:
    db.execute("INSERT OR REPLACE INTO node_state (key, value) VALUES (?, ?)", (key, value))


def _own_row(read: Read, job_id: str, owner: str | None) -> sqlite3.Row:
    rows = read("SELECT * FROM jobs WHERE job_id = ?", (job_id,))
    if not rows or owner not in {None, rows[0]["owner"]}:
        raise JobNotFound(f"there is no job {job_id}", hint="ddib job list")
    return rows[0]


def _require_running(db: Transaction, job_id: str) -> None:
    if (state := _own_row(db.read, job_id, None)["state"]) != JobState.RUNNING:
        raise StateConflict(f"job {job_id} is {state}", facts={"state": state})


def _item_row(read: Read, job_id: str, item: int) -> sqlite3.Row:
    rows = read("SELECT * FROM items WHERE job_id = ? AND item = ?", (job_id, item))
    if not rows:
        raise ItemNotFound(f"job {job_id} has no item {item}", facts={"item": item})
    return rows[0]


def _transition(
    job_id: str, item: int, before: ItemState, after: ItemState
) -> tuple[SpoolPart | None, frozenset[SpoolPart]]:
    """Return the part that a step needs and the parts that it drops; raise if the step is not allowed."""
    if (step := TRANSITIONS.get((before, after))) is None:
        raise StateConflict(
            f"item {item} of job {job_id} is {before} and cannot become {after}",
            facts={"item": item, "state": before},
        )
    return step


def _update_item(
    db: Transaction,
    job_id: str,
    item: int,
    state: ItemState,
    *,
    provenance: Mapping[str, Any] | None = None,
    error: ErrorDetail | None = None,
) -> None:
    record = None if provenance is None else json.dumps(provenance, sort_keys=True, allow_nan=False)
    db.execute(
        "UPDATE items SET state = ?, provenance = coalesce(?, provenance), error = coalesce(?, error)"
        " WHERE job_id = ? AND item = ?",
        (state, record, error and error.SerializeToString(), job_id, item),
    )


def _insert_parts(db: Transaction, job_id: str, files: Iterable[tuple[int, SpoolFile]]) -> None:
    db.executemany(
        "INSERT INTO parts (job_id, item, part, range, file, media_type, size_bytes, sha256)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(job_id, item, *file) for item, file in files],
    )


def _files(read: Read, job_id: str, item: int) -> dict[tuple[SpoolPart, int], SpoolFile]:
    rows = read(
        "SELECT part, range, file, media_type, size_bytes, sha256 FROM parts WHERE job_id = ? AND item = ?",
        (job_id, item),
    )
    return {(part := SpoolPart(row["part"]), row["range"]): SpoolFile(part, *row[1:]) for row in rows}


def _job(row: sqlite3.Row, items: Iterable[sqlite3.Row] = ()) -> StoredJob:
    return StoredJob(
        request=JobHeader.FromString(row["request"]),
        state=JobState(row["state"]),
        error=_error(row),
        items=tuple(map(_item, items)),
        **{name: row[name] for name in ("job_id", "owner", *MOMENTS)},
    )


def _item(row: sqlite3.Row) -> StoredItem:
    return StoredItem(
        row["item"], ItemState(row["state"]), row["media_type"], row["size_bytes"], row["sha256"],
        json.loads(row["provenance"]), _error(row),
    )  # fmt: skip


def _error(row: sqlite3.Row) -> ErrorDetail | None:
    return ErrorDetail.FromString(row["error"]) if row["error"] else None
