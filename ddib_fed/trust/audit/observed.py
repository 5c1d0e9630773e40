"""Writes to the audit log whom and what a running node trusts, and each change of it, whoever made the change.

The commands write what an operator did. A file that somebody put into the state folder by hand has no such line: the
node writes what it finds there.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from ddib_fed.errors import DdibError
from ddib_fed.trust.audit.log import AuditLog
from ddib_fed.trust.peers import PeerStore, trust_changes
from ddib_fed.trust.pki import fingerprint, load_identity, parse_certificates

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Certificate:
    """The node's own, as it lies in its folder."""

    fingerprint: str
    until: str


class Observed:
    """What the node found when it last looked.

    Args:
        audit: Where changes are written.
        peers: Who is admitted and who is withdrawn.
        pki_folder: Of the node.
    """

    def __init__(self, audit: AuditLog, peers: PeerStore, pki_folder: Path) -> None:
        self._audit = audit
        self._peers = peers
        self._pki_folder = pki_folder
        self._snapshot = peers.snapshot()
        self._certificate = self._own()

    def summary(self) -> dict[str, str | int | list[str]]:
        """Whom and what the node trusts now, for the line of its start; `trust` is a digest over all of it."""
        snapshot = self._snapshot
        everything = sorted(snapshot.described().items())
        return {
            "peers": sorted(snapshot.peers),
            "suspended": sorted(snapshot.suspended),
            "withdrawn": len(snapshot.withdrawn),
            "certificate": self._certificate.fingerprint if self._certificate else "",
            "trust": hashlib.sha256(repr(everything).encode()).hexdigest(),
        }

    def look(self) -> None:
        """Write what changed since the last look.

        Raises:
            OSError: The audit log cannot be written; the change is written at the next look.
        """
        snapshot = self._peers.snapshot()
        changes = list(trust_changes(self._snapshot, snapshot))
        if changes:
            self._audit.write("trust_changed", changes=changes)
        for change in changes:
            log.info("%s", change)
        self._snapshot = snapshot
        certificate = self._own()
        if certificate is not None and certificate != self._certificate:
            self._audit.write(
                "certificate_changed", certificate=certificate.fingerprint, until=certificate.until
            )
            self._certificate = certificate

    def _own(self) -> _Certificate | None:
        try:
            own = load_identity(self._pki_folder)
            leaf = parse_certificates(own.cert_chain_pem, "leaf.pem")[0]
        except (DdibError, OSError):  # the node's health says so
            return None
        return _Certificate(fingerprint(leaf), own.not_after.isoformat())
