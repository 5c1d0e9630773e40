"""The job store: jobs that outlive the process, each claimed by one worker at a time.

What a method has returned is on the disk; files are written before the row that names them and
removed after it, so a kill leaves at most files without a row, which the next start sweeps.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddib_fed.errors import DdibError, StateConflict
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.jobs import ItemState, JobState
from source_node.jobs.database import JobDatabase
from source_node.jobs.endings import JobEndings
from source_node.jobs.group_commit import Change, GroupCommit, NewFile
from source_node.jobs.queue import Due, Queue
from source_node.jobs.records import (
    ErrorRecord,
    Item,
    ItemSpec,
    Job,
    JobLimits,
    JobSpec,
    Part,
    PartRecord,
)
from source_node.jobs.rows import postpone_job, save_state
from source_node.jobs.spool import Spool
from source_node.jobs.staging import Staging

__all__ = [
    "Change",
    "ErrorRecord",
    "Item",
    "ItemSpec",
    "Job",
    "JobLimits",
    "JobSpec",
    "JobStore",
    "NewFile",
    "Part",
    "PartRecord",
    "Staging",
]


def _oldest(due: Sequence[Due]) -> Due | None:
    return due[0] if due else None


class JobStore(JobEndings):
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
        before, opened = self._saved("open_s"), clock()
        self._clock = lambda: before + clock() - opened
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
        return self._clock()

    def unix_time(self, moment: float) -> float:
        return time.time() + moment - self.now()

    def close(self) -> None:
        """Finish the changes that were given, and let another process have the store."""
        self._commits.close()
        if not self._db.closed:
            with suppress(OSError, DdibError), self._db.transaction() as db:  # or as after a kill
                save_state(db, "open_s", self.now())
        self._db.close()

    # Receive

    def stage(self, spec: JobSpec, away: Collection[str] = ()) -> Staging:
        """Receive a job: ``with store.stage(spec) as staging: staging.add(...); staging.commit()``."""
        return Staging(
            db=self._db,
            spool=self._spool,
            limits=self.limits,
            clock=self._clock,
            spec=spec,
            place=self._queue.place(spec, away, self._clock()),
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
        now = self._clock()
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

    def put_back(self, job_id: str, delay_s: float, error: ErrorRecord | None = None) -> None:
        """Queue a running job again, to be claimed later: its peer is away and others need the worker."""
        with self._db.transaction() as db:
            self._require_running(job_id)
            postpone_job(db, job_id, not_before=self._clock() + delay_s, error=error)

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
        self,
        job_id: str,
        item: int,
        part: Part | str,
        data: bytes,
        media_type: int = common_pb2.MEDIA_TYPE_NPY,
    ) -> None:
        self.keep(Change(job_id, item, (NewFile(Part(part), data, media_type),))).result()

    def advance(
        self, job_id: str, item: int, state: ItemState | str, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """As `keep`, one step; on the disk when this returns."""
        state = ItemState(state)
        if state in {ItemState.DELIVERED, ItemState.FAILED}:
            raise StateConflict(f"an item becomes {state} by acknowledge() or fail_item()")
        self.keep(Change(job_id, item, state=state, provenance=provenance)).result()

    def fail_item(self, job_id: str, item: int, error: ErrorRecord) -> None:
        self.keep(Change(job_id, item, state=ItemState.FAILED, error=error)).result()

    def finish(self, job_id: str, state: JobState | str, error: ErrorRecord | None = None) -> None:
        """End a running job, once. Items left to do fail with it; decoded ones wait for the client."""
        with self._db.transaction() as db:
            self._require_running(job_id)
            dropped = self._end(db, job_id, JobState(state), error)
        self._after_end(job_id, dropped)
