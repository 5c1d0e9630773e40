"""Whatever runs at once stays within the budget, and everything gets its turn."""

from __future__ import annotations

import threading

import pytest

from ddib_fed.errors import ImageTooLarge, PointsTooMany
from ddib_fed.node.model.decoding_memory import MIB, DecodingMemory


def test_many_at_once_stay_within_the_budget_and_all_are_served() -> None:
    """Each holds its file first and asks for more then, which could leave all of them waiting for one another."""
    memory, lock, most = DecodingMemory(100), threading.Lock(), 0

    def decode(size: int, cost: int) -> None:
        nonlocal most
        with memory.file(size, lambda: bytes(size), lambda _: cost) as content:
            assert len(content) == size
            with lock:
                most = max(most, memory.taken_bytes)

    threads = [threading.Thread(target=decode, args=(30, 10 * (n % 7))) for n in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert 30 <= most <= 100
    assert memory.taken_bytes == 0


def test_what_is_over_the_whole_budget_is_refused_at_once() -> None:
    """It would wait for ever; the figures are in the facts."""
    memory = DecodingMemory(10 * MIB)
    with pytest.raises(ImageTooLarge) as caught, memory.file(MIB, lambda: b"", lambda _: 20 * MIB):
        pass
    assert caught.value.facts == {"memory_mib": "21", "limit_mib": "10"}
    with pytest.raises(PointsTooMany), memory.work(11 * MIB, PointsTooMany):
        pass
    assert memory.taken_bytes == 0


@pytest.mark.parametrize("where", ["load", "cost", "work"])
def test_an_error_gives_back_what_was_held(where) -> None:
    """Wherever it comes from."""

    def fail(name: str) -> int:
        if where == name:
            raise OSError(name)
        return 5

    memory = DecodingMemory(100)

    def run() -> None:
        with memory.file(50, lambda: bytes(fail("load")), lambda _: fail("cost")):
            fail("work")

    with pytest.raises(OSError, match=where):
        run()
    assert memory.taken_bytes == 0


def test_a_small_one_does_not_overtake_a_large_one_for_ever() -> None:
    """First come, first served: the gate lets one through at a time."""
    memory, order, inside = DecodingMemory(100), [], threading.Event()
    go = threading.Event()

    def hold() -> None:
        with memory.work(60):
            inside.set()
            go.wait(20)

    def ask(name: str, size: int) -> None:
        with memory.work(size):
            order.append(name)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(20)
    large = threading.Thread(target=ask, args=("large", 90))
    large.start()
    while not memory.waits:
        pass
    small = threading.Thread(target=ask, args=("small", 10))
    small.start()
    go.set()
    for thread in (holder, large, small):
        thread.join(20)
    assert order == ["large", "small"]
