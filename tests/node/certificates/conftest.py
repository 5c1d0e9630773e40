"""The issuing node of north, set up and serving renewals."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddib_fed.node.config import NodeConfig
from ddib_fed.security import pki
from ddib_fed.security.peers import begin_node
from tests.node.certificates.issuing import HOUR, NOW, Server, configured


@pytest.fixture
def issuer(tmp_path: Path) -> NodeConfig:
    """The node that holds the root's key."""
    config = configured(tmp_path / "issuer")
    authority = begin_node(config.paths.state, "north.example", "node-1", now=NOW - 100 * 24 * HOUR)
    pki.issue_to_folder(authority, config.paths.pki, "node", "node-1")
    return config


@pytest.fixture
def server(issuer: NodeConfig):
    made = Server(issuer)
    yield made
    made.grpc.stop(None).wait()
