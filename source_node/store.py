"""The jobs of a source node, with their items and files: received, worked on, ended.

Each change is one write to the node's database, together with the line of the audit log that speaks of it. A file is
on the disk before the row that names it, and goes after it. Another's job is as good as none; bytes are checked against
the digest they were written with.

An item goes RECEIVED, ENCODED, DECODED, DELIVERED, or from one of the first two to FAILED.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from ddib_fed.errors import (
    ChunkCorrupt,
    DdibError,
    ItemNotFound,
    MessageInvalid,
    QueueFull,
    RequestIdConflict,
    StateConflict,
)
from ddib_fed.node.server import within_share
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.security.audit import AuditLog, Value
from ddib_fed.store import Transaction
from ddib_fed.v1 import common_pb2
from ddib_fed.v1.common_pb2 import ErrorDetail
from ddib_fed.v1.translation_pb2 import JobHeader
from source_node.records import (
    CANCELLED_ERROR,
    JOB_OF_REQUEST,
    OPEN_STATES,
    PARTS_OF,
    PENDING_ITEMS,
    DueJob,
    ItemCounts,
    JobLimits,
    NewFile,
    SpoolFile,
    SpoolPart,
    StoredItem,
    StoredJob,
    content_digest,
    files_from,
    insert_part,
    item_from_row,
    job_from_row,
    own_row,
    require_digest,
    require_running,
    save_state,
    state_of,
    transition,
    update_item,
)
from source_node.spool import GrowingFile, Reserve, Spool


class JobStore:
    """The jobs of one node; safe to use from any thread. Close it before the node's database."""

    def __init__(
        self,
        audit: AuditLog,
        spool: Path,
        limits: JobLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or JobLimits()
        self.spool, self._reserve = Spool(spool), Reserve(spool.parent)
        self._audit, self._store = audit, audit.store
        self.read = self._store.read
        self._clock, self._before = clock, self._saved("open_s") - clock()
        self._lock = threading.Lock()
        self._receiving: Counter[tuple[str, bool]] = Counter()
        self._staged_bytes: Counter[str] = Counter()
        rows = self.read("SELECT job_id, file FROM parts")
        self.swept_files = self.spool.sweep({(row["job_id"], row["file"]) for row in rows})
        self.boot = int(self._saved("boot")) + 1
        """How many times the store was opened, this time included."""
        self._store.write(lambda write: save_state(write, "boot", self.boot)).result()

    def _saved(self, key: str) -> float:
        rows = self.read("SELECT value FROM node_state WHERE key = ?", (key,))
        return float(rows[0]["value"]) if rows else 0.0

    def now(self) -> float:
        """Seconds in which the store was open, now and before: deadlines count them."""
        return self._before + self._clock()

    def unix_time(self, moment: float) -> float:
        return time.time() + moment - self.now()

    def close(self) -> None:
        """Save the time; the database stays open."""
        with suppress(OSError, DdibError):  # or as after a kill
            self._store.write(lambda write: save_state(write, "open_s", self.now())).result()

    # Read

    def get(self, job_id: str, owner: str | None = None) -> StoredJob:
        """A job with its items."""
        with self._store.snapshot() as read:
            rows = read("SELECT * FROM jobs WHERE job_id = ?", (job_id,))
            items = read("SELECT * FROM items WHERE job_id = ? ORDER BY item", (job_id,))
        return job_from_row(own_row(rows, job_id, owner), items)

    def head(self, job_id: str, owner: str | None = None) -> StoredJob:
        """A job without its items."""
        return job_from_row(
            own_row(self.read("SELECT * FROM jobs WHERE job_id = ?", (job_id,)), job_id, owner)
        )

    def item(self, job_id: str, item: int) -> StoredItem:
        rows = self.read("SELECT * FROM items WHERE job_id = ? AND item = ?", (job_id, item))
        if not rows:
            raise ItemNotFound(f"job {job_id} has no item {item}", facts={"item": item})
        return item_from_row(rows[0])

    def progress(self, job_id: str) -> ItemCounts:
        return self.progress_of([job_id]).get(job_id, ItemCounts())

    def progress_of(self, job_ids: Sequence[str]) -> Mapping[str, ItemCounts]:
        """How many items are in each state, of at most 1,000 jobs; without those that are gone."""
        rows = self.read(
            f"SELECT job_id, state, count(*) AS n FROM items WHERE job_id IN ({', '.join('?' * len(job_ids))})"  # noqa: S608 - marks
            " GROUP BY job_id, state",
            tuple(job_ids),
        )
        found: dict[str, dict[ItemState, int]] = {}
        for row in rows:
            found.setdefault(row["job_id"], {})[ItemState(row["state"])] = row["n"]
        return {job_id: ItemCounts(by_state) for job_id, by_state in found.items()}

    def first_failed(self, job_id: str) -> StoredItem | None:
        rows = self.read(
            "SELECT * FROM items WHERE job_id = ? AND state = ? ORDER BY item LIMIT 1",
            (job_id, ItemState.FAILED),
        )
        return item_from_row(rows[0]) if rows else None

    def ready(self, job_id: str) -> tuple[int, ...]:
        rows = self.read(
            "SELECT item FROM items WHERE job_id = ? AND state = ? ORDER BY item",
            (job_id, ItemState.DECODED),
        )
        return tuple(row["item"] for row in rows)

    def list(self, owner: str, limit: int = 100) -> tuple[StoredJob, ...]:
        """The owner's jobs, newest first, without items."""
        rows = self.read("SELECT * FROM jobs WHERE owner = ? ORDER BY number DESC LIMIT ?", (owner, limit))
        return tuple(map(job_from_row, rows))

    def counts(self) -> Mapping[JobState, int]:
        """How many jobs are in each state."""
        rows = self.read("SELECT state, count(*) AS n FROM jobs GROUP BY state")
        return dict.fromkeys(JobState, 0) | {JobState(row["state"]): row["n"] for row in rows}

    def parts(self, job_id: str, item: int) -> Mapping[tuple[SpoolPart, int], SpoolFile]:
        """The files of an item, by part and range."""
        return files_from(self.read(PARTS_OF, (job_id, item)))

    def read_part(self, job_id: str, item: int, part: SpoolPart, place: int = 0) -> bytes:
        """A file of an item, checked against the digest that it was written with."""
        record = self._part(job_id, item, part, place)
        data = self.spool.read(job_id, record.file)
        require_digest(hashlib.sha256(data).digest(), record, job_id, item)
        return data

    def open_part(self, job_id: str, item: int, part: SpoolPart) -> BufferedReader:
        """As `read_part`, but a file open at its start."""
        record = self._part(job_id, item, part)
        file = self.spool.open(job_id, record.file)
        try:
            require_digest(hashlib.file_digest(file, "sha256").digest(), record, job_id, item)
        except ChunkCorrupt:
            file.close()
            raise
        file.seek(0)
        return file

    def _part(self, job_id: str, item: int, part: SpoolPart, place: int = 0) -> SpoolFile:
        record = self.parts(job_id, item).get((part, place))
        if record is None:
            raise ItemNotFound(f"item {item} of job {job_id} has no {part}", facts={"item": item})
        return record

    # Receive

    @contextmanager
    def stage(self, owner: str, request: JobHeader, away: Collection[str] = ()) -> Iterator[Staging]:
        """Receive a job: ``with store.stage(owner, request) as staging: staging.receive(...); staging.commit()``."""
        key = owner, request.target_institution in away
        repeats = self.accepted(owner, request.request_id) is not None
        if not repeats:
            with self._lock:
                self._require_place(key, away)
                self._receiving[key] += 1
        try:
            staging = Staging(self, owner, request, repeats=repeats)
            try:
                yield staging
            finally:
                staging.leave()
        finally:
            if not repeats:
                with self._lock:
                    self._receiving[key] -= 1

    def _require_place(self, key: tuple[str, bool], away: Collection[str]) -> None:
        """Jobs whose peer is away wait in places of their own."""
        (owner, waits), now = key, self.now()
        rows = self.read(
            "SELECT owner, target, state, not_before FROM jobs WHERE state IN (?, ?)", OPEN_STATES
        )
        taken = self._receiving + Counter(
            (
                row["owner"],
                row["state"] == JobState.QUEUED and (row["target"] in away or row["not_before"] > now),
            )
            for row in rows
        )
        of_all = sum(count for (_, other), count in taken.items() if other == waits)
        most, own = self.limits.max_open_jobs, taken[key]
        what = "wait for their peers" if waits else "are open"
        if of_all >= most:
            said = f"{of_all} jobs {what}"
        elif not within_share(own, most - of_all, most):
            said = f"{own} jobs of {owner} {what}, which is its share of {most}"
        else:
            return
        facts = {"limit_jobs": most, "jobs": of_all, "jobs_of_client": own}
        raise QueueFull(said, facts=facts, retry_after_s=self.limits.retry_after_s)

    def share(self, owner: str, change: int = 0) -> int:
        """Count bytes of a client's jobs that are being received; how many there are now."""
        with self._lock:
            self._staged_bytes[owner] += change
            now = self._staged_bytes[owner]
            if now <= 0:
                del self._staged_bytes[owner]
            return now

    def spool_bytes(self, owner: str) -> int:
        """Of the files of a client's jobs."""
        rows = self.read(
            "SELECT coalesce(sum(size_bytes), 0) FROM parts"
            " WHERE job_id IN (SELECT job_id FROM jobs WHERE owner = ?)",
            (owner,),
        )
        return int(rows[0][0])

    def accepted(self, owner: str, request_id: str) -> sqlite3.Row | None:
        """The row of the job that a request became."""
        rows = self.read(JOB_OF_REQUEST, (owner, request_id))
        return rows[0] if rows else None

    def insert(
        self,
        job_id: str,
        owner: str,
        request: JobHeader,
        items: Sequence[StoredItem],
        files: Sequence[tuple[int, SpoolFile]],
        *,
        new: bool,
    ) -> tuple[str, bool]:
        """Queue a job whose files are on the disk; its id, and whether the request had been accepted before.

        `new` is False for a request that is accepted only as the repetition that it was when it began.
        """
        content, now = content_digest(request, items), self.now()
        request = JobHeader.FromString(request.SerializeToString())
        request.deadline_s = request.deadline_s or round(self.limits.default_deadline_s)
        deadline = now + request.deadline_s
        # fmt: off
        row = (
            job_id, owner, request.request_id, content, request.SerializeToString(), request.target_institution,
            JobState.QUEUED, time.time(), deadline, deadline + self.limits.retention_s,
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
            db.execute(
                "INSERT INTO jobs"
                " (job_id, owner, request_id, content, request, target, state, created, deadline, expires)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            db.executemany(
                "INSERT INTO items (job_id, item, state, media_type, size_bytes, sha256) VALUES (?, ?, ?, ?, ?, ?)",
                [(job_id, i.index, i.state, i.media_type, i.size_bytes, i.sha256) for i in items],
            )
            for item, file in files:
                insert_part(db, job_id, item, file)
            values: dict[str, Value] = {"target": request.target_institution, "items": len(items)}
            self._audit.append(db, "job_accepted", job=job_id, client=owner, **values)
            return job_id, False

        return self._store.write(write).result()

    # Work

    def due(self) -> Sequence[DueJob]:
        """Queued jobs that need not wait any longer, oldest first."""
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
        """A queued job, running from now on; None when it is queued no more."""
        changed = self._store.write(
            lambda db: (
                db.execute(
                    "UPDATE jobs SET state = ?, started = ? WHERE job_id = ? AND state = ?",
                    (JobState.RUNNING, self.now(), job_id, JobState.QUEUED),
                ).rowcount
            )
        ).result()
        return self.get(job_id) if changed else None

    def running(self) -> Sequence[str]:
        return [
            row["job_id"] for row in self.read("SELECT job_id FROM jobs WHERE state = ?", (JobState.RUNNING,))
        ]

    def waiting_for(self, target: str) -> Sequence[str]:
        """Queued jobs for an institution."""
        rows = self.read(
            "SELECT job_id FROM jobs WHERE state = ? AND target = ? ORDER BY number",
            (JobState.QUEUED, target),
        )
        return [row["job_id"] for row in rows]

    def put_back(self, job_id: str, delay_s: float, error: ErrorDetail | None = None) -> None:
        """Queue a running job again, to be claimed later: its peer is away and others need the worker."""

        def write(db: Transaction) -> None:
            require_running(db, job_id)
            db.execute(
                "UPDATE jobs SET state = ?, not_before = ?, error = coalesce(?, error) WHERE job_id = ?",
                (JobState.QUEUED, self.now() + delay_s, error and error.SerializeToString(), job_id),
            )

        self._store.write(write).result()

    def release_running(self) -> tuple[StoredJob, ...]:
        """At start: queue again what was left running, or end it when it was to be cancelled; those that ended."""
        self._store.write(
            lambda db: db.execute("UPDATE jobs SET not_before = 0 WHERE state = ?", (JobState.QUEUED,))
        ).result()
        ended = []
        for job_id in self.running():
            if self.is_cancelled(job_id):
                self.finish(job_id, JobState.CANCELLED)
                ended.append(self.get(job_id))
            else:
                self.put_back(job_id, 0)
        return tuple(ended)

    def keep(
        self,
        job_id: str,
        item: int,
        *files: NewFile,
        state: ItemState | None = None,
        provenance: Mapping[str, Any] | None = None,
        error: ErrorDetail | None = None,
    ) -> Future[None]:
        """Keep files of an item of a running job, and take it further, all of it or nothing."""
        digests = [hashlib.sha256(file.data).digest() for file in files]

        def write(db: Transaction) -> None:
            require_running(db, job_id)
            before = state_of(db, job_id, item)
            needed, dropped = None, frozenset[SpoolPart]()
            if state is not None:
                needed, dropped = transition(job_id, item, before, state)
            elif before not in PENDING_ITEMS:
                raise StateConflict(f"item {item} of job {job_id} is {before}")
            there = files_from(db.read(PARTS_OF, (job_id, item)))
            if needed and not any(
                part == needed for part, _ in [*there, *((f.part, f.range) for f in files)]
            ):
                raise StateConflict(f"item {item} of job {job_id} cannot be {state}: it has no {needed}")
            self._drop(db, job_id, item, [file for file in there.values() if file.part in dropped])
            for file, digest in zip(files, digests, strict=True):
                self._drop(
                    db, job_id, item, [each for key, each in there.items() if key == (file.part, file.range)]
                )
                name = self.spool.put(db, job_id, item, file.part, file.data)
                row = SpoolFile(file.part, file.range, name, file.media_type, len(file.data), digest)
                insert_part(db, job_id, item, row)
            if state is not None or provenance is not None:
                update_item(db, job_id, item, state or before, provenance=provenance, error=error)

        return self._store.write(write, size_bytes=sum(len(file.data) for file in files))

    # End

    def finish(self, job_id: str, state: JobState | str, error: ErrorDetail | None = None) -> None:
        """End a running job, once. Items left to do fail with it; decoded ones wait for the client."""
        state = JobState(state)

        def write(db: Transaction) -> None:
            require_running(db, job_id)
            self._end(db, job_id, state, error)
            reason = error.reason if error else CANCELLED_ERROR.reason if state == JobState.CANCELLED else ""
            self._audit.append(db, f"job_{state.lower()}", job=job_id, reason=reason)

        self._store.write(write).result()

    def is_cancelled(self, job_id: str) -> bool:
        """Whether the client of an open job has asked for its end."""
        rows = self.read("SELECT cancel_requested, state FROM jobs WHERE job_id = ?", (job_id,))
        return bool(rows and rows[0]["cancel_requested"] and rows[0]["state"] in OPEN_STATES)

    def cancel(self, job_id: str, owner: str) -> JobState:
        """Stop a job: at once when it is queued, at its next step when it runs; the state that it has now."""

        def write(db: Transaction) -> JobState:
            row = own_row(db.read("SELECT * FROM jobs WHERE job_id = ?", (job_id,)), job_id, owner)
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
        """Write down that results go to a client, before they do."""
        self._reserve.making_room(
            lambda: self._audit.write("results_sent", job=job_id, client=owner, items=list(map(str, items)))
        )

    def acknowledge(self, job_id: str, owner: str, items: Iterable[tuple[int, bytes]]) -> int:
        """The client has written these items: remove their files; how many are still to be delivered."""
        digests = dict(items)

        def write(db: Transaction) -> None:
            own_row(db.read("SELECT * FROM jobs WHERE job_id = ?", (job_id,)), job_id, owner)
            delivered: list[str] = []
            for item, sha256 in digests.items():
                state = state_of(db, job_id, item)
                if state == ItemState.DELIVERED:
                    continue
                transition(job_id, item, state, ItemState.DELIVERED)
                there = files_from(db.read(PARTS_OF, (job_id, item)))
                if there[SpoolPart.TRANSLATION, 0].sha256 != sha256:
                    raise ChunkCorrupt(
                        f"item {item} of job {job_id} was written with another digest", facts={"item": item}
                    )
                self._drop(db, job_id, item, there.values())
                update_item(db, job_id, item, ItemState.DELIVERED)
                delivered.append(str(item))
            if delivered:
                self._audit.append(db, "items_delivered", job=job_id, client=owner, items=delivered)

        self._reserve.making_room(lambda: self._store.write(write).result())
        progress = self.progress(job_id)
        return progress.items - progress.count(ItemState.DELIVERED, ItemState.FAILED)

    def delete(self, job_id: str, owner: str) -> None:
        """Remove an ended job and all that is kept of it."""

        def write(db: Transaction) -> None:
            row = own_row(db.read("SELECT * FROM jobs WHERE job_id = ?", (job_id,)), job_id, owner)
            if not (state := JobState(row["state"])).ended:
                raise StateConflict(
                    f"job {job_id} is {state}", hint=f"ddib job cancel {job_id}", facts={"state": state}
                )
            self._remove(db, "job_deleted", job_id, owner)

        self._reserve.making_room(lambda: self._store.write(write).result())

    def expire(self) -> int:
        """Remove ended jobs that nobody fetched in time; how many. Also saves the time, against a kill."""

        def write(db: Transaction) -> int:
            save_state(db, "open_s", self.now())
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
        for row in rows:
            update_item(db, job_id, row["item"], ItemState.FAILED, error=error)
            self._drop(db, job_id, row["item"], files_from(db.read(PARTS_OF, (job_id, row["item"]))).values())
        ended, expires = time.time(), self.now() + self.limits.retention_s
        db.execute(
            "UPDATE jobs SET state = ?, finished = ?, expires = ?, error = ? WHERE job_id = ?",
            (state, ended, expires, error and error.SerializeToString(), job_id),
        )

    def _drop(self, db: Transaction, job_id: str, item: int, files: Collection[SpoolFile]) -> None:
        """Forget files of an item; they go when the transaction is on the disk."""
        if not files:
            return
        db.executemany(
            "DELETE FROM parts WHERE job_id = ? AND item = ? AND part = ? AND range = ?",
            [(job_id, item, each.part, each.range) for each in files],
        )
        db.afterwards.append(lambda: self.spool.remove(job_id, [each.file for each in files]))


class Staging:
    """A job that is being received; made by `JobStore.stage`, used from one thread."""

    def __init__(self, store: JobStore, owner: str, request: JobHeader, *, repeats: bool) -> None:
        self.owner = owner
        self.accepted_before = repeats
        self._store, self._request = store, request
        self._job_id = store.spool.new_job()
        self._held = store.spool_bytes(owner)
        self._staged = 0
        self._incoming: GrowingFile | None = None
        self._items: list[StoredItem] = []
        self._files: list[tuple[int, SpoolFile]] = []
        self.kept = False

    def leave(self) -> None:
        """Nothing more comes; what was not accepted goes."""
        self._close()
        if not self.kept:
            self._store.spool.remove_job(self._job_id)
        self._store.share(self.owner, -self._staged)

    def receive(self, size_bytes: int) -> Staging:
        """A file on the disk for the next item, a `Sink`; `keep` it once it is whole."""
        self._require_room(size_bytes)
        self._close()
        self._incoming = self._store.spool.new_file(self._job_id, len(self._items), SpoolPart.INPUT)
        return self

    def write(self, data: bytes | memoryview, /) -> None:
        assert self._incoming is not None
        self._take(len(data))
        self._incoming.write(data)

    def keep(self, media_type: int, sha256: bytes) -> StoredItem:
        """What was received last is the next item, whole and of this digest; on the disk after `commit`."""
        file = self._incoming
        assert file is not None
        self._close()
        item = StoredItem(len(self._items), ItemState.RECEIVED, media_type, file.size_bytes, sha256)
        row = SpoolFile(SpoolPart.INPUT, 0, file.name, media_type, file.size_bytes, sha256)
        self._items.append(item)
        self._files.append((item.index, row))
        return item

    def keep_decoded(self, data: bytes) -> None:
        """Keep the samples of the item that was kept last, so that it is not decoded again."""
        index = len(self._items) - 1
        self._take(len(data))
        file = self._store.spool.new_file(self._job_id, index, SpoolPart.DECODED)
        try:
            file.write(data)
        finally:
            file.close()
        digest, media_type = hashlib.sha256(data).digest(), common_pb2.MEDIA_TYPE_UNSPECIFIED
        self._files.append((index, SpoolFile(SpoolPart.DECODED, 0, file.name, media_type, len(data), digest)))

    def read(self, item: int) -> bytes:
        name = next(row.file for index, row in self._files if index == item and row.part == SpoolPart.INPUT)
        return self._store.spool.read(self._job_id, name)

    def _take(self, size_bytes: int) -> None:
        self._require_room(size_bytes)
        self._staged += size_bytes
        self._store.share(self.owner, size_bytes)

    def _require_room(self, size_bytes: int) -> None:
        limits, used, sending = (
            self._store.limits,
            self._store.spool.used_bytes,
            self._store.share(self.owner),
        )
        own, most = self._held + sending, limits.max_spool_bytes
        for what, full, limit in (
            ("the spool is full", used + size_bytes > most, most),
            (
                "this client sends too much at once",
                sending + size_bytes > limits.max_staged_bytes,
                limits.max_staged_bytes,
            ),
            ("this client has its share of the spool", not within_share(own, most - used, most), own),
        ):
            if full:
                raise QueueFull(what, facts={"limit_bytes": limit}, retry_after_s=limits.retry_after_s)

    def _close(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None

    def commit(self) -> tuple[StoredJob, bool]:
        """Accept the job; the job, and whether this request had been accepted before."""
        if not self._items:
            raise MessageInvalid("a job without items", facts={"field": "items"})
        if not self.accepted_before:
            # Samples that a power cut takes are decoded again.
            self._store.spool.sync(
                self._job_id, [row.file for _, row in self._files if row.part == SpoolPart.INPUT]
            )
        try:
            job_id, repeated = self._store.insert(
                self._job_id,
                self.owner,
                self._request,
                self._items,
                self._files,
                new=not self.accepted_before,
            )
        except OSError:
            self.kept = True  # the rows may be on the disk: the next start compares
            raise
        self.kept = not repeated
        return self._store.get(job_id), repeated
