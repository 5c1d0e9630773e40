"""Read access to jobs, items and their files.

Another's job is as good as none; bytes are checked against the digest they were written with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BufferedReader
from typing import Any

from ddib_fed.errors import ChunkCorrupt, ItemNotFound, JobNotFound, StateConflict
from ddib_fed.wire.jobs import JobState
from source_node.jobs.database import JobDatabase
from source_node.jobs.records import Item, Job, Part, PartRecord
from source_node.jobs.rows import item_from_row, job_from_row, part_from_row
from source_node.jobs.spool import Spool

DEFAULT_LIST = 100
LONGEST_LIST = 1_000


class JobQueries:
    """What can be asked of a job store; `JobStore` adds what changes it."""

    _db: JobDatabase
    _spool: Spool

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """A job with its items.

        Args:
            job_id: Which.
            owner: The client that asks; None for the node itself.

        Raises:
            JobNotFound: There is none, or it is another's.
        """
        with self._db.unchanging():
            row = self._row(job_id, owner)
            items = self._db.read("SELECT * FROM items WHERE job_id = ? ORDER BY item", (job_id,))
        return job_from_row(row, items)

    def list(self, owner: str, limit: int = DEFAULT_LIST) -> tuple[Job, ...]:
        """The owner's jobs, newest first, without items; at most `limit` (0 for 100, never over 1,000)."""
        rows = self._db.read(
            "SELECT * FROM jobs WHERE owner = ? ORDER BY number DESC LIMIT ?",
            (owner, min(limit or DEFAULT_LIST, LONGEST_LIST)),
        )
        return tuple(map(job_from_row, rows))

    def counts(self) -> Mapping[JobState, int]:
        """How many jobs are in each state."""
        rows = self._db.read("SELECT state, count(*) AS n FROM jobs GROUP BY state")
        known = dict.fromkeys((state for state in JobState if state is not JobState.UNKNOWN), 0)
        return known | {JobState(row["state"]): row["n"] for row in rows}

    @property
    def spool_bytes(self) -> int:
        """Bytes that all jobs' files take."""
        return self._spool.used_bytes

    def parts(self, job_id: str, item: int) -> Mapping[Part, PartRecord]:
        """What the spool has of an item."""
        rows = self._db.read("SELECT * FROM parts WHERE job_id = ? AND item = ?", (job_id, item))
        return {record.part: record for record in map(part_from_row, rows)}

    def _part(self, job_id: str, item: int, part: Part | str) -> PartRecord:
        record = self.parts(job_id, item).get(Part(part))
        if record is None:
            raise ItemNotFound(f"item {item} of job {job_id} has no {part}", facts={"item": item})
        return record

    def read_part(self, job_id: str, item: int, part: Part | str) -> bytes:
        """A file of an item, checked against the digest that it was written with.

        Raises:
            ItemNotFound: The spool has no such file (any more).
            ChunkCorrupt: The disk gave back other bytes.
        """
        record = self._part(job_id, item, part)
        data = self._spool.get(job_id, item, Part(part))
        if hashlib.sha256(data).digest() != record.sha256:
            raise _changed(job_id, item, part)
        return data

    def open_part(self, job_id: str, item: int, part: Part | str) -> BufferedReader:
        """As `read_part`, but a file open at its start, once its bytes were compared with their digest.

        Raises:
            ItemNotFound: The spool has no such file (any more).
            ChunkCorrupt: The disk gave back other bytes.
        """
        record = self._part(job_id, item, part)
        file = self._spool.open(job_id, item, Part(part))
        if hashlib.file_digest(file, "sha256").digest() != record.sha256:
            file.close()
            raise _changed(job_id, item, part)
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

    def _item(self, job_id: str, item: int) -> Item:
        rows = self._db.read("SELECT * FROM items WHERE job_id = ? AND item = ?", (job_id, item))
        if not rows:
            raise ItemNotFound(f"job {job_id} has no item {item}", facts={"item": item})
        return item_from_row(rows[0])


def _changed(job_id: str, item: int, part: Part | str) -> ChunkCorrupt:
    return ChunkCorrupt(f"{part} of item {item} of job {job_id} has changed on disk", facts={"item": item})
