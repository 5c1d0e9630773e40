"""Events and metrics of the items of a job under way."""

from __future__ import annotations

import threading
import time
from collections import Counter

from opentelemetry.trace import Span

from ddib_fed.server.probes import Metrics
from ddib_fed.telemetry import MOST_ITEMS, OFF, Tracing
from ddib_fed.wire.jobs import JobState
from source_node.jobs.events import EventHub
from source_node.jobs.records import PENDING_ITEMS
from source_node.jobs.store import Job
from source_node.pipeline.items import Numbers

STEPS_EVERY_S = 0.1
"""Steps of one stage are published at most this often, whichever item they are of: an event for every step of every
item in flight costs the node, and each client that watches, more than storing it."""


class JobProgress:
    """Publishes the events of one job; safe to use from any thread."""

    def __init__(
        self,
        events: EventHub,
        metrics: Metrics,
        job: Job,
        numbers: Numbers,
        tracing: Tracing = OFF,
        trace: Span | None = None,
    ) -> None:
        self._events = events
        self._metrics = metrics
        self._job = job
        self._numbers = numbers
        self._tracing, self._trace = tracing, trace
        self._observed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._done = sum(item.state not in PENDING_ITEMS for item in job.items)
        self._several = len(job.items) > 1
        self._ranges: dict[int, int] = {}
        self._stages: dict[tuple[int, str], int] = {}
        self._said: dict[str, float] = {}
        self._last: dict[tuple[int, str], int] = {}

    def begins(self, item: int, ranges: int) -> None:
        with self._lock:
            self._ranges[item] = ranges

    def step(self, number: int, stage: str, step: int, steps: int) -> None:
        """A range has gone so many steps of a stage: the item's steps are those of all its ranges."""
        item = self._numbers.item(number)
        now = time.monotonic()
        # Called on the engine's thread for every step: the steps of an item of one range need not be added up.
        if self._several and self._ranges.get(item) == 1 and self._just_said(stage, now):
            return
        with self._lock:
            ranges = self._ranges.get(item)
            if ranges is None:  # it has ended
                return
            so_far = self._stages.get((item, stage), 0) + step - self._last.get((number, stage), 0)
            self._stages[item, stage], self._last[number, stage] = so_far, step
            done, all_steps = min(so_far, ranges * steps), ranges * steps
            alone_at_its_end = done == all_steps and not self._several
            if self._just_said(stage, now) and not alone_at_its_end:
                return
            self._said[stage] = now
        self._events.publish(
            self._job.job_id, state=JobState.RUNNING, item=item, stage=stage, step=done, steps=all_steps
        )

    def _just_said(self, stage: str, now: float) -> bool:
        return now - self._said.get(stage, float("-inf")) < STEPS_EVERY_S

    def observe(self, stage: str, seconds: float, samples: int) -> None:
        """Some samples have gone through a stage of the own model."""
        self._metrics.seconds.labels(stage).observe(seconds)
        self._metrics.samples.labels(stage).inc(samples)
        with self._lock:
            self._observed[stage] += 1
            seen = self._observed[stage]
        if seen <= MOST_ITEMS:
            self._tracing.record(stage, seconds, parent=self._trace, samples=samples)

    def sent(self, size_bytes: int) -> None:
        self._metrics.latent_bytes.labels("out").inc(size_bytes)

    def finished(self, item: int) -> None:
        self._metrics.items.labels("decode", "ok").inc()
        self._end(item, "done")

    def failed(self, item: int, reason: str) -> None:
        self._metrics.items.labels("encode", "failed").inc()
        self._end(item, "failed", reason)

    def _end(self, item: int, stage: str, reason: str = "") -> None:
        with self._lock:
            self._done += 1
            self._ranges.pop(item, None)
            for key in [key for key in self._stages if key[0] == item]:
                del self._stages[key]
            for key in [key for key in self._last if self._numbers.item(key[0]) == item]:
                del self._last[key]
            self._events.publish(
                self._job.job_id,
                state=JobState.RUNNING,
                item=item,
                stage=stage,
                reason=reason,
                items_done=self._done,
                items=len(self._job.items),
            )
