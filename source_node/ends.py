"""The one line of the node's log for the end of a job."""

from __future__ import annotations

import logging

from ddib_fed.server.logs import fields
from ddib_fed.wire.jobs import ItemState, JobState
from source_node.jobs.queries import Progress
from source_node.jobs.records import Job

log = logging.getLogger(__name__)


def log_end(
    job: Job, state: JobState, progress: Progress, now: float, reason: str = "", detail: str = ""
) -> None:
    """Log that a job has ended; file names are not known here, and never in the log."""
    failed = progress.count(ItemState.FAILED)
    translated = progress.done - failed
    spec, client = job.spec, job.spec.owner.rpartition("/")[2]
    seconds = max(0.0, now - job.accepted)
    why = f": {reason} {detail}".rstrip() if reason else ""
    log.info(
        "job %s %s after %.1f s: %d of %d items of %s to %s/%s%s%s",
        job.job_id,
        state.lower(),
        seconds,
        translated,
        progress.items,
        client,
        spec.target_institution,
        spec.target_domain,
        f", {failed} failed" if failed else "",
        why,
        extra=fields(
            job=job.job_id,
            state=state.lower(),
            client=client,
            target=f"{spec.target_institution}/{spec.target_domain}",
            items=progress.items,
            translated=translated,
            failed=failed,
            seconds=round(seconds, 3),
            reason=reason,
        ),
    )
