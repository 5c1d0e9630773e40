"""Records refused callers, at a bounded rate, for the operator."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final, Protocol

import grpc

from ddib_fed.errors import RefusedError

log = logging.getLogger(__name__)

# The audit log gets one line for the same refusal in this time, so that refused callers cannot fill the disk.
REFUSAL_INTERVAL_S: Final = 60.0
MAX_REFUSALS: Final = 1024


class Audit(Protocol):
    """Where refusals are recorded; see `audit.AuditLog`."""

    def write(self, act: str, **values: str) -> None:
        """Add a line."""


class Refusals:
    """Records refusals, the same one at most once in `REFUSAL_INTERVAL_S`."""

    def __init__(self, audit: Audit | None) -> None:
        self._audit = audit
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str, str], float] = {}

    def record(self, context: grpc.ServicerContext, what: str, error: RefusedError) -> None:
        """Write to the audit log; a failure is logged and does not lift the refusal."""
        host = context.peer().rpartition(":")[0]
        log.warning("refused %s from %s: %s: %s", what, host, error.reason, error.detail)
        if self._audit is None or not self._is_new((host, what, error.reason)):
            return
        try:
            self._audit.write("refused", what=what, address=host, reason=error.reason, detail=error.detail)
        except OSError:
            log.exception("a refusal could not be written to the audit log")

    def _is_new(self, key: tuple[str, str, str]) -> bool:
        now = time.monotonic()
        with self._lock:
            if now - self._last.get(key, -REFUSAL_INTERVAL_S) < REFUSAL_INTERVAL_S:
                return False
            if len(self._last) >= MAX_REFUSALS:
                self._last.clear()
            self._last[key] = now
            return True
