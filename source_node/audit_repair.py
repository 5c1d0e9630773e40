"""Lines of the audit log that a kill left out: of jobs without their line, and of lines without their act.

A job is in the database before the lines of its acceptance and its end; what a client does to it, after its line. At
its start, before a client can call, a node compares the jobs of late with the end of the log, writes what is missing,
and takes back what was not done, marked `late`.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ddib_fed.errors import JobNotFound
from ddib_fed.protocol.messages import JobState
from ddib_fed.security.audit import NOT_DONE, AuditLog
from ddib_fed.security.audit_reading import Recent, recent
from source_node.records import Job
from source_node.store import JobStore

log = logging.getLogger(__name__)


SLACK_S: Final = 60.0
"""A line is written at most so long after its job was committed."""
ENDS: Final = frozenset({"job_finished", "job_failed", "job_cancelled"})
DECIDED: Final = frozenset({"items_delivered", "job_cancel", "job_deleted", "job_expired"})
"""Acts whose lines come before them."""
WHOLE: Final = ""
"""In place of an item: the job."""


def repair_audit(store: JobStore, audit: AuditLog, path: Path) -> int:
    """Write the lines of accepted and ended jobs that the end of the log lacks, and take back what was not done."""
    end = recent(path)
    late = [*_missing(store, end), *_not_done(store, end)]
    for act, values in late:
        audit.write(act, **values, late=True)
    if late:
        log.warning("the audit log lacked %d lines, as after a kill; they are marked late", len(late))
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
        yield act, {"job": job.job_id, "reason": job.error.reason if job.error else ""}


def _not_done(store: JobStore, end: Recent) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was written down, was not taken back, and is not so."""
    told: dict[tuple[str, str], set[str]] = defaultdict(set)
    for line in end.lines:
        back = line.get("act") == NOT_DONE
        act = line.get("what" if back else "act")
        if act in DECIDED:
            items = line.get("items") if act == "items_delivered" else [WHOLE]
            named = set(map(str, items)) if isinstance(items, list) else set()
            key = act, str(line.get("job"))
            told[key] = told[key] - named if back else told[key] | named
    for (act, job_id), named in told.items():
        left = named & _as_before(store, act, job_id) if named else named
        if left:
            values: dict[str, Any] = {"what": act, "job": job_id}
            yield NOT_DONE, values if WHOLE in left else {**values, "items": sorted(left, key=int)}


def _as_before(store: JobStore, act: str, job_id: str) -> set[str]:
    """Items of a job, or the whole, for which an act was not done."""
    try:
        job = store.head(job_id)
    except JobNotFound:
        return set()  # and it never comes back
    if act == "items_delivered":
        return set(map(str, store.ready(job_id)))
    done = act == "job_cancel" and (job.cancel_requested or job.state == JobState.CANCELLED)
    return set() if done else {WHOLE}


def accepted_values(job: Job, items: int) -> dict[str, str | int]:
    target = job.request.target_institution
    return {"job": job.job_id, "client": job.owner, "target": target, "items": items}
