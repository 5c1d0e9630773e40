"""Probes and metrics on loopback."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.error import HTTPError

import pytest

from ddib_fed.node.admin import LONGEST_S, MOST_CONNECTIONS, Metrics, ProbeServer


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


def connected(server: ProbeServer, said: bytes = b"") -> socket.socket:
    host, _, port = server.address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=10)
    made.sendall(said)
    return made


@pytest.mark.slow
def test_connections_that_say_nothing_keep_no_probe_out(probes: tuple[ProbeServer, State, Metrics]) -> None:
    """The oldest make room: there are never more than a few, and a probe is answered at once."""
    server, _, _ = probes
    before = threading.active_count()
    with ExitStack() as opened:
        silent = [opened.enter_context(connected(server, b"GET /heal")) for _ in range(40)]
        started = time.monotonic()
        assert get(server, "/healthz") == (200, "ok\n")
        assert time.monotonic() - started < LONGEST_S
        assert [end.recv(1) for end in silent[: 40 - MOST_CONNECTIONS]] == [b""] * (40 - MOST_CONNECTIONS)
        # The thread of a connection that was closed ends a moment after its client hears of it.
        deadline = time.monotonic() + LONGEST_S
        while threading.active_count() - before > MOST_CONNECTIONS + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() - before <= MOST_CONNECTIONS + 1
