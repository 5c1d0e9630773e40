"""Events of jobs in memory, from workers to watchers, however slow a watcher is.

A job keeps a bounded number of events, and the hub a bounded number of jobs: the state of any other is in the store. A
step replaces the one before it of the same item and stage: a watcher that falls behind misses steps, not changes of
state. Sequence numbers rise within a job, also over a restart.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final

from opentelemetry.trace import Span

from ddib_fed.errors import DeadlineExceeded
from ddib_fed.node.admin import Metrics
from ddib_fed.protocol.messages import JobState
from ddib_fed.telemetry import MOST_ITEMS, OFF, Tracing
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.v1.translation_pb2 import WatchJobResponse

MAX_EVENTS = 512
"""Kept of one job; the oldest go first."""
MAX_JOBS = 128
"""Jobs whose events are kept; the longest silent go first."""
POLL_S = 0.25
"""How often a waiting watcher looks whether it is still wanted."""
_BOOT_BITS = 32
_ENDED = frozenset({pb.JOB_STATE_FINISHED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})
STEPS_EVERY_S: Final = 0.1
"""Steps of one stage are published at most this often, whichever item they are of: an event for every step of every
item in flight costs the node, and each client that watches, more than storing it."""


class EventHub:
    """The events of a node's jobs; safe to use from any thread."""

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
                    raise DeadlineExceeded(
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


@dataclass(slots=True, eq=False)
class StepEvents:
    """Publishes the events of one running job, and counts them in the metrics; safe to use from any thread."""

    events: EventHub
    metrics: Metrics
    job_id: str
    items: int
    done: int
    tracing: Tracing = OFF
    trace: Span | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _observed: Counter[str] = field(default_factory=Counter)
    _ranges: dict[int, int] = field(default_factory=dict)
    _steps: dict[int, dict[tuple[str, int], int]] = field(default_factory=dict)
    """Of each item that is being worked on: how far each of its ranges is in each stage."""
    _said: dict[str, float] = field(default_factory=dict)

    def begins(self, item: int, ranges: int) -> None:
        with self._lock:
            self._ranges[item], self._steps[item] = ranges, {}

    def step(self, item: int, place: int, stage: str, step: int, steps: int) -> None:
        """A range has gone so many steps of a stage: the item's steps are those of all its ranges."""
        now = time.monotonic()
        with self._lock:
            so_far = self._steps.get(item)
            if so_far is None:  # it has ended
                return
            so_far[stage, place] = step
            # Called on the engine's thread for every step: the ranges are added up only for what is published.
            said = now - self._said.get(stage, float("-inf")) < STEPS_EVERY_S
            if said and not (step == steps and self.items == 1):
                return
            of_all = self._ranges[item] * steps
            done = min(of_all, sum(value for (name, _), value in so_far.items() if name == stage))
            if said and done < of_all:
                return
            self._said[stage] = now
        self.events.publish(self.job_id, JobState.RUNNING, item=item, stage=stage, step=done, steps=of_all)

    def observe(self, stage: str, seconds: float, samples: int) -> None:
        """Some samples have gone through a stage of the own model."""
        self.metrics.seconds.labels(stage).observe(seconds)
        self.metrics.samples.labels(stage).inc(samples)
        with self._lock:
            self._observed[stage] += 1
            seen = self._observed[stage]
        if seen <= MOST_ITEMS:
            self.tracing.record(stage, seconds, parent=self.trace, samples=samples)

    def ends(self, item: int, reason: str = "") -> None:
        """An item is translated, or has failed for a reason."""
        stage, end = ("encode", "failed") if reason else ("decode", "ok")
        self.metrics.items.labels(stage, end).inc()
        with self._lock:
            self.done += 1
            self._steps.pop(item, None)
            self._ranges.pop(item, None)
            self.events.publish(
                self.job_id,
                JobState.RUNNING,
                item=item,
                stage="failed" if reason else "done",
                reason=reason,
                items_done=self.done,
                items=self.items,
            )
