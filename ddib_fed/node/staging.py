"""Turns a job that arrives item by item into a queued job, or into nothing.

The rule: a job is accepted when `commit` returns, and not before; the same request is accepted once.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from ddib_fed.errors import MessageInvalid, QueueFull, RequestIdConflict
from ddib_fed.node.job_database import JobDatabase
from ddib_fed.node.job_records import ItemSpec, Job, JobLimits, JobSpec, Part, content_digest
from ddib_fed.node.job_rows import insert_job, job_from_row
from ddib_fed.node.spool import Spool


class Staging:
    """A job that is being received; made by `JobStore.stage`, used as a context manager from one thread.

    Leaving it without `commit` removes what was received.
    """

    def __init__(
        self,
        *,
        db: JobDatabase,
        spool: Spool,
        limits: JobLimits,
        clock: Callable[[], float],
        spec: JobSpec,
        reserve: Callable[[int], None],
    ) -> None:
        self._db = db
        self._spool = spool
        self._limits = limits
        self._clock = clock
        self._spec = spec
        self._reserve = reserve
        self._reserved = False
        self._job_id = ""
        self._items: list[ItemSpec] = []

    def __enter__(self) -> Self:
        """Begin to receive.

        Raises:
            QueueFull: The node has as many open jobs as it may; a request that was accepted before is let in.
        """
        if self._accepted() is None:
            self._reserve(1)
            self._reserved = True
        try:
            self._job_id = self._spool.new_job_id()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.abandon(self._job_id)
        self._release()

    def add(self, media_type: int, data: bytes) -> ItemSpec:
        """Keep the next item.

        Raises:
            QueueFull: The spool, or its disk, is full.
        """
        if self._spool.used_bytes + len(data) > self._limits.max_spool_bytes:
            raise QueueFull(
                "the spool is full",
                facts={"limit_bytes": self._limits.max_spool_bytes},
                retry_after_s=self._limits.retry_after_s,
            )
        item = ItemSpec(len(self._items), media_type, len(data), hashlib.sha256(data).digest())
        self._spool.stage(self._job_id, item.index, Part.INPUT, data)
        self._items.append(item)
        return item

    def commit(self) -> tuple[Job, bool]:
        """Accept the job; the job, and whether this request had been accepted before.

        Raises:
            MessageInvalid: It has no items.
            RequestIdConflict: The request id was used before with other content.
            QueueFull: The disk is full.
        """
        if not self._items:
            raise MessageInvalid("a job without items", facts={"field": "items"})
        content = content_digest(self._spec, self._items)
        earlier = self._accepted()
        if earlier is not None:
            return self._same(earlier, content), True
        self._spool.adopt(self._job_id)
        try:
            return self._insert(content)
        except BaseException:
            self._spool.remove_job(self._job_id)
            raise

    def _insert(self, content: bytes) -> tuple[Job, bool]:
        """The row after the files; the same request may have come on another thread meanwhile."""
        now = self._clock()
        spec = replace(self._spec, deadline_s=self._spec.deadline_s or self._limits.default_deadline_s)
        with self._db.transaction() as db:
            earlier = self._accepted()
            if earlier is None:
                expires = now + spec.deadline_s + self._limits.retention_s
                insert_job(db, self._job_id, spec, content, self._items, created=now, expires=expires)
        if earlier is not None:
            job = self._same(earlier, content)
            self._spool.remove_job(self._job_id)
            return job, True
        accepted = self._accepted()
        assert accepted is not None
        return self._job(accepted), False

    def _accepted(self) -> sqlite3.Row | None:
        rows = self._db.read(
            "SELECT * FROM jobs WHERE owner = ? AND request_id = ?",
            (self._spec.owner, self._spec.request_id),
        )
        return rows[0] if rows else None

    def _same(self, earlier: sqlite3.Row, content: bytes) -> Job:
        if earlier["content"] != content:
            raise RequestIdConflict(
                f"request {self._spec.request_id} is job {earlier['job_id']}, with other content",
                hint="use a new request id",
                facts={"job": earlier["job_id"]},
            )
        return self._job(earlier)

    def _job(self, row: sqlite3.Row) -> Job:
        items = self._db.read("SELECT * FROM items WHERE job_id = ? ORDER BY item", (row["job_id"],))
        return job_from_row(row, items)

    def _release(self) -> None:
        if self._reserved:
            self._reserved = False
            self._reserve(-1)
