"""Where in which trace a call belongs: the `traceparent` of W3C Trace Context, level 1, read strictly.

traceparent = "00-" 32 hex digits (trace) "-" 16 hex digits (span) "-" 2 hex digits (flags)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

TRACEPARENT_CHARACTERS: Final = 55
_FORM: Final = re.compile(
    r"00-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})", re.ASCII
)
_SAMPLED: Final = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span to which others belong."""

    trace_id: int
    span_id: int
    sampled: bool

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"


def parse_traceparent(text: str) -> TraceContext | None:
    """The context in a text of another side; None for anything but the one form, which is as if it said nothing."""
    if len(text) != TRACEPARENT_CHARACTERS or (match := _FORM.fullmatch(text)) is None:
        return None
    trace_id, span_id = int(match["trace"], 16), int(match["span"], 16)
    if not trace_id or not span_id:
        return None
    return TraceContext(trace_id, span_id, bool(int(match["flags"], 16) & _SAMPLED))
