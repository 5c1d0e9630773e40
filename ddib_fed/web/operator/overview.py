"""What the operator's page shows: the running node's own words, its files and its audit log, as texts and rows."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from ddib_fed.errors import DdibError, InternalError, error_class
from ddib_fed.files import read_small
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.officer.facts import Facts, gather
from ddib_fed.node.officer.recent import Hour, Recent
from ddib_fed.node.running.admin import AdminClient
from ddib_fed.trust import pki
from ddib_fed.trust.pki import parse_certificates

if TYPE_CHECKING:
    from ddib_fed.v1 import admin_pb2

FACTS_S: Final = 60.0
"""How long the slow facts (the whole audit log, sizes on the disk) are used."""
DAY_S: Final = 86_400
LEAF_WARN_DAYS: Final = 0.25
"""Days left of a node's own certificate below which its renewal is late: it lives a day, renewed at two thirds."""
ROOT_WARN_DAYS: Final = 90
REFUSALS: Final = {
    "NO_CALL": "connections that ended without a call, such as a port scan or a failed TLS handshake"
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate on the page."""

    what: str
    until: str
    left: str
    advice: str


@dataclass(frozen=True, slots=True)
class Live:
    """What changes from minute to minute."""

    at: str
    state: str
    good: bool
    problem: str
    status: admin_pb2.StatusResponse | None
    uptime: str
    queue: tuple[tuple[str, int], ...]
    certificates: tuple[Certificate, ...]
    hours: tuple[Hour, ...]
    refused: tuple[tuple[str, int, str], ...]

    @property
    def busiest(self) -> int:
        return max([1, *(hour.sent_items + hour.received_items for hour in self.hours)])

    def total(self, name: str, hours: int) -> int:
        return sum(getattr(hour, name) for hour in self.hours[-hours:])


class Overview:
    """Asks the node and reads its files; for several threads."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._recent = Recent(config.paths.audit)
        self._lock = threading.Lock()
        self._facts: tuple[float, Facts] | None = None

    def live(self) -> Live:
        """The state at this moment; a node that does not answer is a state, too."""
        now = datetime.now(UTC)
        status: admin_pb2.StatusResponse | None = None
        problem = ""
        try:
            status = AdminClient(self.config).status()
        except DdibError as error:
            problem = f"{error.detail}. {error.hint}"
        with self._lock:
            hours = self._recent.hours(now)
        state = status.state if status is not None else "does not run, or does not answer"
        return Live(
            at=f"{now.astimezone():%H:%M:%S}",
            state=state,
            good=state == "serving",
            problem=problem,
            status=status,
            uptime="" if status is None else duration(status.uptime_s),
            queue=() if status is None else _queue(status),
            certificates=tuple(self._certificates(now)),
            hours=hours,
            refused=refusals(hours),
        )

    def facts(self) -> Facts:
        """What the officer's page says of the node; gathered again after a minute."""
        with self._lock:
            if self._facts is None or time.monotonic() - self._facts[0] > FACTS_S:
                self._facts = time.monotonic(), gather(self.config)
            return self._facts[1]

    def _certificates(self, now: datetime) -> Iterator[Certificate]:
        folder = self.config.paths.pki
        try:
            leaf = pki.load_identity(folder).not_after
            yield _certificate(
                "This node", leaf, now, LEAF_WARN_DAYS, "it renews by itself: its log says why not"
            )
            roots = parse_certificates(read_small(folder / "roots.pem"), "roots.pem")
            for root in roots:
                yield _certificate(
                    "Your institution's root", root.not_valid_after_utc, now, ROOT_WARN_DAYS, _ROLL
                )
        except (DdibError, OSError) as error:
            yield Certificate("This node", "", "cannot be read", str(error))
        for peer in peer_store(self.config).list():
            for root in peer.roots:
                what = f"Root of {peer.institution}"
                yield _certificate(
                    what, root.not_valid_after_utc, now, ROOT_WARN_DAYS, "ask for its new peer file"
                )


_ROLL: Final = "roll it over: docs/operating.md"


def _certificate(what: str, until: datetime, now: datetime, warn_days: float, advice: str) -> Certificate:
    left_s = (until - now).total_seconds()
    left = duration(left_s) if left_s > 0 else "expired"
    return Certificate(
        what, f"{until:%Y-%m-%d %H:%M} UTC", left, advice if left_s < warn_days * DAY_S else ""
    )


def _queue(status: admin_pb2.StatusResponse) -> tuple[tuple[str, int], ...]:
    first = ("queued", "running")
    counts = {**dict.fromkeys(first, 0), **dict(status.jobs)}
    rest = sorted(state for state in counts if state not in first)
    return tuple((state, int(counts[state])) for state in (*first, *rest))


def refusals(hours: Sequence[Hour]) -> tuple[tuple[str, int, str], ...]:
    """(reason, times, meaning), the most frequent first."""
    total: Counter[str] = Counter()
    for hour in hours:
        total.update(hour.refused)
    return tuple((reason, times, _meaning(reason)) for reason, times in total.most_common())


def _meaning(reason: str) -> str:
    kind = error_class(reason)
    if kind is InternalError and reason != InternalError.reason:
        return REFUSALS.get(reason, "see docs/operating.md")
    return kind.sentence


def duration(seconds: float) -> str:
    """A time in words, in its largest two units."""
    minutes = int(seconds // 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    if days >= 30:
        return f"{days:,} days"
    if days:
        return f"{days} {'day' if days == 1 else 'days'} {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
