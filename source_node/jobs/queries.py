"""Read access to jobs, items and their files.

Another's job is as good as none; bytes are checked against the digest they were written with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

from ddib_fed.errors import ChunkCorrupt, ItemNotFound, JobNotFound, StateConflict
from ddib_fed.wire.jobs import ItemState, JobState
from source_node.jobs.database import JobDatabase
from source_node.jobs.records import PENDING_ITEMS, Item, Job, Part, PartRecord
from source_node.jobs.rows import item_from_row, job_from_row, part_from_row
from source_node.jobs.spool import Spool

DEFAULT_LIST = 100
LONGEST_LIST = 1_000


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


class JobQueries:
    """What can be asked of a job store; `JobEndings` and `JobStore` add what changes it."""

    _db: JobDatabase
    _spool: Spool

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """A job with its items."""
        with self._db.unchanging():
            row = self._row(job_id, owner)
            items = self._db.read("SELECT * FROM items WHERE job_id = ? ORDER BY item", (job_id,))
        return job_from_row(row, items)

    def head(self, job_id: str, owner: str | None = None) -> Job:
        return job_from_row(self._row(job_id, owner))

    def item(self, job_id: str, item: int) -> Item:
        return self._item(job_id, item)

    def progress(self, job_id: str) -> Progress:
        """How many items of a job are in each state, without reading them."""
        rows = self._db.read(
            "SELECT state, count(*) AS n FROM items WHERE job_id = ? GROUP BY state", (job_id,)
        )
        return Progress({ItemState(row["state"]): row["n"] for row in rows})

    def progress_of(self, job_ids: Sequence[str]) -> Mapping[str, Progress]:
        """The same of several jobs, at most `LONGEST_LIST`, by their ids; without those that are gone."""
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

    def _in_states(self, job_id: str, states: Iterable[ItemState]) -> tuple[int, ...]:
        """Numbers of the items in these states, in order."""
        wanted = tuple(states)
        marks = ", ".join("?" * len(wanted))
        rows = self._db.read(
            f"SELECT item FROM items WHERE job_id = ? AND state IN ({marks}) ORDER BY item",  # noqa: S608 - marks
            (job_id, *wanted),
        )
        return tuple(row["item"] for row in rows)

    def first_failed(self, job_id: str) -> Item | None:
        failed = self._in_states(job_id, [ItemState.FAILED])
        return self._item(job_id, failed[0]) if failed else None

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
        known = dict.fromkeys(JobState, 0)
        return known | {JobState(row["state"]): row["n"] for row in rows}

    @property
    def spool_bytes(self) -> int:
        return self._spool.used_bytes

    def parts(self, job_id: str, item: int) -> Mapping[Part, PartRecord]:
        rows = self._db.read("SELECT * FROM parts WHERE job_id = ? AND item = ?", (job_id, item))
        return {record.part: record for record in map(part_from_row, rows) if record.range is None}

    def ranges(self, job_id: str, item: int) -> Mapping[int, PartRecord]:
        rows = self._db.read("SELECT * FROM parts WHERE job_id = ? AND item = ?", (job_id, item))
        return {record.range: record for record in map(part_from_row, rows) if record.range is not None}

    def read_range(self, job_id: str, item: int, record: PartRecord) -> bytes:
        """The file of a range; raises as `read_part`."""
        data = self._spool.get(job_id, record.file)
        if hashlib.sha256(data).digest() != record.sha256:
            raise _changed(job_id, item, record.name)
        return data

    def _part(self, job_id: str, item: int, part: Part | str) -> PartRecord:
        record = self.parts(job_id, item).get(Part(part))
        if record is None:
            raise ItemNotFound(f"item {item} of job {job_id} has no {part}", facts={"item": item})
        return record

    def read_part(self, job_id: str, item: int, part: Part | str) -> bytes:
        """A file of an item, checked against the digest that it was written with."""
        record = self._part(job_id, item, part)
        data = self._spool.get(job_id, record.file)
        if hashlib.sha256(data).digest() != record.sha256:
            raise _changed(job_id, item, part)
        return data

    def open_part(self, job_id: str, item: int, part: Part | str) -> BufferedReader:
        """As `read_part`, but a file open at its start, once its bytes were compared with their digest."""
        record = self._part(job_id, item, part)
        file = self._spool.open(job_id, record.file)
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
