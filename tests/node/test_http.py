"""Probes and metrics on loopback."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from urllib.error import HTTPError

import pytest

from ddib_fed.errors import ConfigError
from ddib_fed.node.http import ProbeServer
from ddib_fed.node.metrics import Metrics


class State:
    """What the daemon would say."""

    now = "loading"


@pytest.fixture
def probes() -> Iterator[tuple[ProbeServer, State, Metrics]]:
    state, metrics = State(), Metrics()
    server = ProbeServer("127.0.0.1:0", lambda: state.now, metrics)
    yield server, state, metrics
    server.close()


def get(server: ProbeServer, path: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{server.address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_ready_only_when_serving(probes: tuple[ProbeServer, State, Metrics]) -> None:
    """/readyz follows the node's state; /healthz only says that the process lives."""
    server, state, _ = probes
    assert get(server, "/readyz") == (503, "loading\n")
    assert get(server, "/healthz") == (200, "ok\n")
    state.now = "serving"
    assert get(server, "/readyz") == (200, "serving\n")


def test_metrics_show_what_was_counted(probes: tuple[ProbeServer, State, Metrics]) -> None:
    """A counter that was moved is in the exposition, under its name and labels."""
    server, _, metrics = probes
    metrics.items.labels("decode", "ok").inc(3)
    assert 'ddib_items_total{outcome="ok",stage="decode"} 3.0' in get(server, "/metrics")[1]


def test_two_nodes_in_one_process_do_not_share_counters(probes: tuple[ProbeServer, State, Metrics]) -> None:
    """Each node has a registry of its own."""
    _, _, metrics = probes
    metrics.samples.labels("encode").inc()
    assert b"ddib_samples_total{" not in Metrics().exposition()


def test_anything_else_is_not_found(probes: tuple[ProbeServer, State, Metrics]) -> None:
    """There is nothing else to see."""
    assert get(probes[0], "/state/pki/ca.key")[0] == 404


def test_a_port_in_use_is_a_configuration_error(probes: tuple[ProbeServer, State, Metrics]) -> None:
    """The error names the setting and what to do."""
    with pytest.raises(ConfigError, match=r"http\.listen"):
        ProbeServer(probes[0].address, lambda: "", Metrics())


def test_the_loopback_of_ipv6_can_be_bound() -> None:
    """What the configuration allows works."""
    server = ProbeServer("[::1]:0", lambda: "serving", Metrics())
    assert server._server.address_family is socket.AF_INET6
    server.close()


def test_a_connection_that_says_nothing_is_closed(monkeypatch) -> None:
    """It would hold a thread for as long as it likes."""
    monkeypatch.setattr("ddib_fed.node.http.IDLE_S", 0.05)
    server = ProbeServer("127.0.0.1:0", lambda: "serving", Metrics())
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as silent:
        assert silent.recv(1) == b""
    server.close()
