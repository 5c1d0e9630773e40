"""The operator's socket, for this user alone and honest about what went wrong; probes and metrics on loopback."""

import os
import socket
import stat
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from urllib.error import HTTPError

import pytest

from ddib_fed.errors import ConfigError, DiskFull
from ddib_fed.node import admin, operator
from tests.node.status import status_of
from tests.node.tiny_nodes import make_config


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path / "node", "north.example", "source")


class Node:
    """What the daemon gives to the service."""

    def __init__(self) -> None:
        self.answer = status_of("serving")
        self.changes = ["added peer south.example"]

    def status(self) -> admin.NodeStatus:
        return self.answer

    def state(self) -> str:
        return self.answer.state

    def request_drain(self) -> int:
        raise OSError(28, "No space left on device")

    def reload(self) -> list[str]:
        return self.changes


@pytest.fixture
def node(config):
    made = Node()
    with admin.operator_service(config, made, admin.Metrics()):
        yield made


def refused(config, match: str) -> None:
    with pytest.raises(ConfigError, match=match), admin.operator_service(config, Node(), admin.Metrics()):
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
    """Peers by the hundred whose files are damaged; and an act that fails is an error of its own kind."""
    problem = "degraded: " + "; ".join(f"state/trust.json: no peer p{n}.example" for n in range(256))
    node.answer, node.changes = status_of(problem), [problem]
    assert operator.Node(config).status().state == problem
    assert operator.Node(config).reload() == [problem]
    with pytest.raises(DiskFull, match="No space left"):
        operator.Node(config).drain()


def test_a_second_node_is_refused_and_the_first_keeps_its_socket(node, config) -> None:
    refused(config, "another node is running")
    assert operator.Node(config).status().state == "serving"


def test_a_socket_that_a_kill_left_behind_is_replaced(config) -> None:
    path = config.paths.admin_socket
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with admin.operator_service(config, Node(), admin.Metrics()):
        assert operator.Node(config).status().state == "serving"
    assert not path.exists()


class State:
    """What the daemon would say."""

    now = "loading"


@pytest.fixture
def probes() -> Iterator[tuple[admin.LocalServer, State, admin.Metrics]]:
    state, metrics = State(), admin.Metrics()
    server = admin.probe_server("127.0.0.1:0", lambda: state.now, metrics)
    yield server, state, metrics
    server.close()


def get(server: admin.LocalServer, path: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{server.address}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_ready_only_when_serving(probes: tuple[admin.LocalServer, State, admin.Metrics]) -> None:
    server, state, _ = probes
    assert get(server, "/readyz") == (503, "loading\n")
    assert get(server, "/healthz") == (200, "ok\n")
    state.now = "serving"
    assert get(server, "/readyz") == (200, "serving\n")


def test_metrics_show_what_was_counted(probes: tuple[admin.LocalServer, State, admin.Metrics]) -> None:
    server, _, metrics = probes
    metrics.items.labels("decode", "ok").inc(3)
    assert 'ddib_items_total{outcome="ok",stage="decode"} 3.0' in get(server, "/metrics")[1]


def test_probes_are_asked_and_nothing_else(probes: tuple[admin.LocalServer, State, admin.Metrics]) -> None:
    """The operator's acts are on the socket alone."""
    server, _, _ = probes
    host, _, port = server.address.rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=60)
    for act in ("status", "reload", "drain"):
        connection.request("POST", f"/{act}")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (404, b"null")
        connection.close()


def connected(server: admin.LocalServer, said: bytes = b"") -> socket.socket:
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
