"""Events of jobs in memory, from workers to watchers, however slow a watcher is.

A job keeps a bounded number of events. A step replaces the one before it of the same item and
stage: a watcher that falls behind misses steps, not changes of state. Of jobs that ended some time ago only the last
event is kept, until they are deleted: it holds their state, and their items are in the store. Sequence numbers rise
within a job, also over a restart.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from ddib_fed.errors import DeadlineExceeded
from ddib_fed.protocol.messages import Event, JobState

MAX_EVENTS = 512
"""Kept of one job; the oldest go first."""

MAX_JOBS = 1_024
"""Jobs whose events are kept; the longest silent go first."""

MAX_WHOLE = 16
"""Ended jobs whose events are all kept, for watchers that have not read them yet; the first to end go first."""

POLL_S = 0.25
"""How often a waiting watcher looks whether it is still wanted."""

_BOOT_BITS = 32


class _Log:
    """The events of one job, oldest first."""

    def __init__(self) -> None:
        self.events: OrderedDict[object, Event] = OrderedDict()
        self.last = Event(0, JobState.QUEUED)

    def add(self, event: Event) -> None:
        key = (event.item, event.stage) if event.steps else event.sequence
        self.events.pop(key, None)
        self.events[key] = self.last = event
        while len(self.events) > MAX_EVENTS:
            self.events.popitem(last=False)

    def shorten(self) -> None:
        self.events = OrderedDict([(self.last.sequence, self.last)])

    def after(self, sequence: int) -> tuple[Event, ...]:
        newer = []
        for event in reversed(self.events.values()):
            if event.sequence <= sequence:
                break
            newer.append(event)
        return tuple(reversed(newer))


class EventHub:
    """The events of a node's jobs; safe to use from any thread."""

    def __init__(self, boot: int) -> None:
        self._next = (boot << _BOOT_BITS) + 1
        self._logs: OrderedDict[str, _Log] = OrderedDict()
        self._whole: OrderedDict[str, None] = OrderedDict()
        self._deleted: OrderedDict[str, None] = OrderedDict()
        """The last ones: who subscribed to one of them before waits for nothing."""
        self._changed = threading.Condition()
        self._closed = False

    def publish(
        self,
        job_id: str,
        *,
        state: JobState | str,
        item: int = 0,
        stage: str = "",
        step: int = 0,
        steps: int = 0,
        reason: str = "",
        items_done: int | None = None,
        items: int | None = None,
    ) -> Event:
        """Tell the watchers of a job something; the event, or the last one of a job that has ended."""
        with self._changed:
            log = self._logs.setdefault(job_id, _Log())
            self._logs.move_to_end(job_id)
            if log.last.state.ended and not JobState(state).ended:
                return log.last
            event = Event(
                sequence=self._next,
                state=JobState(state),
                item=item,
                stage=stage,
                step=step,
                steps=steps,
                reason=reason,
                items_done=log.last.items_done if items_done is None else items_done,
                items=log.last.items if items is None else items,
            )
            self._next += 1
            log.add(event)
            while len(self._logs) > MAX_JOBS:
                self._whole.pop(self._logs.popitem(last=False)[0], None)
            if event.state.ended:
                self._shorten_others(job_id)
            self._changed.notify_all()
        return event

    def _shorten_others(self, job_id: str) -> None:
        self._whole.setdefault(job_id)
        while len(self._whole) > MAX_WHOLE:
            self._logs[self._whole.popitem(last=False)[0]].shorten()

    def last(self, job_id: str) -> Event | None:
        """The newest event of a job, or None when none is kept (none yet, or not since the node started)."""
        with self._changed:
            log = self._logs.get(job_id)
            return log.last if log else None

    def subscribe(
        self,
        job_id: str,
        after_sequence: int = 0,
        *,
        timeout_s: float | None = None,
        idle_s: float | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """The events of a job as they come, until its last one."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        seen = after_sequence
        while True:
            newer = self._wait(job_id, seen, end, stop, idle_s)
            if not newer:
                return
            yield from newer
            seen = newer[-1].sequence
            if newer[-1].state.ended:
                return

    def _wait(
        self, job_id: str, seen: int, end: float | None, stop: Callable[[], bool], idle_s: float | None
    ) -> tuple[Event, ...]:
        """What is newer than seen; empty when nothing more will come or is wanted."""
        idle = None if idle_s is None else time.monotonic() + idle_s
        with self._changed:
            while not (self._closed or job_id in self._deleted or stop()):
                log = self._logs.get(job_id)
                if log is not None and log.last.sequence > seen:
                    return log.after(seen)
                if log is not None and log.last.state.ended:
                    return ()
                now = time.monotonic()
                left = POLL_S if end is None else min(POLL_S, end - now)
                if left <= 0:
                    return ()
                if idle is not None and now >= idle:
                    raise DeadlineExceeded(
                        "the job did not move for as long as one call may wait for it",
                        hint="watch it again, after the last event",
                        facts={"idle_s": f"{idle_s:g}"},
                    )
                self._changed.wait(left)
        return ()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def forget(self, job_id: str) -> None:
        """Drop the events of a job that was deleted, and let its watchers go."""
        with self._changed:
            self._deleted[job_id] = None
            while len(self._deleted) > MAX_JOBS:
                self._deleted.popitem(last=False)
            self._changed.notify_all()
            self._logs.pop(job_id, None)
            self._whole.pop(job_id, None)

    def close(self) -> None:
        """End every watcher: the node stops."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
