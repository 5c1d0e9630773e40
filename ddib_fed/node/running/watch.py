"""The periodic check of a running node: disk, trust, certificate and audit log; the lines of start and stop.

What changed is in the audit log, and what is wrong in the node's state, within `certificates.renewal.CHECK_INTERVAL_S`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ddib_fed.node.role import NodeContext
from ddib_fed.node.running.disk import DiskWatch
from ddib_fed.trust.audit.lines import Value
from ddib_fed.trust.audit.observed import Observed
from ddib_fed.trust.audit.refusals import Refusals
from ddib_fed.trust.tls import ServerCredentials

log = logging.getLogger(__name__)


class Watch:
    """Looks after the files that say whom a node trusts, and after the log of what it did."""

    def __init__(
        self,
        node: NodeContext,
        credentials: ServerCredentials,
        disk: DiskWatch,
        refusals: Refusals,
        peers_changed: Callable[[], object],
    ) -> None:
        self._node = node
        self._credentials = credentials
        self._disk = disk
        self._refusals = refusals
        self._peers_changed = peers_changed
        self._observed = Observed(node.audit, node.peers, node.config.paths.pki)
        self._said: str | None = None
        self._started = False
        # Both the renewal thread and the operator's reload look: an older result must not overwrite a newer.
        self._lock = threading.Lock()

    def look(self) -> None:
        """Check once; a problem is logged when it begins and when it ends."""
        self._peers_changed()
        self._refusals.flush()
        with self._lock:
            problem = self._disk.problem or self._credentials.problem
            try:
                self._observed.look()
                self._node.peers.keep_withdrawn()
            except OSError as error:
                problem = problem or f"the withdrawn identities or the audit log cannot be written: {error}"
            problem = problem or self._node.audit.look()
            if problem and problem != self._said:
                log.error("degraded: %s", problem)
            elif self._said and not problem:
                log.info("no longer degraded: %s", self._said)
            self._said = problem

    def unheard(self, address: str, times: int) -> None:
        """Record connections that ended without a call."""
        self._refusals.add(
            "NO_CALL",
            identity="",
            address=address,
            what="connection",
            detail="it ended without a call: its TLS handshake failed, or it made none",
            times=times,
        )

    def started(self, **values: Value) -> None:
        self._node.audit.write("node_started", **values, **self._observed.summary())
        self._started = True

    def stopped(self, **values: Value) -> None:
        """Write what is merged, and the line of a stop if there was one of a start."""
        self._refusals.flush(everything=True)
        if not self._started:
            return
        try:
            self._node.audit.write("node_stopped", **values)
        except OSError:
            log.exception("the stop could not be written to the audit log")
