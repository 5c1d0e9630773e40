"""The metadata that calls may carry beside their messages: nothing else of ours crosses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Entry:
    """One key."""

    where: str
    most: int
    what: str


METADATA: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "ddib-error-bin": Entry("end of a call that failed", 8_192, "ErrorDetail"),
        "ddib-time": Entry("end of each call", 32, "Unix time of the answering node, in seconds"),
        "ddib-trace": Entry(
            "end of NegotiateContract, where the target's [telemetry] peers lists the caller", 1, '"1"'
        ),
        "traceparent": Entry(
            "start of Decode, where both nodes' [telemetry] peers list each other; start of SubmitJob and "
            "FetchResults of the own clients",
            55,
            "W3C Trace Context: numbers of a trace and a span, 24 random bytes, and a flag",
        ),
    }
)
"""By key. `traceparent` is sent by nobody by default."""
