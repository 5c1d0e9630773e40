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
from ddib_fed.trust.peers.snapshot import Snapshot
from ddib_fed.trust.peers.store import PeerStore
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
        everything = sorted(_described(snapshot).items())
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
        if snapshot is not self._snapshot:
            before, after = _described(self._snapshot), _described(snapshot)
            names = sorted(
                name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
            )
            changes = [
                change
                for name in names
                for change in _changes(name, before.get(name), after.get(name), snapshot)
            ]
            if changes:
                self._audit.write("trust_changed", changes=changes)
            for name in names:
                _log_change(name, self._snapshot, snapshot)
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


def _log_change(name: str, before: Snapshot, after: Snapshot) -> None:
    """One line of the node's log: peers come and go, whoever changed the files."""
    kind, _, who = name.partition(" ")
    peer = after.peers.get(who) if kind == "peer" else None
    if peer is not None:
        verb = "changed peer" if who in before.peers else "admitted peer"
        log.info("%s %s: %s at %s, %s", verb, who, peer.identity, peer.address, peer.fingerprint)
    elif kind == "peer":
        log.info("removed peer %s", who)
    else:
        gone = name not in _described(after)
        log.info("%s %s", "no longer:" if gone else "now:", name)


def _described(snapshot: Snapshot) -> dict[str, str]:
    """Everything trusted, by what it is."""
    found = {f"root {fingerprint(root)}": "" for root in snapshot.own_roots}
    found |= {f"withdrawn {identity}": "" for identity in snapshot.withdrawn}
    found |= {f"suspended {name}": since for name, since in snapshot.suspended.items()}
    for name, peer in snapshot.peers.items():
        found[f"peer {name}"] = f"{peer.identity} at {peer.address}, roots {' '.join(peer.fingerprints)}"
    return found


def _changes(name: str, before: str | None, after: str | None, snapshot: Snapshot) -> list[str]:
    """What changed, and each root of a peer by itself: long values are cut, and no fingerprint may be."""
    if after is None:
        return [f"no longer {name}"]
    verb = "now" if before is None else "changed"
    kind, _, who = name.partition(" ")
    if kind != "peer":
        return [f"{verb} {name}"]
    peer = snapshot.peers[who]
    roots = (f"root {text} of {who}" for text in peer.fingerprints)
    return [f"{verb} {name}: {peer.identity} at {peer.address}", *roots]
