"""Events of jobs in memory, from workers to watchers, however slow a watcher is.

A job keeps a bounded number of events, and the hub a bounded number of jobs: the state of any other is in the store. A
step replaces the one before it of the same item and stage: a watcher that falls behind misses steps, not changes of
state. Sequence numbers rise within a job, also over a restart.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

from ddib_fed.errors import DeadlineExceeded
from ddib_fed.protocol.messages import Event, JobState

MAX_EVENTS = 512
"""Kept of one job; the oldest go first."""
MAX_JOBS = 128
"""Jobs whose events are kept; the longest silent go first."""
POLL_S = 0.25
"""How often a waiting watcher looks whether it is still wanted."""
_BOOT_BITS = 32


class EventHub:
    """The events of a node's jobs; safe to use from any thread."""

    def __init__(self, boot: int) -> None:
        self._next = (boot << _BOOT_BITS) + 1
        self._logs: OrderedDict[str, OrderedDict[object, Event]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def publish(self, job_id: str, state: JobState, **values: Any) -> Event:
        """Tell the watchers of a job something, fields of `Event`; the event, or the last one of a job that has ended.

        An event without `items` has the numbers of items of the one before it.
        """
        with self._changed:
            log = self._logs.setdefault(job_id, OrderedDict())
            self._logs.move_to_end(job_id)
            last = _last(log)
            if last is not None:
                if last.state.ended and not state.ended:
                    return last
                values = {"items_done": last.items_done, "items": last.items} | values
            event = Event(self._next, state, **values)
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

    def last(self, job_id: str) -> Event | None:
        """The newest event of a job, or None when none is kept (none yet, or not since the node started)."""
        with self._changed:
            return _last(self._logs.get(job_id))

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
            yield from newer
            if not newer or newer[-1].state.ended:
                return
            seen = newer[-1].sequence

    def _wait(
        self, job_id: str, seen: int, end: float | None, stop: Callable[[], bool], idle_s: float | None
    ) -> Sequence[Event]:
        """What is newer than seen; empty when nothing more will come or is wanted."""
        idle = None if idle_s is None else time.monotonic() + idle_s
        with self._changed:
            while not (self._closed or stop()):
                log = self._logs.get(job_id)
                last = _last(log)
                if log is not None and last is not None and last.sequence > seen:
                    newer = takewhile(lambda event: event.sequence > seen, reversed(log.values()))
                    return list(newer)[::-1]
                now = time.monotonic()
                left = POLL_S if end is None else min(POLL_S, end - now)
                if left <= 0 or (last is not None and last.state.ended):
                    return ()
                if idle is not None and now >= idle:
                    raise DeadlineExceeded(
                        "the job did not move for as long as one call may wait for it",
                        hint="watch it again, after the last event",
                        facts={"idle_s": f"{idle_s:g}"},
                    )
                self._changed.wait(left)
        return ()

    def close(self) -> None:
        """End every watcher: the node stops."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _last(log: OrderedDict[object, Event] | None) -> Event | None:
    return next(reversed(log.values())) if log else None
