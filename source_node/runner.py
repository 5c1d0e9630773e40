"""Runs accepted jobs on a few worker threads; one job's items overlap: encode n+1, send n, return n-1.

A kill may interrupt a job anywhere: the files on the disk decide which work is left. One job at a time tries an
unreachable peer, with growing pauses until its deadline; a suspended peer or an invalid certificate is tried again
too. Other refusals end the job. The client with the fewest running jobs is next.
"""

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
"""These refusals pass: an operator resumes the peer, or an expired certificate is renewed."""
ABSENT = (errors.PeerUnreachable, errors.NotReady, errors.Draining)
MAX_EVENTS = 512
MAX_JOBS = 128
POLL_S = 0.25
_BOOT_BITS = 32
_ENDED = frozenset({pb.JOB_STATE_FINISHED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})


class EventHub:
    """Bounded logs of the latest jobs' events, for watchers of any speed; safe to use from any thread.

    A step replaces the previous one of its item and stage: a slow watcher misses steps, not changes of state. Sequence
    numbers rise within a job, also over a restart.
    """

    def __init__(self, boot: int) -> None:
        self._next = (boot << _BOOT_BITS) + 1
        self._logs: OrderedDict[str, OrderedDict[object, WatchJobResponse]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def publish(self, job_id: str, state: JobState, **values: Any) -> WatchJobResponse:
        """Publish an event of these fields, by default with the last event's counts; return a job's newest event.

        After a job's end no other event is published.
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
        """Return the newest event of a job, if one is kept."""
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
        """Yield the events of a job until its last one."""
        seen = after_sequence
        while newer := self._newer(job_id, seen, idle_s, stop):
            yield from newer
            if newer[-1].state in _ENDED:
                return
            seen = newer[-1].sequence

    def _newer(
        self, job_id: str, seen: int, idle_s: float | None, stop: Callable[[], bool]
    ) -> Sequence[WatchJobResponse]:
        """Wait for newer events and return them; none at the end of the job or of the watch."""
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
    """Growing pauses between the tries of a job or of a peer."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def next(self, key: str) -> float:
        """Return the seconds until the next try, with jitter; they double each time."""
        pause = self._next.get(key, FIRST_PAUSE_S)
        self._next[key] = min(2 * pause, LONGEST_PAUSE_S)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    def end(self, key: str) -> None:
        self._next.pop(key, None)


class CircuitBreaker:
    """States of peers: only one job at a time tries a peer that does not answer. Safe to use from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._answering: set[str] = set()
        self._trying: dict[str, str] = {}
        self._not_before: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._pauses = RetryPauses()

    def may_try(self, institution: str) -> bool:
        tried = institution in self._trying or self._clock() < self._not_before.get(institution, 0.0)
        return institution in self._answering or not tried

    def begin(self, institution: str, job_id: str) -> None:
        """Note that a job starts; unless its peer answers, others wait for its result."""
        with self._lock:
            if institution not in self._answering:
                self._trying.setdefault(institution, job_id)

    def end(self, institution: str, job_id: str) -> None:
        """Note that a job is over; if it tried the peer, another may."""
        with self._lock:
            if self._trying.get(institution) == job_id:
                del self._trying[institution]

    def answered(self, institution: str) -> bool:
        """Mark the peer up; return True if its state changed."""
        with self._lock:
            changed = institution not in self._answering
            self._answering.add(institution)
            self._trying.pop(institution, None)
            self._reasons.pop(institution, None)
            self._pauses.end(institution)
            return changed

    def failed(self, institution: str, reason: str, at_least_s: float = 0.0) -> bool:
        """Mark the peer down, and pause its tries; return True if its state changed."""
        with self._lock:
            changed = institution not in self._reasons
            self._answering.discard(institution)
            self._trying.pop(institution, None)
            self._reasons[institution] = reason
            pause = max(at_least_s, self._pauses.next(institution))
            self._not_before[institution] = self._clock() + pause
            return changed

    def reason(self, institution: str) -> str:
        """Return why the peer is away; empty if it is not known to be."""
        return self._reasons.get(institution, "")


DIAGNOSE_TIMEOUT_S = 2.0
"""Keep the diagnosis of a silent peer short: it holds a worker."""
LARGE_JOBS = 6
"""Run at most so many jobs of more than a batch at once, of all `running_jobs`."""
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
        """Jobs that are RUNNING in the store but not in here are put back."""
        self._circuit = CircuitBreaker()
        self._retry_pauses = RetryPauses()
        self._most = node.config.engine.running_jobs
        self._threads = [
            threading.Thread(target=self._run, name=f"job-{n}", daemon=True) for n in range(self._most)
        ]

    def start(self) -> None:
        """Put back the jobs that a stop or a kill interrupted, and start the workers."""
        for job in self._store.release_running():
            self.announce(job, JobState.CANCELLED, errors.Cancelled.reason)
        for thread in self._threads:
            thread.start()

    def is_away(self, institution: str) -> bool:
        """Return True if jobs for a peer are accepted without asking it; a peer that suspended this node is asked."""
        return self._circuit.reason(institution) not in {"", errors.PeerSuspended.reason}

    def accepted(self, job: StoredJob) -> None:
        """Wake the workers for an accepted job; publish why it has to wait, if it has."""
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
        """Wait for the next job; None when closing. Only one idle thread polls the store."""
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
        """Claim the next due job; None if there is none or the store is unavailable, as on a full disk."""
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
        """Return an overdue job, or the oldest of the client with the fewest running jobs."""
        counts = Counter(job.owner for job, _ in self._running.values())
        candidates = [job for job in due if job.overdue or self._may_run(job, counts)]
        return min(candidates, key=lambda job: (not job.overdue, counts[job.owner]), default=None)

    def _may_run(self, due: DueJob, counts: Counter[str]) -> bool:
        if not within_share(counts[due.owner], self._most - counts.total(), self._most):
            return False
        if self._is_large(due):
            large = Counter(job.owner for job, _ in self._running.values() if self._is_large(job))
            if not within_share(large[due.owner], LARGE_JOBS - large.total(), LARGE_JOBS):
                return False
        return self._circuit.may_try(due.target)

    def _is_large(self, due: DueJob) -> bool:
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
        """Queue the job again after a pause, or leave it for the next start; fail it if its quota is spent for good."""
        if self._closing:
            log.info("job %s is left for the next start", job.job_id)
            return
        left, pause = job.deadline - self._store.now(), error.retry_after_s or 0.0
        if isinstance(error, errors.QuotaSpent) and (error.retry_after_s is None or pause >= left):
            self._finish(job, JobState.FAILED, error)
            return
        if self._has_moved(job):
            self._retry_pauses.end(job.job_id)
        error = self._explained(job, error)
        if error.hop:
            self._node.peer_problems.failed(job.request.target_institution, error)
        # Only clients wait for as long as a full disk says; the job takes the usual pause.
        if isinstance(error, errors.DiskFull) and not error.hop:
            pause = 0.0
        delay = max(pause, self._retry_pauses.next(job.job_id))
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
        """Note whether the peer answers, also with a refusal; publish its absence once for all its jobs."""
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
        explained = self._remotes.channels.explained(
            job.request.target_institution, error, DIAGNOSE_TIMEOUT_S
        )
        if isinstance(explained, errors.PeerUnreachable) and not explained.incident:
            explained.facts.setdefault("found", explained.detail)  # this node's words
        return explained

    def _late(self, job: StoredJob, error: errors.DeadlineExceeded) -> errors.DeadlineExceeded:
        """Return the error of a job whose time is over, with the last cause."""
        progress = self._store.progress(job.job_id)
        facts = {
            "deadline_s": str(job.request.deadline_s),
            "items_done": f"{progress.done} of {progress.items}",
        }
        waited = job.error  # of the last try
        if "last" in error.facts:
            hop = f"target {job.request.target_institution}"
            cause = self._explained(job, errors.PeerUnreachable(error.facts["last"], hop=hop))
            facts["last"] = _last_cause(error_record(cause))
        elif waited is not None and not self._has_moved(job):
            facts["last"] = _last_cause(waited)
        elif job.started >= job.deadline:
            facts["last"] = "it was not begun before: this node was busy, or stopped"
        return errors.DeadlineExceeded(f"of job {job.job_id}", facts=facts, hop=error.hop)

    def _finish_by_items(self, job: StoredJob) -> None:
        """End the job: FINISHED if an item was translated, else FAILED with the first item's error."""
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
        """Publish and log the end of a job."""
        progress = self.publish(job.job_id, state, reason=reason)
        request, failed = job.request, progress.failed
        fields: dict[str, str | float] = {
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
            {**fields, "why": left_out + why},
            extra={"fields": fields},
        )

    def publish(self, job_id: str, state: JobState, *, stage: str = "", reason: str = "") -> ItemCounts:
        progress = self._store.progress(job_id)
        self._events.publish(
            job_id, state, stage=stage, reason=reason, items_done=progress.done, items=progress.items
        )
        return progress


def _last_cause(detail: ErrorDetail) -> str:
    """Describe a stored error: the institution, its cause and the reason."""
    who = detail.institution or detail.facts.get("peer", "")
    what = detail.facts.get("found") or f"{detail.sentence} ({detail.reason})"
    return f"{who}: {what}" if who else what
