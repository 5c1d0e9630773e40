"""Whatever runs at once stays within the budget, and everything gets its turn."""

from __future__ import annotations

import threading

import pytest

from ddib_fed.errors import Cancelled, ImageTooLarge, PointsTooMany
from ddib_fed.node.model import MIB, DecodingMemory
from tests.source_node.conftest import wait_until


def test_many_at_once_stay_within_the_budget_and_all_are_served() -> None:
    """Each holds its file first and asks for more then, which could leave all of them waiting for one another."""
    memory, lock, most = DecodingMemory(90), threading.Lock(), 0

    def decode(client: str, size: int, cost: int) -> None:
        nonlocal most
        with memory.file(client, size, lambda: bytes(size), lambda _: cost) as content:
            assert len(content) == size
            with lock:
                most = max(most, memory.taken_bytes)

    threads = [threading.Thread(target=decode, args=(str(n % 9), 30, 10 * (n % 7))) for n in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert 30 <= most <= 90 + 22
    assert memory.taken_bytes == 0


def test_what_is_over_the_whole_budget_is_refused_at_once() -> None:
    """It would wait for ever; the figures are in the facts."""
    memory = DecodingMemory(10 * MIB)
    with pytest.raises(ImageTooLarge) as caught, memory.file("a", MIB, lambda: b"", lambda _: 20 * MIB):
        pass
    assert caught.value.facts == {"memory_mib": "21", "limit_mib": "10"}
    with pytest.raises(PointsTooMany), memory.work("a", 11 * MIB, too_large=PointsTooMany):
        pass
    assert memory.taken_bytes == 0


class Asked:
    """Files that are decoded by threads of their own, in the order in which they get memory."""

    def __init__(self, memory: DecodingMemory) -> None:
        self._memory = memory
        self.order: list[str] = []
        self._go: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def ask(self, client: str, name: str, size: int, **options) -> None:
        """Returns when it is decoded, or waits."""
        before, go = self._memory.waiting, self._go.setdefault(name, threading.Event())

        def decode() -> None:
            try:
                with self._memory.work(client, size, **options):
                    self.order.append(name)
                    go.wait(20)
            except Cancelled:
                self.order.append(f"{name} ended")

        self._threads.append(threading.Thread(target=decode))
        self._threads[-1].start()
        wait_until(lambda: name in self.order or self._memory.waiting > before)

    def finish(self, *names: str) -> None:
        for name in names:
            self._go[name].set()

    def join(self) -> list[str]:
        for thread in self._threads:
            thread.join(20)
        return self.order


def test_a_large_file_is_not_overtaken_for_ever_and_small_ones_do_not_wait_for_it() -> None:
    """Each has memory of its own; among the large ones the clients take turns."""
    asked = Asked(DecodingMemory(90, of_one=1))
    asked.ask("a", "first", 60)
    asked.ask("b", "large", 90)
    asked.ask("c", "less large", 40)  # would fit beside the one that is decoded
    asked.ask("d", "small", 20)
    asked.finish("small", "first", "large", "less large")
    assert asked.join() == ["first", "small", "large", "less large"]


def test_a_client_has_no_more_files_decoded_at_once_than_it_may() -> None:
    """Small ones would leave others no core."""
    asked = Asked(DecodingMemory(90, of_one=2))
    for number in range(3):
        asked.ask("a", str(number), 5)
    assert sorted(asked.order) == ["0", "1"]
    asked.ask("b", "mine", 5)
    assert "mine" in asked.order
    asked.finish("0", "1", "2", "mine")
    assert "2" in asked.join()
