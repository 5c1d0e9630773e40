"""The running nodes that several attacks share, started when the first of them asks."""

from __future__ import annotations

import functools
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from ddib_fed.errors import DdibError
from ddib_fed.trust import pki
from ddib_fed.trust.identity import Identity
from ddib_fed.trust.peers.file import Peer
from tests.chaos.load import stub_pair
from tests.e2e.harness import Node, Pair

ENDS = ExitStack()
"""Stops them."""
SATELLITE, MOONS = "south.example/relief", "south.example/moons"


def _folder() -> Path:
    return Path(ENDS.enter_context(tempfile.TemporaryDirectory(prefix="ddib-nodes-")))


@functools.cache
def pictures() -> Pair:
    """The shipped satellite and relief models, logging all they say as JSON."""
    pair = Pair.create(_folder(), "relief", domain="satellite")
    for node in (pair.north, pair.south):
        node.edit('# level = "info"', 'level = "debug"')
        node.edit('# format = "text"', 'format = "json"')
        node.environment |= {"GRPC_TRACE": "all", "GRPC_VERBOSITY": "debug"}
    ENDS.callback(pair.stop)
    return pair.start()


@functools.cache
def points() -> Pair:
    """Small networks of points: what is attacked is around them."""
    pair = stub_pair(_folder())
    ENDS.callback(pair.stop)
    return pair.start()


def pid(node: Node) -> int:
    """Of a running node."""
    assert node.process is not None
    return node.process.pid


def _serving(node: Node) -> bool:
    try:
        return node.state() == "serving"
    except DdibError:  # of a configuration that cannot be read
        return False


def served(node: Node, seconds: float = 20.0) -> int | None:
    """Start a node: its exit code when it ended by itself, None when it serves; it is stopped then."""
    node.start(wait=False)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            if (code := node.process.poll() if node.process else 1) is not None:
                return code
            if _serving(node):
                return None
            time.sleep(0.05)
        raise subprocess.TimeoutExpired("serve", seconds)
    finally:
        node.stop()


def peer_of(node: Node) -> Peer:
    """What a node's peer file says."""
    root = pki.load_authority(node.config.paths.pki).certificate
    return Peer(
        node.institution, Identity(node.institution, "node", "node-1"), f"localhost:{node.port}", (root,)
    )


def root_of(node: Node) -> str:
    """The fingerprint of its institution's root."""
    return pki.fingerprint(pki.load_authority(node.config.paths.pki).certificate)
