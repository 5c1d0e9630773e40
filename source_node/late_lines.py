"""Lines of the audit log that a kill left out: the job was in the database, and the process ended before its line.

At its start, before a client can call, a node compares the jobs of late with the end of the log, and writes what is
missing, marked `late`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ddib_fed.trust.audit.log import AuditLog
from ddib_fed.trust.audit.recent import Recent, recent
from ddib_fed.wire.jobs import JobState
from source_node.jobs.records import Job
from source_node.jobs.store import JobStore

log = logging.getLogger(__name__)

SLACK_S: Final = 60.0
"""A line is written at most so long after its job was committed."""
ENDS: Final = frozenset({"job_finished", "job_failed", "job_cancelled"})


def write_late_lines(store: JobStore, audit: AuditLog, path: Path) -> int:
    """Write the lines of accepted and ended jobs that the end of the log lacks.

    Jobs from before the part of the log that is looked at were compared at an earlier start.

    Args:
        store: The jobs; nothing else changes them meanwhile.
        audit: The log.
        path: Its file.

    Returns:
        How many were written.

    Raises:
        OSError: The log cannot be read or written.
    """
    end = recent(path)
    late = list(_missing(store, end))
    for act, values in late:
        audit.write(act, **values, late=True)
    if late:
        log.warning("the audit log lacked %d lines of jobs, as after a kill; they are marked late", len(late))
    return len(late)


def _missing(store: JobStore, end: Recent) -> Iterator[tuple[str, dict[str, Any]]]:
    since = end.since if end.whole else end.since + SLACK_S
    there = {(line.get("act"), line.get("job")) for line in end.lines}
    for job in store.since(since):
        if job.created >= since and ("job_accepted", job.job_id) not in there:
            yield "job_accepted", accepted_values(job, sum(store.progress(job.job_id).by_state.values()))
        act = f"job_{job.state.lower()}"
        if act not in ENDS or job.finished < since or (act, job.job_id) in there:
            continue
        queued = job.state == JobState.CANCELLED and not job.cancel_requested
        if queued and ("job_cancel", job.job_id) in there:
            continue  # one that was cancelled while it waited ends with the client's line
        yield act, {"job": job.job_id, "reason": job.error["reason"] if job.error else ""}


def accepted_values(job: Job, items: int) -> dict[str, str | int]:
    """What the line of an accepted job holds."""
    spec = job.spec
    return {"job": job.job_id, "client": spec.owner, "target": spec.target_institution, "items": items}
