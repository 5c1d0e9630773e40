"""Receives a job item by item; it is queued as a whole or not at all.

A job is accepted when `commit` returns, and not before; the same request is accepted once.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ddib_fed.errors import MessageInvalid, QueueFull, RequestIdConflict
from ddib_fed.node.interceptors import within_share
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.v1 import common_pb2
from ddib_fed.v1.translation_pb2 import JobHeader
from source_node.database import JobDatabase
from source_node.records import (
    OPEN_STATES,
    PENDING_ITEMS,
    Item,
    Job,
    JobLimits,
    Part,
    PartRecord,
    content_digest,
    insert_part,
    job_from_row,
)
from source_node.spool import Spool, StagedFile


@dataclass(frozen=True, slots=True)
class Due:
    """A queued job that may be tried now."""

    job_id: str
    owner: str
    target: str
    items: int = 0
    size_bytes: int = 0
    overdue: bool = False


class Queue:
    """The places of open jobs; safe to use from any thread."""

    def __init__(self, db: JobDatabase, limits: JobLimits) -> None:
        self._db = db
        self._limits = limits
        self._lock = threading.Lock()
        self._receiving: Counter[tuple[str, bool]] = Counter()

    @contextmanager
    def place(self, owner: str, target: str, away: Collection[str], now: float) -> Iterator[None]:
        """Hold a place while a job is received."""
        key = owner, target in away
        with self._lock:
            self._require(key, away, now)
            self._receiving[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._receiving[key] -= 1

    def _require(self, key: tuple[str, bool], away: Collection[str], now: float) -> None:
        owner, waits = key
        taken = self._open(away, now) + self._receiving
        of_all = sum(count for (_, other), count in taken.items() if other == waits)
        most, own = self._limits.max_open_jobs, taken[key]
        what = "wait for their peers" if waits else "are open"
        if of_all >= most:
            said = f"{of_all} jobs {what}"
        elif not within_share(own, most - of_all, most):
            said = f"{own} jobs of {owner} {what}, which is its share of {most}"
        else:
            return
        facts = {"limit_jobs": most, "jobs": of_all, "jobs_of_client": own}
        raise QueueFull(said, facts=facts, retry_after_s=self._limits.retry_after_s)

    def _open(self, away: Collection[str], now: float) -> Counter[tuple[str, bool]]:
        """Open jobs by client, and whether they wait."""
        rows = self._db.read(
            "SELECT owner, target, state, not_before FROM jobs WHERE state IN (?, ?)", tuple(OPEN_STATES)
        )
        return Counter(
            (
                row["owner"],
                row["state"] == JobState.QUEUED and (row["target"] in away or row["not_before"] > now),
            )
            for row in rows
        )

    def due(self, now: float) -> Sequence[Due]:
        """Queued jobs that need not wait any longer, oldest first."""
        rows = self._db.read(
            "SELECT jobs.job_id, owner, target, deadline, count(items.item) AS items,"
            " coalesce(sum(items.size_bytes), 0) AS size_bytes FROM jobs"
            " LEFT JOIN items ON items.job_id = jobs.job_id AND items.state IN (?, ?)"
            " WHERE jobs.state = ? AND (not_before <= ? OR deadline <= ?)"
            " GROUP BY jobs.job_id ORDER BY number",
            (*PENDING_ITEMS, JobState.QUEUED, now, now),
        )
        return [
            Due(
                row["job_id"],
                row["owner"],
                row["target"],
                row["items"],
                row["size_bytes"],
                overdue=row["deadline"] <= now,
            )
            for row in rows
        ]

    def spool_bytes(self, owner: str) -> int:
        """Of the files of a client's jobs."""
        rows = self._db.read(
            "SELECT coalesce(sum(size_bytes), 0) FROM parts"
            " WHERE job_id IN (SELECT job_id FROM jobs WHERE owner = ?)",
            (owner,),
        )
        return int(rows[0][0])

    def waiting_for(self, target: str) -> Sequence[str]:
        """Queued jobs for an institution."""
        rows = self._db.read(
            "SELECT job_id FROM jobs WHERE state = ? AND target = ? ORDER BY number",
            (JobState.QUEUED, target),
        )
        return [row["job_id"] for row in rows]


class Incoming:
    """The item that is coming, a `Sink`: on the disk and nowhere else."""

    def __init__(self, staged: StagedFile, before: Callable[[int], None]) -> None:
        self.staged = staged
        self._before = before

    def write(self, data: bytes | memoryview, /) -> None:
        self._before(len(data))
        self.staged.write(data)


class Staging:
    """A job that is being received; made by `JobStore.stage`, used as a context manager from one thread."""

    def __init__(
        self,
        *,
        db: JobDatabase,
        spool: Spool,
        limits: JobLimits,
        clock: Callable[[], float],
        owner: str,
        request: JobHeader,
        place: AbstractContextManager[None],
        share: Callable[[str, int], int],
        held_bytes: Callable[[str], int],
    ) -> None:
        self._db = db
        self._spool = spool
        self._limits = limits
        self._clock = clock
        self.owner = owner
        self._request = request
        self._place = place
        self._share = share
        self._held_bytes = held_bytes
        self._held = 0
        self._exits = ExitStack()
        self._staged = 0
        self._incoming: Incoming | None = None
        self._repeats = False
        self._job_id = ""
        self._items: list[Item] = []
        self._parts: list[tuple[int, PartRecord]] = []

    def __enter__(self) -> Self:
        self._repeats = self._accepted() is not None
        if not self._repeats:
            self._exits.enter_context(self._place)
        with ExitStack() as unless_entered:
            unless_entered.callback(self._exits.close)
            self._job_id = self._spool.new_job_id()
            self._held = self._held_bytes(self.owner)
            unless_entered.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._spool.abandon(self._job_id)
        self._share(self.owner, -self._staged)
        self._exits.close()

    @property
    def accepted_before(self) -> bool:
        return self._repeats

    def receive(self, size_bytes: int) -> Incoming:
        """A file on the disk for the next item; `keep` it once it is whole."""
        self._require_room(size_bytes)
        self._close()
        staged = self._spool.stage(self._job_id, _staged_name(len(self._items), Part.INPUT))
        self._incoming = Incoming(staged, self._before)
        return self._incoming

    def keep(self, media_type: int, sha256: bytes) -> Item:
        """What was received last is the next item, whole and of this digest; on the disk after `commit`."""
        assert self._incoming is not None
        staged = self._incoming.staged
        staged.close()
        self._incoming = None
        item = Item(len(self._items), ItemState.RECEIVED, media_type, staged.size_bytes, sha256)
        self._items.append(item)
        self._kept(item.index, Part.INPUT, media_type, item.size_bytes, sha256)
        return item

    def keep_decoded(self, data: bytes) -> None:
        """Keep the samples of the item that was kept last, so that it is not decoded again."""
        index = len(self._items) - 1
        self._before(len(data))
        staged = self._spool.stage(self._job_id, _staged_name(index, Part.DECODED))
        try:
            staged.write(data)
        finally:
            staged.close()
        digest = hashlib.sha256(data).digest()
        self._kept(index, Part.DECODED, common_pb2.MEDIA_TYPE_UNSPECIFIED, len(data), digest)

    def _kept(self, index: int, part: Part, media_type: int, size_bytes: int, sha256: bytes) -> None:
        record = PartRecord(part, media_type, size_bytes, sha256, _staged_name(index, part))
        self._parts.append((index, record))

    def read(self, item: int) -> bytes:
        return self._spool.read_staged(self._job_id, _staged_name(item, Part.INPUT))

    def add(self, media_type: int, data: bytes) -> Item:
        self.receive(len(data)).write(data)
        return self.keep(media_type, hashlib.sha256(data).digest())

    def _before(self, size_bytes: int) -> None:
        self._require_room(size_bytes)
        self._staged += size_bytes
        self._share(self.owner, size_bytes)

    def _require_room(self, size_bytes: int) -> None:
        limits, used, sending = self._limits, self._spool.used_bytes, self._share(self.owner, 0)
        own = self._held + sending
        for what, full, limit in (
            ("the spool is full", used + size_bytes > limits.max_spool_bytes, limits.max_spool_bytes),
            (
                "this client sends too much at once",
                sending + size_bytes > limits.max_staged_bytes,
                limits.max_staged_bytes,
            ),
            (
                "this client has its share of the spool",
                not within_share(own, limits.max_spool_bytes - used, limits.max_spool_bytes),
                own,
            ),
        ):
            if full:
                raise QueueFull(what, facts={"limit_bytes": limit}, retry_after_s=limits.retry_after_s)

    def _close(self) -> None:
        if self._incoming is not None:
            self._incoming.staged.close()
            self._incoming = None

    def commit(self) -> tuple[Job, bool]:
        """Accept the job; the job, and whether this request had been accepted before."""
        if not self._items:
            raise MessageInvalid("a job without items", facts={"field": "items"})
        content = content_digest(self._request, self._items)
        earlier = self._accepted()
        if earlier is not None:
            return self._same(earlier, content), True
        if self._repeats:  # it holds no place, and was not charged
            raise RequestIdConflict(
                f"the job of request {self._request.request_id} was deleted while the request came again",
                hint="submit it again with a new request id",
                facts={"job": "deleted while the request came again"},
            )
        durable = [record.file for _, record in self._parts if record.part == Part.INPUT]
        self._spool.adopt(self._job_id, durable)
        try:
            return self._insert(content)
        except BaseException:
            self._spool.remove_job(self._job_id)
            raise

    def _insert(self, content: bytes) -> tuple[Job, bool]:
        """The row after the files; the same request may have come on another thread meanwhile."""
        now = self._clock()
        request = JobHeader.FromString(self._request.SerializeToString())
        request.deadline_s = request.deadline_s or round(self._limits.default_deadline_s)
        with self._db.transaction() as db:
            earlier = self._accepted()
            if earlier is None:
                self._insert_rows(db, request, content, now + request.deadline_s)
        if earlier is not None:
            job = self._same(earlier, content)
            self._spool.remove_job(self._job_id)
            return job, True
        accepted = self._accepted()
        assert accepted is not None
        return self._job(accepted), False

    def _insert_rows(
        self, db: sqlite3.Connection, request: JobHeader, content: bytes, deadline: float
    ) -> None:
        """A queued job, its items, and their files."""
        job_id, expires = self._job_id, deadline + self._limits.retention_s
        db.execute(
            "INSERT INTO jobs"
            " (job_id, owner, request_id, content, request, state, created, expires, target, deadline)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                job_id,
                self.owner,
                request.request_id,
                content,
                request.SerializeToString(),
                JobState.QUEUED,
                time.time(),
                expires,
                request.target_institution,
                deadline,
            ),
        )
        db.executemany(
            "INSERT INTO items (job_id, item, state, media_type, size_bytes, sha256) VALUES (?, ?, ?, ?, ?, ?)",
            [
                (job_id, each.index, each.state, each.media_type, each.size_bytes, each.sha256)
                for each in self._items
            ],
        )
        for index, part in self._parts:
            insert_part(db, job_id, index, part)

    def _accepted(self) -> sqlite3.Row | None:
        rows = self._db.read(
            "SELECT * FROM jobs WHERE owner = ? AND request_id = ?",
            (self.owner, self._request.request_id),
        )
        return rows[0] if rows else None

    def _same(self, earlier: sqlite3.Row, content: bytes) -> Job:
        if earlier["content"] != content:
            raise RequestIdConflict(
                f"request {self._request.request_id} is job {earlier['job_id']}, with other content",
                hint="use a new request id",
                facts={"job": earlier["job_id"]},
            )
        return self._job(earlier)

    def _job(self, row: sqlite3.Row) -> Job:
        items = self._db.read("SELECT * FROM items WHERE job_id = ? ORDER BY item", (row["job_id"],))
        return job_from_row(row, items)


def _staged_name(item: int, part: Part) -> str:
    return f"{item}.{part}"
