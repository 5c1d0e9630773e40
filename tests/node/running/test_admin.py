"""The operator's socket, for this user alone and honest about what went wrong; probes and metrics on loopback."""

import os
import socket
import stat
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.error import HTTPError

import pytest

from ddib_fed.errors import ConfigError
from ddib_fed.node import admin, operator
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
    with admin.operator_service(config, made):
        yield made


def refused(config, match: str) -> None:
    with pytest.raises(ConfigError, match=match), admin.operator_service(config, Node()):
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
    assert operator.Node(config).status().state == problem[:3_996] + " ..."
    assert operator.Node(config).reload() == [problem[:3_996] + " ..."]


def test_a_second_node_is_refused_and_the_first_keeps_its_socket(node, config) -> None:
    refused(config, "another node is running")
    assert operator.Node(config).status().state == "serving"


def test_a_socket_that_a_kill_left_behind_is_replaced(config) -> None:
    path = config.paths.admin_socket
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with admin.operator_service(config, Node()):
        assert operator.Node(config).status().state == "serving"
    assert not path.exists()


class State:
    """What the daemon would say."""

    now = "loading"


@pytest.fixture
def probes() -> Iterator[tuple[admin.ProbeServer, State, admin.Metrics]]:
    state, metrics = State(), admin.Metrics()
    server = admin.ProbeServer("127.0.0.1:0", lambda: state.now, metrics)
    yield server, state, metrics
    server.close()


def get(server: admin.ProbeServer, path: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{server.address}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_ready_only_when_serving(probes: tuple[admin.ProbeServer, State, admin.Metrics]) -> None:
    server, state, _ = probes
    assert get(server, "/readyz") == (503, "loading\n")
    assert get(server, "/healthz") == (200, "ok\n")
    state.now = "serving"
    assert get(server, "/readyz") == (200, "serving\n")


def connected(server: admin.ProbeServer, said: bytes = b"") -> socket.socket:
    host, _, port = server.address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=60)
    made.sendall(said)
    return made


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection ends because its time is over."""
    monkeypatch.setattr(admin, "LONGEST_S", 600.0)


@pytest.mark.slow
def test_connections_that_say_nothing_keep_no_probe_out(patient, probes):
    """The oldest make room: there are never more than a few, and a probe is answered while these are open."""
    server, _, _ = probes
    before = threading.active_count()
    with ExitStack() as opened:
        silent = [opened.enter_context(connected(server, b"GET /heal")) for _ in range(40)]
        assert get(server, "/healthz") == (200, "ok\n")
        assert [end.recv(1) for end in silent[: 40 - admin.MOST_CONNECTIONS]] == [b""] * (
            40 - admin.MOST_CONNECTIONS
        )
        # The thread of a connection that was closed ends a moment after its client hears of it.
        deadline = time.monotonic() + 60
        while threading.active_count() - before > admin.MOST_CONNECTIONS + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() - before <= admin.MOST_CONNECTIONS + 1
