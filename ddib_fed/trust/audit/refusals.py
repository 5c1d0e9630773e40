"""Records refused callers for the operator: one line for an identity and reason in a minute, with how often.

A caller without an identity, e.g. one that TLS refused, counts by its address.

The rate is bounded, so that refused callers cannot fill the disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import grpc

from ddib_fed.errors import RefusedError

log = logging.getLogger(__name__)

INTERVAL_S: Final = 60.0
"""The audit log gets one line for the same identity and reason in this time."""
MAX_KEYS: Final = 256
"""Identities and reasons that are counted apart at a time; further ones share a line for each reason."""
OTHERS: Final = "(others)"
"""Who is named in that line: an admitted institution can make as many identities as it likes."""


class Audit(Protocol):
    """Where refusals are recorded; see `log.AuditLog`."""

    def write(self, act: str, **values: str | int) -> object:
        """Add a line."""


@dataclass(slots=True)
class _Refused:
    """The refusals of one identity for one reason."""

    since: float
    unwritten: int = 0
    values: dict[str, str] = field(default_factory=dict)


class Refusals:
    """Records refusals, those of an identity for one reason as one line in `INTERVAL_S`.

    Args:
        audit: Where the lines go; None for the log alone.
        clock: Seconds, monotonic.
    """

    def __init__(self, audit: Audit | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._audit = audit
        self._clock = clock
        self._lock = threading.Lock()
        self._refused: dict[tuple[str, str], _Refused] = {}

    def record(self, context: grpc.ServicerContext, what: str, error: RefusedError, *, identity: str) -> None:
        """Record one refused call; a failure to write is logged and does not lift the refusal.

        Args:
            context: Of the call.
            what: The method, or what else was refused.
            error: Why.
            identity: Of the caller, as its certificate claims it; empty if it names none.
        """
        host = context.peer().rpartition(":")[0]
        log.warning("refused %s from %s: %s: %s", what, identity or host, error.reason, error.detail)
        self.add(error.reason, identity=identity, address=host, what=what, detail=error.detail)

    def add(
        self, reason: str, *, identity: str, address: str, what: str, detail: str, times: int = 1
    ) -> None:
        """Count refusals, and write them if there was no line for this identity and reason lately.

        Args:
            reason: A name in upper case, as an error has.
            identity: Of the caller; empty where it has none.
            address: Where it called from.
            what: What was refused.
            detail: Why.
            times: How many there were.
        """
        now = self._clock()
        with self._lock:
            key = (identity or address, reason)
            if key not in self._refused and len(self._refused) >= MAX_KEYS:
                key, identity = (OTHERS, reason), OTHERS
            entry = self._refused.setdefault(key, _Refused(now - INTERVAL_S))
            entry.unwritten += times
            entry.values = {"identity": identity, "address": address, "what": what, "detail": detail}
            due = [key] if now - entry.since >= INTERVAL_S else []
        self._write(due, now)

    def flush(self, *, everything: bool = False) -> None:
        """Write what was merged and is due, and forget who has not been refused lately.

        Args:
            everything: Also what is not due, at the end of the node.
        """
        now = self._clock()
        with self._lock:
            over = [
                key for key, entry in self._refused.items() if everything or now - entry.since >= INTERVAL_S
            ]
            due = [key for key in over if self._refused[key].unwritten]
            for key in set(over) - set(due):
                del self._refused[key]
        self._write(due, now)

    def _write(self, due: list[tuple[str, str]], now: float) -> None:
        for key in due:
            with self._lock:
                entry = self._refused.get(key)
                if entry is None or not entry.unwritten:
                    continue
                times, entry.unwritten, entry.since, values = entry.unwritten, 0, now, entry.values
            if self._audit is None:
                continue
            try:
                self._audit.write("refused", reason=key[1], times=times, **values)
            except OSError:
                log.exception("a refusal could not be written to the audit log")
                with self._lock:
                    entry.unwritten += times
