"""Trace ids beside calls: the metadata `traceparent` of a request, and `ddib-trace` by which a target takes it.

Between institutions a trace id crosses only where both list each other in `[telemetry] peers`: a target that lists the
caller ends NegotiateContract with `ddib-trace`, and a source that lists the target then sends `traceparent` with
Decode. A client sends it to the node of its own institution. What arrives is untrusted: one value of the one form, or
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ddib_fed.telemetry.context import TRACEPARENT_CHARACTERS, TraceContext, parse_traceparent
from ddib_fed.telemetry.tracing import Tracing

TRACE_KEY: Final = "traceparent"
TAKES_KEY: Final = "ddib-trace"
_TAKEN: Final = "1"
Entries = tuple[tuple[str, str], ...]


def trace_entries(context: TraceContext | None) -> dict[str, Any]:
    return {} if context is None else {"metadata": ((TRACE_KEY, context.traceparent),)}


def trace_of(metadata: Iterable[Any] | None, tracing: Tracing, institution: str) -> TraceContext | None:
    """Where a call belongs, by its metadata."""
    if not tracing.shares_with(institution):
        return None
    found = [value for key, value in metadata or () if key == TRACE_KEY]
    if len(found) != 1 or not isinstance(found[0], str) or len(found[0]) != TRACEPARENT_CHARACTERS:
        return None
    return parse_traceparent(found[0])


def takes_entries(tracing: Tracing, institution: str) -> Entries:
    return ((TAKES_KEY, _TAKEN),) if tracing.shares_with(institution) else ()


def is_taken(trailing: Iterable[Any] | None) -> bool:
    return any(key == TAKES_KEY and value == _TAKEN for key, value in trailing or ())
