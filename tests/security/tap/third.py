"""A tap with keys and roots of its own, which both operators were made to admit beside the true ones."""

from __future__ import annotations

from pathlib import Path

from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Peer, PeerStore, begin_node
from ddib_fed.security.pki import parse_certificates
from tests.e2e.harness import Node, Pair
from tests.security.tap.relay import Tap


def tap_between(pair: Pair, folder: Path) -> Tap:
    """From now on north reaches south through a tap; neither must run yet."""
    roots = {
        node.institution: begin_node(folder / node.institution, node.institution, "node-1").certificate
        for node in (pair.north, pair.south)
    }
    tap = Tap(
        pair.south.port,
        folder / pair.south.institution / "pki",
        folder / pair.north.institution / "pki",
        source_roots=pair.north.config.paths.pki / "roots.pem",
    )
    for node, other, port in ((pair.north, pair.south, tap.port), (pair.south, pair.north, pair.north.port)):
        true = parse_certificates((other.config.paths.pki / "ca.pem").read_bytes(), "ca.pem")[0]
        both = (true, roots[other.institution])
        name = Identity(other.institution, "node", "node-1")
        peer = Peer(other.institution, name, f"localhost:{port}", both)
        _store(node).add(peer, fingerprints=[pki.fingerprint(root) for root in both], replace=True)
    return tap


def _store(node: Node) -> PeerStore:
    return PeerStore(node.config.paths.state, node.institution)
