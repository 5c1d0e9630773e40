"""Bad wires between client and source, and between source and target: nothing accepted is lost or done twice."""

import socket
import threading
from collections.abc import Iterator
from typing import Literal

import pytest

from ddib_fed.testing import TwoNodes
from tests.chaos.load import Feeder, check_books, stub_pair
from tests.chaos.wire import Direction, Wire
from tests.e2e.harness import dial, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.promise("jobs"), pytest.mark.timeout(3_600)]

DIRECTIONS: tuple[Direction, ...] = ("to_server", "to_client")


Fault = Literal["delay", "swallow", "cut", "slow", "flip"]
DELAY_S = 0.3
SLOW_S = 1.0
"""Seconds for one byte."""
FAULTS: tuple[Fault, ...] = ("delay", "swallow", "cut", "slow", "flip")
QUICK: tuple[Fault, ...] = ("delay", "cut", "slow", "flip")
"""Those that are noticed at once; what was swallowed is missed when a connection next says something."""


class FaultyWire(Wire):
    """Relays under the fault that a test sets and lifts while connections live."""

    def __init__(self, upstream: int) -> None:
        self._fault: tuple[Fault, Direction] | None = None
        self._well = threading.Event()
        self.met = 0
        """Pieces of data that met a fault."""
        super().__init__(upstream)

    def begin(self, fault: Fault, direction: Direction) -> None:
        self._well.clear()
        self._fault = (fault, direction)

    def end(self) -> None:
        self._fault = None
        self._well.set()

    def _pass(self, data: bytearray, sink: socket.socket, direction: Direction) -> None:
        fault = self._fault
        if fault is None or fault[1] != direction:
            sink.sendall(data)
            return
        self.met += 1
        match fault[0]:
            case "delay":
                self._well.wait(DELAY_S)
                sink.sendall(data)
            case "swallow":
                return
            case "cut":
                raise ConnectionAbortedError
            case "slow":
                left = memoryview(data)
                while left and not self._well.wait(SLOW_S):
                    sink.sendall(left[:1])
                    left = left[1:]
                sink.sendall(left)
            case "flip":
                data[-1] ^= 1
                sink.sendall(data)


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TwoNodes, dict[str, FaultyWire]]]:
    """A pair whose client reaches north, and whose north reaches south, over wires."""
    pair = stub_pair(tmp_path_factory.mktemp("wired"))
    wires = {
        "client to source": FaultyWire(pair.source.port),
        "source to target": FaultyWire(pair.target.port),
    }
    dial(pair, wires["source to target"].port)
    text = pair.profile.read_text()
    assert f":{pair.source.port}" in text
    pair.profile.write_text(text.replace(f":{pair.source.port}", f":{wires['client to source'].port}"))
    with pair, wires["client to source"], wires["source to target"]:
        yield pair, wires


@pytest.mark.parametrize(
    "place", [pytest.param("client to source", marks=pytest.mark.long), "source to target"]
)
def test_a_bad_wire_loses_nothing(wired, place: str, amount, evidence) -> None:
    """Data delayed, swallowed, cut, slowed to 1 byte a second or with a bit turned over, each way, under load."""
    pair, wires = wired
    wire = wires[place]
    cases = 0
    with Feeder(pair) as feeder:
        for fault in amount(QUICK, FAULTS):
            for direction in DIRECTIONS:
                fed, met = len(feeder.accepted), wire.met
                wire.begin(fault, direction)
                try:
                    wait_until(lambda met=met: wire.met > met, what=f"{fault} {direction} met")
                    # Longer than a node needs to give a silent connection up (keepalive, 28 s), in the long form.
                    threading.Event().wait(amount(1, 40))
                finally:
                    wire.end()
                wait_until(
                    lambda fed=fed: len(feeder.accepted) > fed, what=f"a job after {fault} {direction}"
                )
                cases += 1
    feeder.settle()
    check_books(pair, feeder)
    evidence.cases(cases)
    evidence.figure(f"{place}: {len(feeder.accepted)} jobs in {feeder.tries} tries, 0 lost, 0 twice")
    with pair.client() as client:
        for job_id in feeder.accepted.values():
            client.delete(job_id)
