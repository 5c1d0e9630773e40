"""Runs accepted jobs on a few worker threads; one job's items overlap: encode n+1, send n, return n-1.

A job is a pipeline of three bounded stages (encode, remote, return) that a kill may interrupt anywhere: what is on
disk decides what is left to do. A latent that was sent is stored, and sent again as it is. An unreachable peer is tried
again with growing pauses until the jobs' deadlines, by one job at a time, while jobs for others have the workers, and
so is one that is suspended or whose certificate or ours is not valid now; a peer that refuses otherwise ends the job
with its reason. Clients share the workers: who has fewest jobs running is next.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

from ddib_fed import errors
from ddib_fed.engine.party import Control
from ddib_fed.files import is_disk_full
from ddib_fed.node.role import NodeContext
from ddib_fed.node.server import within_share
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.v1.common_pb2 import ErrorDetail
from ddib_fed.v1.translation_pb2 import WatchJobResponse
from source_node.pipeline import JobPipeline, error_record, rows_about
from source_node.remote import Remotes
from source_node.store import PENDING_ITEMS, DueJob, ItemCounts, JobStore, StoredJob
from source_node.submission import trace_key

log = logging.getLogger(__name__)


FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
PASSING = (errors.PeerSuspended, errors.Unauthenticated)
"""Refusals that pass: an operator resumes the peer, or a certificate that has expired is renewed."""
ABSENT = (errors.PeerUnreachable, errors.NotReady, errors.Draining)
"""Errors of a peer that takes no job at all now."""


MAX_EVENTS = 512
"""Kept of one job; the oldest go first."""
MAX_JOBS = 128
"""Jobs whose events are kept; the longest silent go first."""
POLL_S = 0.25
"""How often a waiting watcher looks whether it is still wanted."""
_BOOT_BITS = 32
_ENDED = frozenset({pb.JOB_STATE_FINISHED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})


class EventHub:
    """The events of a node's jobs, from workers to watchers, however slow a watcher is; safe to use from any thread.

    A job keeps a bounded number of events, and the hub a bounded number of jobs: the state of any other is in the
    store. A step replaces the one before it of the same item and stage: a watcher that falls behind misses steps, not
    changes of state. Sequence numbers rise within a job, also over a restart.
    """

    def __init__(self, boot: int) -> None:
        self._next = (boot << _BOOT_BITS) + 1
        self._logs: OrderedDict[str, OrderedDict[object, WatchJobResponse]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def publish(self, job_id: str, state: JobState, **values: Any) -> WatchJobResponse:
        """Tell the watchers of a job something, fields of the message; the event, or the last one of a job that ended.

        An event without `items` has the numbers of items of the one before it.
        """
        with self._changed:
            log = self._logs.setdefault(job_id, OrderedDict())
            self._logs.move_to_end(job_id)
            last = _last(log)
            if last is not None:
                if last.state in _ENDED and not state.ended:
                    return last
                values = {"items_done": last.items_done, "items": last.items} | values
            event = WatchJobResponse(sequence=self._next, state=f"JOB_STATE_{state}", **values)
            self._next += 1
            key = (event.item, event.stage) if event.steps else event.sequence
            log.pop(key, None)
            log[key] = event
            while len(log) > MAX_EVENTS:
                log.popitem(last=False)
            while len(self._logs) > MAX_JOBS:
                self._logs.popitem(last=False)
            self._changed.notify_all()
        return event

    def last(self, job_id: str) -> WatchJobResponse | None:
        """The newest event of a job, or None when none is kept (none yet, or not since the node started)."""
        with self._changed:
            return _last(self._logs.get(job_id))

    def subscribe(
        self,
        job_id: str,
        after_sequence: int = 0,
        *,
        idle_s: float | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[WatchJobResponse]:
        """The events of a job as they come, until its last one."""
        seen = after_sequence
        while newer := self._newer(job_id, seen, idle_s, stop):
            yield from newer
            if newer[-1].state in _ENDED:
                return
            seen = newer[-1].sequence

    def _newer(
        self, job_id: str, seen: int, idle_s: float | None, stop: Callable[[], bool]
    ) -> Sequence[WatchJobResponse]:
        """What is newer than seen; empty when nothing more will come or is wanted."""
        idle = None if idle_s is None else time.monotonic() + idle_s
        with self._changed:
            while not (self._closed or stop()):
                log = self._logs.get(job_id, OrderedDict())
                if newer := list(takewhile(lambda event: event.sequence > seen, reversed(log.values()))):
                    return newer[::-1]
                if (last := _last(log)) is not None and last.state in _ENDED:
                    break
                if idle is not None and time.monotonic() >= idle:
                    raise errors.DeadlineExceeded(
                        "the job did not move for as long as one call may wait for it",
                        hint="watch it again, after the last event",
                        facts={"idle_s": f"{idle_s:g}"},
                    )
                self._changed.wait(POLL_S)
        return ()

    def close(self) -> None:
        """End every watcher: the node stops."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _last(log: OrderedDict[object, WatchJobResponse] | None) -> WatchJobResponse | None:
    return next(reversed(log.values())) if log else None


class RetryPauses:
    """Pauses between the tries of a job or of a peer, which grow while nothing moves."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def next(self, key: str) -> float:
        """Seconds until the next try, with jitter; twice as long each time."""
        pause = self._next.get(key, FIRST_PAUSE_S)
        self._next[key] = min(2 * pause, LONGEST_PAUSE_S)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    def end(self, key: str) -> None:
        self._next.pop(key, None)


class CircuitBreaker:
    """Which peers answer, and when one that is not known to is tried, by one job; safe to use from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._answering: set[str] = set()
        self._trying: dict[str, str] = {}
        """The job that finds out, of each peer that is not known to answer."""
        self._not_before: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._pauses = RetryPauses()

    def may_try(self, institution: str) -> bool:
        tried = institution in self._trying or self._clock() < self._not_before.get(institution, 0.0)
        return institution in self._answering or not tried

    def begin(self, institution: str, job_id: str) -> None:
        """A job was taken up; where the peer is not known to answer, others wait for what it finds."""
        with self._lock:
            if institution not in self._answering:
                self._trying.setdefault(institution, job_id)

    def end(self, institution: str, job_id: str) -> None:
        """A job is over, whatever it met; if it was the one that tried, another may."""
        with self._lock:
            if self._trying.get(institution) == job_id:
                del self._trying[institution]

    def answered(self, institution: str) -> bool:
        """It did; whether that is news."""
        with self._lock:
            news = institution not in self._answering
            self._answering.add(institution)
            self._trying.pop(institution, None)
            self._reasons.pop(institution, None)
            self._pauses.end(institution)
            return news

    def failed(self, institution: str, reason: str, at_least_s: float = 0.0) -> bool:
        """It did not; whether that is news. The next try is after a pause that grows."""
        with self._lock:
            news = institution not in self._reasons
            self._answering.discard(institution)
            self._trying.pop(institution, None)
            self._reasons[institution] = reason
            pause = max(at_least_s, self._pauses.next(institution))
            self._not_before[institution] = self._clock() + pause
            return news

    def reason(self, institution: str) -> str:
        """Why it is away; empty when it is not, as far as is known."""
        return self._reasons.get(institution, "")


# Of a peer that did not answer: a worker is held as long.
DIAGNOSE_TIMEOUT_S = 2.0
# Jobs of more than a batch that are worked on at once, of all `running_jobs`; one client may have four of them.
LARGE_JOBS = 6
# How often the queue is looked at without a call of `wake`.
LOOK_EVERY_S = 0.5


class JobRunner:
    def __init__(self, node: NodeContext, store: JobStore, events: EventHub, remotes: Remotes) -> None:
        self._node = node
        self._store = store
        self._events = events
        self._remotes = remotes
        self._wake = threading.Condition()
        self._closing = False
        self._looking = False
        self._draining = False
        self._running: dict[str, tuple[DueJob, Control]] = {}
        """Jobs that a thread of this process works on; any other that is RUNNING in the store is put back."""
        self._circuit = CircuitBreaker()
        self._retry_pauses = RetryPauses()
        self._most = node.config.engine.running_jobs
        self._threads = [
            threading.Thread(target=self._run, name=f"job-{n}", daemon=True) for n in range(self._most)
        ]

    def start(self) -> None:
        """Take up what a stop or a kill left, then wait for jobs."""
        for job in self._store.release_running():
            self.announce(job, JobState.CANCELLED, errors.Cancelled.reason)
        for thread in self._threads:
            thread.start()

    def is_away(self, institution: str) -> bool:
        """Whether jobs for it are accepted unasked; one that has suspended this node is asked, and refuses them."""
        return self._circuit.reason(institution) not in {"", errors.PeerSuspended.reason}

    def accepted(self, job: StoredJob) -> None:
        """A job was accepted; an event says at once if it has to wait."""
        if reason := self._circuit.reason(job.request.target_institution):
            self.publish(job.job_id, JobState.QUEUED, stage="wait", reason=reason)
        self.wake()

    def wake(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def cancel(self, job_id: str) -> None:
        if (running := self._running.get(job_id)) is not None:
            running[1].cancel(errors.Cancelled(facts={"job": job_id}))

    def drain(self, timeout_s: float) -> None:
        """Start no more jobs; return when the running ones are done, or after the time."""
        with self._wake:
            self._draining = True
            self._wake.notify_all()
            self._wake.wait_for(lambda: not self._running, timeout_s)

    def close(self) -> None:
        """Stop at the next step; running jobs go on at the next start."""
        self._closing = True
        self.wake()
        for _, control in list(self._running.values()):
            control.cancel(errors.Draining())
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join(timeout=10)

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            self._work_on(*taken)
            del taken  # an idle thread keeps nothing of a job

    def _work_on(self, job: StoredJob, control: Control) -> None:
        try:
            self._work(job, control)
        except Exception:
            # The store itself failed (disk full, for one): the job is put back once it can be.
            log.exception("job %s could not be brought to an end; it is tried again", job.job_id)
        self._circuit.end(job.request.target_institution, job.job_id)
        with self._wake:
            _, running = self._running.get(job.job_id, (None, None))
            if running is control:  # put back, it may run on another thread already
                del self._running[job.job_id]
            self._wake.notify_all()

    def _next(self) -> tuple[StoredJob, Control] | None:
        """The next job, or None when closing. One idle thread looks; the others wait for it to find something."""
        with self._wake:
            while not (self._closing or self._draining):
                if self._looking:
                    self._wake.wait()
                    continue
                if (taken := self._claim()) is not None:
                    self._wake.notify_all()
                    return taken
                self._looking = True
                self._wake.wait(LOOK_EVERY_S)
                self._looking = False
        return None

    def _claim(self) -> tuple[StoredJob, Control] | None:
        """A job that is due; none, too, while the store cannot say: a full disk must not end the workers."""
        try:
            for job_id in self._store.in_state(JobState.RUNNING):
                if job_id not in self._running:
                    self._store.put_back(job_id, self._retry_pauses.next(job_id))
            chosen = self._choose(self._store.due())
            job = None if chosen is None else self._store.claim(chosen.job_id)
        except Exception:
            log.exception("the job store cannot be used now; it is tried again")
            return None
        if chosen is None or job is None:
            return None
        control = Control(time.monotonic() + job.deadline - self._store.now())
        self._running[job.job_id] = chosen, control
        self._circuit.begin(chosen.target, job.job_id)
        return job, control

    def _choose(self, due: Sequence[DueJob]) -> DueJob | None:
        """The next job: one whose time is over, or of the client that has fewest running, the oldest first."""
        counts = Counter(each.owner for each, _ in self._running.values())
        some = [each for each in due if each.overdue or self._may_run(each, counts)]
        return min(some, key=lambda each: (not each.overdue, counts[each.owner]), default=None)

    def _may_run(self, due: DueJob, counts: Counter[str]) -> bool:
        if not within_share(counts[due.owner], self._most - counts.total(), self._most):
            return False
        if self._is_large(due):
            large = Counter(each.owner for each, _ in self._running.values() if self._is_large(each))
            if not within_share(large[due.owner], LARGE_JOBS - large.total(), LARGE_JOBS):
                return False
        return self._circuit.may_try(due.target)

    def _is_large(self, due: DueJob) -> bool:
        """More than a batch."""
        engine = self._node.running_engine
        return rows_about(due.items, due.size_bytes, engine.model.sample_shape) > max(1, engine.window // 2)

    def _work(self, job: StoredJob, control: Control) -> None:
        self.publish(job.job_id, JobState.RUNNING)
        try:
            self._attempt(job, control)
            self._finish_by_items(job)
        except (errors.UnavailableError, errors.ExhaustedError, *PASSING) as error:
            self._set_aside(job, error)
        except OSError as error:
            log.exception("job %s: the disk failed", job.job_id)
            self._set_aside(
                job, errors.DiskFull() if is_disk_full(error) else errors.UnavailableError("the disk failed")
            )
        except errors.Cancelled as error:
            self._finish(job, JobState.CANCELLED, error)
        except errors.DeadlineExceeded as error:
            self._finish(job, JobState.FAILED, self._late(job, error))
        except errors.DdibError as error:
            if isinstance(error, errors.PeerFault):
                self._node.peer_problems.failed(job.request.target_institution, error)
            self._note_presence(job, error)
            self._finish(job, JobState.FAILED, error)
        except Exception:
            incident = secrets.token_hex(6)
            log.exception("incident %s in job %s", incident, job.job_id)
            self._finish(job, JobState.FAILED, errors.InternalError(incident=incident))

    def _attempt(self, job: StoredJob, control: Control) -> None:
        control.check()
        if self._store.is_cancelled(job.job_id):
            raise errors.Cancelled(facts={"job": job.job_id})
        left = [item for item in job.items if item.state in PENDING_ITEMS]
        if not left:
            return
        tracing, request, target = self._node.tracing, job.request, job.request.target_institution
        with tracing.span(
            "job",
            parent=tracing.recall(trace_key(job.owner, request)),
            job=job.job_id,
            items=len(left),
            peer=target,
            evaluations=request.solver.evaluations,
        ) as span:
            pipeline = JobPipeline(
                self._node, self._store, self._events.publish, self._remotes, job, control, span
            )
            pipeline.run(left, lambda: self._reached(target))
        self._node.peer_problems.answered(target)

    def _reached(self, target: str) -> None:
        if self._circuit.answered(target):
            self.wake()

    def _set_aside(self, job: StoredJob, error: errors.DdibError) -> None:
        """For later, so that others get the worker, or for the next start; pauses grow while nothing moves."""
        if self._closing:
            log.info("job %s is left for the next start", job.job_id)
            return
        left, asked = job.deadline - self._store.now(), error.retry_after_s or 0.0
        if isinstance(error, errors.QuotaSpent) and (error.retry_after_s is None or asked >= left):
            self._finish(job, JobState.FAILED, error)
            return
        if self._has_moved(job):
            self._retry_pauses.end(job.job_id)
        error = self._explained(job, error)
        if error.hop:
            self._node.peer_problems.failed(job.request.target_institution, error)
        # The time to come back from a full disk is for clients: here it is looked at again after the usual pause.
        if isinstance(error, errors.DiskFull) and not error.hop:
            asked = 0.0
        delay = max(asked, self._retry_pauses.next(job.job_id))
        self._note_presence(job, error)
        log.info("job %s waits %.1f s: %s (%s)", job.job_id, delay, error.reason, error.detail)
        self._store.put_back(job.job_id, min(delay, max(0.0, left)), error_record(error))
        if self._store.is_cancelled(job.job_id):  # while it ran: it need not wait for its end
            self._store.cancel(job.job_id, job.owner)
            self._retry_pauses.end(job.job_id)
            self.announce(job, JobState.CANCELLED, errors.Cancelled.reason)
        else:
            self.publish(job.job_id, JobState.QUEUED, stage="wait", reason=error.reason)

    def _note_presence(self, job: StoredJob, error: errors.DdibError) -> None:
        """Note whether the peer answers, as a refusal is; that it does not is published once for all jobs for it."""
        target = job.request.target_institution
        if not error.hop:
            return
        if not isinstance(error, ABSENT):
            self._reached(target)
        elif self._circuit.failed(target, error.reason, error.retry_after_s or 0.0):
            for other in self._store.in_state(JobState.QUEUED, target):
                if other != job.job_id:
                    self.publish(other, JobState.QUEUED, stage="wait", reason=error.reason)

    def _has_moved(self, job: StoredJob) -> bool:
        return [item.state for item in job.items] != [
            item.state for item in self._store.get(job.job_id).items
        ]

    def _explained(self, job: StoredJob, error: errors.DdibError) -> errors.DdibError:
        found = self._remotes.channels.explained(job.request.target_institution, error, DIAGNOSE_TIMEOUT_S)
        if isinstance(found, errors.PeerUnreachable) and not found.incident:
            found.facts.setdefault("found", found.detail)  # this node's words
        return found

    def _late(self, job: StoredJob, error: errors.DeadlineExceeded) -> errors.DeadlineExceeded:
        """The end of a job's time, with what it was spent on."""
        progress = self._store.progress(job.job_id)
        facts = {
            "deadline_s": str(job.request.deadline_s),
            "items_done": f"{progress.done} of {progress.items}",
        }
        waited = job.error  # of the last try
        if "last" in error.facts:
            hop = f"target {job.request.target_institution}"
            found = self._explained(job, errors.PeerUnreachable(error.facts["last"], hop=hop))
            facts["last"] = _last_cause(error_record(found))
        elif waited is not None and not self._has_moved(job):
            facts["last"] = _last_cause(waited)
        elif job.started >= job.deadline:
            facts["last"] = "it was not begun before: this node was busy, or stopped"
        return errors.DeadlineExceeded(f"of job {job.job_id}", facts=facts, hop=error.hop)

    def _finish_by_items(self, job: StoredJob) -> None:
        """Finished when at least one item came through; failed, with the first item's error, when none did."""
        self._retry_pauses.end(job.job_id)
        items = self._store.get(job.job_id).items
        if any(item.state != ItemState.FAILED for item in items):
            self._store.finish(job.job_id, JobState.FINISHED)
            self.announce(job, JobState.FINISHED, "")
        else:
            error = next((item.error for item in items if item.error), error_record(errors.InternalError()))
            self._store.finish(job.job_id, JobState.FAILED, error)
            self.announce(job, JobState.FAILED, error.reason)

    def _finish(self, job: StoredJob, state: JobState, error: errors.DdibError) -> None:
        self._retry_pauses.end(job.job_id)
        self._store.finish(job.job_id, state, error_record(error))
        self.announce(job, state, error.reason, error.detail)

    def announce(self, job: StoredJob, state: JobState, reason: str, detail: str = "") -> None:
        """Publish and log the end of a job; file names are not known here, and never in the log."""
        progress = self.publish(job.job_id, state, reason=reason)
        request, failed = job.request, progress.failed
        told: dict[str, str | float] = {
            "job": job.job_id,
            "state": state.lower(),
            "client": job.owner.rpartition("/")[2],
            "target": f"{request.target_institution}/{request.target_domain}",
            "items": progress.items,
            "translated": progress.done - failed,
            "failed": failed,
            "seconds": round(max(0.0, self._store.now() - job.accepted), 3),
            "reason": reason,
        }
        left_out = f", {failed} failed" if failed else ""
        why = f": {reason} {detail}".rstrip() if reason else ""
        log.info(
            "job %(job)s %(state)s after %(seconds).1f s: %(translated)d of %(items)d items of %(client)s "
            "to %(target)s%(why)s",
            {**told, "why": left_out + why},
            extra={"fields": told},
        )

    def publish(self, job_id: str, state: JobState, *, stage: str = "", reason: str = "") -> ItemCounts:
        progress = self._store.progress(job_id)
        self._events.publish(
            job_id, state, stage=stage, reason=reason, items_done=progress.done, items=progress.items
        )
        return progress


def _last_cause(detail: ErrorDetail) -> str:
    """A kept error in a few words: who, what was found, and the reason."""
    who = detail.institution or detail.facts.get("peer", "")
    what = detail.facts.get("found") or f"{detail.sentence} ({detail.reason})"
    return f"{who}: {what}" if who else what
