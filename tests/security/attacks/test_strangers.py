"""Strangers without any certificate against a running node: it answers all the while."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ddib_fed.node.connections import MOST_CONNECTIONS
from tests.conftest import Evidence
from tests.e2e.harness import Node, ddib
from tests.security.attacks.watch import Watch, healthy

pytestmark = [pytest.mark.e2e, pytest.mark.promise("standing")]

# gRPC itself would give a silent connection two minutes.
SOON_S, LONG_S = 20.0, 1.0
MOST_MB = 64.0
SAID = {
    "nothing": b"",
    "half a greeting": b"\x16\x03\x01\x02\x00",
    "no TLS": b"GET / HTTP/1.1\r\nHost: south.example\r\n\r\n" * 20,
    "a frame of HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
}


@pytest.fixture
def node(tmp_path: Path, amount: Callable[[int, int], int]) -> Iterator[Node]:
    """A target with few open files."""
    made = Node.create(tmp_path / "south", "target", "south.example", "checkerboards")
    made.open_files = amount(256, 1_024)
    yield made.start()
    made.stop()


@pytest.fixture
def sockets() -> Iterator[None]:
    """Files enough for a crowd in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("sockets")
@pytest.mark.parametrize("said", SAID)
def test_connections_without_a_certificate_stop_neither_health_nor_status(
    node: Node,
    said: str,
    amount: Callable[[int, int], int],
    evidence: Evidence,
    request: pytest.FixtureRequest,
) -> None:
    """More of them than the node may have files, from the same address as the caller, held open."""
    count, long = amount(306, 2_000), bool(request.config.getoption("--long"))
    with Watch(node) as watch, ExitStack() as crowd:
        for _ in range(count):
            end = crowd.enter_context(socket.create_connection(("127.0.0.1", node.port), timeout=10))
            end.sendall(SAID[said])
        assert "serving" in ddib("status", "--config", node.config_path)
        time.sleep(amount(1, 10))
    evidence.figure(
        f"{count} that say {said}: +{watch.grown_mb:.0f} MB, Health at most {watch.worst_s:.2f} s"
    )
    assert watch.worst_s < (LONG_S if long else SOON_S)
    assert watch.grown_mb < MOST_MB
    assert healthy(node)
    assert "LimitNOFILE" in node.log()
    assert "Too many open files" not in node.log()


FLOOD = """
import resource, socket, sys, time
port, seconds, rate, hold = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "held"
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held, made, started = [], 0, time.monotonic()
while (passed := time.monotonic() - started) < seconds:
    if made > rate * passed:
        time.sleep(0.001)
        continue
    try:
        held.append(socket.create_connection(("127.0.0.1", port), timeout=1))
    except OSError:
        continue
    made += 1
    if not hold:
        held.pop().close()
print(made)
"""
BUSY = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"
FILES_BESIDE = 64
THREADS_MORE = 32


@pytest.mark.parametrize("held", ["held", pytest.param("closed at once", marks=pytest.mark.long)])
def test_a_flood_of_connections_delays_no_caller(
    tmp_path: Path, held: str, amount: Callable[[int, int], int], evidence: Evidence
) -> None:
    """A thousand a second that stay, or 3,000 that close at once, from the caller's own address, on busy cores."""
    seconds, rate = amount(4, 14), 1_000 if held == "held" else 3_000
    node = Node.create(tmp_path / "south", "target", "south.example", "checkerboards").start()
    try:
        with Watch(node) as watch:
            programs = [[BUSY, seconds]] * 2 + [[FLOOD, node.port, seconds, rate, held]]
            running = [
                subprocess.Popen([sys.executable, "-c", *map(str, each)], stdout=subprocess.PIPE, text=True)
                for each in programs
            ]
            made = [int(each.communicate(timeout=20 * seconds)[0] or 0) for each in running][-1]
        figure = f"{made} connections in {seconds} s, {held}: {watch.seen()}, on two cores that other work keeps busy"
        evidence.figure(figure)
        print(figure)
        assert made > 100 * seconds
        assert watch.worst_s < amount(int(SOON_S), 2)
        assert watch.grown_mb < 300
        assert watch.files < MOST_CONNECTIONS + FILES_BESIDE
        assert watch.threads_more < THREADS_MORE
        assert healthy(node)
    finally:
        node.stop()
