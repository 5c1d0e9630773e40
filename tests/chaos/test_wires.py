"""Bad wires between client and source, and between source and target: nothing accepted is lost or done twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.chaos.load import Feeder, check_books, stub_pair
from tests.chaos.wires import FAULTS, QUICK, FaultyWire
from tests.e2e.harness import Pair, wait_until
from tests.node.flipping import Direction

pytestmark = [pytest.mark.e2e, pytest.mark.promise("jobs"), pytest.mark.timeout(3_600)]

DIRECTIONS: tuple[Direction, ...] = ("to_server", "to_client")


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, dict[str, FaultyWire]]]:
    """A pair whose client reaches north, and whose north reaches south, over wires."""
    pair = stub_pair(tmp_path_factory.mktemp("wired"))
    wires = {"client to source": FaultyWire(pair.north.port), "source to target": FaultyWire(pair.south.port)}
    pair.dial(wires["source to target"].port)
    text = pair.profile.read_text()
    assert f":{pair.north.port}" in text
    pair.profile.write_text(text.replace(f":{pair.north.port}", f":{wires['client to source'].port}"))
    try:
        yield pair.start(), wires
    finally:
        pair.stop()
        for wire in wires.values():
            wire.close()


@pytest.mark.parametrize(
    "place", [pytest.param("client to source", marks=pytest.mark.long), "source to target"]
)
def test_a_bad_wire_loses_nothing(wired, place: str, amount, evidence) -> None:
    """Data delayed, swallowed, cut, slowed to 1 byte a second or with a bit turned over, each way, under load."""
    pair, wires = wired
    wire = wires[place]
    feeder = Feeder(pair)
    cases = 0
    try:
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
    finally:
        feeder.stop()
    feeder.settle()
    check_books(pair, feeder)
    evidence.cases(cases)
    evidence.figure(f"{place}: {len(feeder.accepted)} jobs in {feeder.tries} tries, 0 lost, 0 twice")
    with pair.client() as client:
        for job_id in feeder.accepted.values():
            client.delete(job_id)
