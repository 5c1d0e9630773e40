"""What a diagnosis finds: the cause of a failed connection, its text and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from ddib_fed.errors import DdibError, PeerUnreachable, Unauthenticated
from ddib_fed.rpc.addresses import split_address
from ddib_fed.terminal import escape

_MAX_NAME: Final = 80

Cause = Literal[
    "ok",
    "own-certificate",
    "own-expired",
    "own-not-valid-yet",
    "name-not-found",
    "name-server",
    "nothing-listens",
    "timeout",
    "no-route",
    "no-connection",
    "proxy",
    "silent",
    "closed",
    "plain-http",
    "not-tls",
    "tls-version",
    "wrong-root",
    "wrong-server",
    "tls-inspection",
    "wrong-name",
    "expired",
    "not-valid-yet",
    "refused-us",
    "not-grpc",
    "proxy-unreachable",
    "proxy-login",
    "proxy-refused",
    "proxy-no-way",
    "not-a-proxy",
]
_OURS: Final = frozenset({"own-certificate", "own-expired", "own-not-valid-yet"})
_PASSING: Final = frozenset(
    {
        "ok",
        "name-server",
        "nothing-listens",
        "timeout",
        "no-route",
        "no-connection",
        "silent",
        "closed",
        "proxy-unreachable",
        "proxy-no-way",
    }
)
"""Causes that a node which is being started, or a network, may have for a while; the others stay."""
CLOCK_HINT: Final = "`timedatectl` shows whether this machine's clock is synchronised"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a connection attempt."""

    cause: Cause
    text: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return self.cause == "ok"

    def __str__(self) -> str:
        return f"{self.text} [{self.cause}]"

    def as_error(self, hop: str) -> DdibError:
        """The error of a call that failed for this cause."""
        refused = self.cause in _OURS or self.cause == "refused-us"
        kind = Unauthenticated if refused else PeerUnreachable
        if self.cause in _OURS:
            hop = "client" if hop.startswith("source ") else ""
        error = kind(str(self), hop=hop, hint=self.remedy)
        error.facts |= {"cause": self.cause, "found": str(self)}
        return error


def may_pass(cause: str) -> bool:
    """Whether waiting may end a cause."""
    return cause in _PASSING


def short(text: str) -> str:
    return escape(text[:_MAX_NAME])[:_MAX_NAME]


def host_and_port(address: str) -> str:
    host, port = split_address(address)
    return f"{host} {port}"


def moment(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def span(length: timedelta) -> str:
    """A length of time in the largest unit of which it has two."""
    seconds = length.total_seconds()
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
