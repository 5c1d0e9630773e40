"""When a job that cannot go on is tried again, and when it is given up."""

from __future__ import annotations

import random
import time

from ddib_fed.errors import Draining, NotReady, PeerSuspended, PeerUnreachable, QuotaSpent, Unauthenticated
from source_node.jobs.records import Job
from source_node.pipeline.reach import FIRST_PAUSE_S, LONGEST_PAUSE_S

PASSING = (PeerSuspended, Unauthenticated)
"""Refusals that pass: an operator resumes the peer, or a certificate that has expired is renewed."""
ABSENT = (PeerUnreachable, NotReady, Draining)
"""Errors of a peer that takes no job at all now."""


def renews_in_time(error: QuotaSpent, job: Job, now: float) -> bool:
    return error.retry_after_s is not None and now + error.retry_after_s < job.deadline


def deadline_of(job: Job, now: float) -> float:
    return time.monotonic() + (job.deadline - now)


class Pauses:
    """Pauses between the tries of each job, which grow while nothing moves."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def next(self, job_id: str) -> float:
        """Seconds until the next try, with jitter; twice as long each time."""
        pause = self._next.get(job_id, FIRST_PAUSE_S)
        self._next[job_id] = min(2 * pause, LONGEST_PAUSE_S)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    def end(self, job_id: str) -> None:
        self._next.pop(job_id, None)
