"""Strangers without any certificate against a running node: it answers all the while."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ddib_fed.trust import tls
from tests.e2e.harness import Node, ddib, wait_until

pytestmark = pytest.mark.e2e

FILES = 256
# gRPC itself would give a silent connection two minutes.
SOON_S = 20.0


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A target with few open files."""
    made = Node.create(tmp_path / "south", "target", "south.example", "checkerboards")
    made.open_files = FILES
    yield made.start()
    made.stop()


def healthy(node: Node) -> bool:
    """Whether Health answers a caller of the institution over mutual TLS."""
    address, name = f"127.0.0.1:{node.port}", "node-1.south.example"
    with tls.channel(address, server_name=name, pki_folder=node.config.paths.pki) as channel:
        request = health_pb2.HealthCheckRequest()
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_silent_connections_stop_neither_health_nor_status(node: Node) -> None:
    """More of them than the node may have files, from one address, held open: both answer soon."""
    assert healthy(node)
    with ExitStack() as crowd:
        for _ in range(FILES + 50):
            crowd.enter_context(socket.create_connection(("127.0.0.1", node.port), timeout=10))
        started = time.monotonic()
        assert "serving" in ddib("status", "--config", node.config_path)
        wait_until(lambda: healthy(node), seconds=SOON_S, what="health")
        assert time.monotonic() - started < SOON_S
    assert "LimitNOFILE" in node.log()
    assert "Too many open files" not in node.log()
