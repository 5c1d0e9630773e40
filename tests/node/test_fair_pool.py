"""Threads for calls are taken in turn by connections."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from ddib_fed.node.server import MOST_WAITING, FairPool


def event(peer: str) -> SimpleNamespace:
    return SimpleNamespace(call=SimpleNamespace(peer=peer.encode))


class Held:
    """A pool of one thread, which is busy until it is let go; what runs is written down."""

    def __init__(self) -> None:
        self.crowds: list[str] = []
        self.ran: list[str] = []
        self.pool = FairPool(1, self.crowds.append)
        self._go = threading.Event()
        self.pool.submit(self._go.wait)

    def call(self, peer: str, what: str):
        return self.pool.submit(lambda _state, _event: self.ran.append(what), None, event(peer))

    def go(self) -> None:
        self._go.set()
        self.pool.submit(lambda: None).result(10)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.go()
    made.pool.shutdown()


def test_a_call_waits_for_one_of_each_other_connection_at_most(held: Held) -> None:
    """One caller has a hundred calls waiting; the call that came last, of another, is the second to run."""
    calls = [held.call("ipv4:10.0.0.1:1", f"flood {number}") for number in range(100)]
    health = held.call("ipv4:10.0.0.2:1", "health")
    held.go()
    for call in (*calls, health):
        call.result(10)
    assert held.ran.index("health") == 1
    assert [what for what in held.ran if what != "health"] == [f"flood {number}" for number in range(100)]


def test_a_connection_with_too_many_waiting_calls_is_named(held: Held) -> None:
    """Once for each call beyond the limit; tasks of no call are not counted."""
    for _ in range(MOST_WAITING + 2):
        held.call("ipv4:10.0.0.1:1", "")
    assert held.crowds == ["ipv4:10.0.0.1:1"] * 2
    for _ in range(MOST_WAITING + 2):
        held.pool.submit(lambda: None)
    assert len(held.crowds) == 2
