"""Which jobs are let in, and in which order they are due: clients have shares, and jobs that wait for a peer are apart.

A job waits when its peer is away, or said when to come back. Jobs that wait take none of the places of those that can
run: they have as many places of their own. Of either, a client may have a share, so that others always find some.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ddib_fed.errors import QueueFull
from ddib_fed.server.interceptors import within_share
from ddib_fed.wire.jobs import JobState
from source_node.jobs.database import JobDatabase
from source_node.jobs.records import OPEN_STATES, PENDING_ITEMS, JobLimits, JobSpec


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
    def place(self, spec: JobSpec, away: Collection[str], now: float) -> Iterator[None]:
        """Hold a place while a job is received."""
        key = spec.owner, spec.target_institution in away
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
