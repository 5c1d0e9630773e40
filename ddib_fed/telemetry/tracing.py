"""Spans of the steps of a translation; here the interface, and tracing that is off.

Parents are given explicitly: one translation passes through many threads, and two institutions. Values of spans are
numbers, names of institutions, numbers of jobs and reasons of errors: never a file's name, a text of an error, an
identity or anything of a sample.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from ddib_fed.telemetry.context import TraceContext

Kind = Literal["internal", "server", "client"]
Value = str | int | float
MOST_REMEMBERED: Final = 4_096
"""Jobs whose place in a trace is known; the oldest are forgotten, and their spans begin traces of their own."""
MOST_ITEMS: Final = 64
"""Items of a job, or of a call, that have spans of their own."""


class Span:
    """A step while it runs; of tracing that is off."""

    context: TraceContext | None = None

    def set(self, values: Mapping[str, Value]) -> None:
        """Note more of it."""


class Tracing:
    """Tracing that is off: nothing is recorded, kept or sent."""

    on = False

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        parent: TraceContext | None = None,
        values: Mapping[str, Value] | None = None,
    ) -> Iterator[Span]:
        del name, kind, parent, values
        yield Span()

    def record(
        self,
        name: str,
        seconds: float,
        *,
        parent: TraceContext | None,
        values: Mapping[str, Value] | None = None,
    ) -> None:
        """A step that has just ended and took so long."""

    def shares_with(self, institution: str) -> bool:
        del institution
        return False

    def remember(self, key: str, context: TraceContext | None) -> None:
        """Keep the place of a job in its trace."""

    def recall(self, key: str) -> TraceContext | None:
        del key
        return None

    def close(self) -> None:
        """Send what is left."""


class Remembered:
    """The places of jobs in their traces, the newest of them."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._most = most
        self._places: OrderedDict[str, TraceContext] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: str, context: TraceContext) -> None:
        """Keep one."""
        with self._lock:
            self._places[key] = context
            self._places.move_to_end(key)
            while len(self._places) > self._most:
                self._places.popitem(last=False)

    def get(self, key: str) -> TraceContext | None:
        with self._lock:
            return self._places.get(key)


OFF: Final = Tracing()


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a trace something happens."""

    tracing: Tracing = OFF
    context: TraceContext | None = None


NOWHERE: Final = Place()
