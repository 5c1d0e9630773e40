"""Changes of items made durable together: one transaction, and one sync of each folder, for all that wait.

A change is on the disk when its future is done, and not before. Changes are made in the order in which they were given.
The first of a quiet moment is written at once; what is given meanwhile is the next group. What is wrong with one change
(its job was cancelled, its step is none) is raised by its own future and leaves the others as they are.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ddib_fed.errors import DdibError, Draining, ItemNotFound, StateConflict
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.v1 import common_pb2
from ddib_fed.v1.common_pb2 import ErrorDetail
from source_node.database import JobDatabase
from source_node.records import (
    PENDING_ITEMS,
    TRANSITIONS,
    Part,
    PartRecord,
    delete_parts,
    delete_ranges,
    insert_part,
    update_item,
)
from source_node.spool import Spool, ToWrite, new_name

log = logging.getLogger(__name__)

MOST_CHANGES = 256
"""In one group; with `MOST_BYTES`, how long a single change may wait for others."""
MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file of an item to keep; takes the place of one of the same part."""

    part: Part
    data: bytes
    media_type: int = common_pb2.MEDIA_TYPE_NPY
    range: int | None = None

    def record(self, item: int) -> PartRecord:
        """What the database will hold of it."""
        name = str(self.part) if self.range is None else f"{self.part}.{self.range}"
        digest = hashlib.sha256(self.data).digest()
        return PartRecord(
            self.part, self.media_type, len(self.data), digest, new_name(item, name), self.range
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one item of a running job, all of it or nothing."""

    job_id: str
    item: int
    files: Sequence[NewFile] = ()
    state: ItemState | None = None
    provenance: Mapping[str, Any] | None = None
    error: ErrorDetail | None = None
    forget_ranges: bool = False


@dataclass(slots=True, eq=False)
class _Entry:
    change: Change
    records: tuple[PartRecord, ...]
    future: Future[None] = field(default_factory=Future)
    error: BaseException | None = None
    dropped: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(record.size_bytes for record in self.records)


class GroupCommit:
    """Makes changes durable on a thread of its own; safe to use from any thread. Close it."""

    def __init__(self, db: JobDatabase, spool: Spool) -> None:
        self._db = db
        self._spool = spool
        self._waiting: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self.groups = 0
        """Transactions so far."""

    def submit(self, change: Change) -> Future[None]:
        """Queue a change; the future is done when it is on the disk."""
        entry = _Entry(change, tuple(file.record(change.item) for file in change.files))
        with self._changed:
            if self._closed:
                raise Draining("the job store is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
                self._thread.start()
            self._waiting.append(entry)
            self._changed.notify()
        return entry.future

    def close(self) -> None:
        """Finish what was given, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            try:
                self._commit(group)
            except BaseException as error:  # noqa: BLE001 - goes to the callers who wait for the changes
                for entry in group:
                    entry.error = entry.error or error
            # A caller that waits for a latent to be stored does not wait for files of others to be removed.
            for entry in sorted(group, key=lambda entry: bool(entry.dropped)):
                self._finish(entry)

    def _finish(self, entry: _Entry) -> None:
        going = entry.dropped
        if entry.error is not None:
            # After any other error the rows may be on the disk: the next start compares.
            refused = isinstance(entry.error, DdibError)
            going = [record.file for record in entry.records] if refused else []
        try:
            self._spool.remove(entry.change.job_id, going)
        except Exception:
            # Whatever it is, the change is decided, and this thread must live: all jobs wait for it.
            log.exception("files of job %s could not be removed; the next start does", entry.change.job_id)
        if entry.error is not None:
            entry.future.set_exception(entry.error)
        else:
            entry.future.set_result(None)

    def _next(self) -> list[_Entry]:
        """All that waits, up to the limits; empty when closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            group: list[_Entry] = []
            size = 0
            while self._waiting and len(group) < MOST_CHANGES and size <= MOST_BYTES:
                group.append(self._waiting.popleft())
                size += group[-1].size_bytes
            return group

    def _commit(self, group: list[_Entry]) -> None:
        """New files first, then the rows that name them; the files that they replace go afterwards."""
        self.groups += 1
        self._check(group)
        going = [entry for entry in group if entry.error is None]
        self._write(going)
        with self._db.transaction() as db:
            for entry in going:
                if entry.error is None:
                    try:
                        self._apply(db, entry)
                    except DdibError as error:
                        entry.error = error

    def _check(self, group: list[_Entry]) -> None:
        """Before anything is written: a job that ended meanwhile has no folder any more."""
        for entry in group:
            try:
                _require_running(self._db, entry.change.job_id)
                _state_of(self._db, entry.change)
            except DdibError as error:
                entry.error = error

    def _write(self, entries: list[_Entry]) -> None:
        files, owners = [], []
        for entry in entries:
            for file, record in zip(entry.change.files, entry.records, strict=True):
                files.append(ToWrite(entry.change.job_id, record.file, file.data))
                owners.append(entry)
        for number, error in self._spool.put_together(files).items():
            owners[number].error = owners[number].error or error

    def _apply(self, db: sqlite3.Connection, entry: _Entry) -> None:
        """One change inside the group's transaction; what it raises, it raises before it has changed a row."""
        change = entry.change
        key = change.job_id, change.item
        _require_running(self._db, change.job_id)
        before = _state_of(self._db, change)
        state = before if change.state is None else change.state
        dropped: frozenset[Part] = frozenset()
        if change.state is not None:
            needed, dropped = transition(*key, before, state)
            if needed is not None and not self._has(entry, needed):
                raise StateConflict(
                    f"item {change.item} of job {change.job_id} cannot be {state}: it has no {needed}"
                )
        elif before not in PENDING_ITEMS:
            raise StateConflict(f"item {change.item} of job {change.job_id} is {before}")
        if change.forget_ranges:
            entry.dropped += delete_ranges(db, *key)
        for record in entry.records:
            entry.dropped += insert_part(db, *key, record)
        if change.state is not None or change.provenance is not None:
            update_item(db, *key, state, provenance=change.provenance, error=change.error)
        if change.state is not None:
            entry.dropped += delete_parts(db, *key, dropped)
        if change.state == ItemState.ENCODED:  # the whole latent takes the place of its ranges
            entry.dropped += delete_ranges(db, *key)

    def _has(self, entry: _Entry, part: Part) -> bool:
        if any(record.name == part for record in entry.records):
            return True
        key = entry.change.job_id, entry.change.item, part
        return bool(self._db.read("SELECT 1 FROM parts WHERE job_id = ? AND item = ? AND part = ?", key))


def transition(
    job_id: str, item: int, before: ItemState, after: ItemState
) -> tuple[Part | None, frozenset[Part]]:
    """What a step needs in the spool, and what the spool drops after it."""
    try:
        return TRANSITIONS[before, after]
    except KeyError:
        raise StateConflict(
            f"item {item} of job {job_id} is {before} and cannot become {after}",
            facts={"item": item, "state": before},
        ) from None


def _require_running(db: JobDatabase, job_id: str) -> None:
    rows = db.read("SELECT state FROM jobs WHERE job_id = ?", (job_id,))
    state = rows[0]["state"] if rows else "gone"
    if state != JobState.RUNNING:
        raise StateConflict(f"job {job_id} is {state}", facts={"state": state})


def _state_of(db: JobDatabase, change: Change) -> ItemState:
    rows = db.read("SELECT state FROM items WHERE job_id = ? AND item = ?", (change.job_id, change.item))
    if not rows:
        raise ItemNotFound(f"job {change.job_id} has no item {change.item}", facts={"item": change.item})
    return ItemState(rows[0]["state"])
