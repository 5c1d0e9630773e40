"""The operator's socket: for this user alone, one node's, and honest about what went wrong."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from ddib_fed.errors import ConfigError, PeerUnreachable
from ddib_fed.node.admin import AdminClient, operator_service
from ddib_fed.v1 import admin_pb2 as pb
from tests.node.tiny_nodes import make_config


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path / "node", "north.example", "source")


class Node:
    """What the daemon gives to the service."""

    def __init__(self) -> None:
        self.answer = pb.StatusResponse(state="serving")
        self.changes = ["added peer south.example"]

    def status(self) -> pb.StatusResponse:
        return self.answer

    def reload(self) -> list[str]:
        return self.changes


@pytest.fixture
def node(config):
    made = Node()
    with operator_service(config, made):
        yield made


def refused(config, match: str) -> None:
    with pytest.raises(ConfigError, match=match), operator_service(config, Node()):
        pass


def test_the_socket_is_this_users_alone(node, config) -> None:
    """Mode 0600, whatever the umask; and the umask is as it was."""
    found = config.paths.admin_socket.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    before = os.umask(0o022)
    os.umask(before)
    assert before != 0o177


def test_the_operator_is_answered_however_much_is_wrong(node, config) -> None:
    """Peers by the hundred whose files are damaged: their problems are cut to a line, which the client takes."""
    problem = "degraded: " + "; ".join(f"state/trust.json: no peer p{n}.example" for n in range(256))
    node.answer.state, node.changes = problem, [problem]
    assert AdminClient(config).status().state == problem[:3_996] + " ..."
    assert AdminClient(config).reload() == [problem[:3_996] + " ..."]


def test_a_second_node_is_refused_and_the_first_keeps_its_socket(node, config) -> None:
    refused(config, "another node is running")
    assert AdminClient(config).status().state == "serving"


def test_a_socket_that_a_kill_left_behind_is_replaced(config) -> None:
    path = config.paths.admin_socket
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with operator_service(config, Node()):
        assert AdminClient(config).status().state == "serving"
    assert not path.exists()


def test_a_folder_that_others_may_write_is_refused(config) -> None:
    """Under /tmp somebody else could have made it first, and answer there."""
    folder = config.paths.admin_socket.parent
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    refused(config, "written to by others")


def test_no_node_is_named_as_such(config) -> None:
    with pytest.raises(PeerUnreachable, match="no node answers"):
        AdminClient(config).status()
