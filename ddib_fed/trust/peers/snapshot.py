"""Whom a node trusts at one moment: its own roots, its admitted peers, and who is withdrawn or suspended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509

from ddib_fed.errors import PeerSuspended
from ddib_fed.trust.identity import Identity, Pins
from ddib_fed.trust.peers.file import Peer
from ddib_fed.trust.pki import certificate_pem


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The peers and roots that this node trusts at one moment; compared by identity.

    Attributes:
        institution: The node's own.
        own_roots: Its own institution's roots.
        peers: Admitted peers by institution.
        pins: For each institution known, its roots: the own one and the peers'.
        withdrawn: Identities that are refused although their certificate is valid, e.g. because a key was lost.
        suspended: Admitted peers that are refused and not called until they are resumed, each with since when and why.
    """

    institution: str
    own_roots: tuple[x509.Certificate, ...]
    peers: Mapping[str, Peer]
    pins: Pins
    withdrawn: frozenset[Identity] = frozenset()
    suspended: Mapping[str, str] = field(default_factory=dict)

    @property
    def roots_pem(self) -> bytes:
        """Every root that a caller's certificate may come from, for the TLS layer."""
        return certificate_pem(*(root for roots in self.pins.values() for root in roots))

    def is_admitted_node(self, identity: Identity) -> bool:
        """Whether this is exactly the node of an admitted peer; it may be suspended."""
        peer = self.peers.get(identity.institution)
        return peer is not None and peer.identity == identity

    def allows(self, entry: Peer) -> bool:
        """Whether a connection that was made by a peer's entry, of this snapshot or an earlier one, may go on."""
        current = self.peers.get(entry.institution)
        if current is None or current.identity in self.withdrawn or entry.institution in self.suspended:
            return False
        return current is entry or current.still_vouches_for(entry)

    def refuse_suspended(self, institution: str) -> None:
        """Return if the peer is not suspended.

        Raises:
            PeerSuspended: It is.
        """
        if institution in self.suspended:
            raise PeerSuspended(
                f"{institution} is suspended on this node, {self.suspended[institution]}",
                hint=f"its operator lifts it: ddib peer resume {institution}",
                facts={"peer": institution, "by": self.institution},
            )
