"""A stream over an executor: in order, ahead of its reader by a stated number of rows, and over when its reader is."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from ddib_fed.engine.party import Control
from ddib_fed.engine.streams import Begun, flowing
from ddib_fed.errors import DeadlineExceeded, Draining
from tests.source_node.conftest import wait_until


class Engine:
    """Begins numbers; each is done when the test says so, or at once."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.futures: dict[int, Future[int]] = {}
        self.controls: list[Control] = []

    def begin(self, number: int, control: Control) -> Begun[int]:
        future: Future[int] = Future()
        self.futures[number] = future
        self.controls.append(control)
        if self.at_once:
            future.set_result(number)
        return Begun(future, lambda: [future.result()])

    def stream(self, items, *, most: int = 4, control: Control | None = None):
        return flowing(items, self.begin, rows=lambda _: 1, most=most, control=control)


def feeders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "feeder"]


def test_outcomes_come_in_the_order_of_the_items() -> None:
    """Whatever is done first."""
    engine = Engine(at_once=False)

    def finish() -> None:
        wait_until(lambda: len(engine.futures) == 4)
        engine.at_once = True
        for number in (2, 3, 0, 1):
            engine.futures[number].set_result(number)

    thread = threading.Thread(target=finish)
    thread.start()
    assert list(engine.stream(range(9), most=4)) == list(range(9))
    thread.join()


def test_only_so_many_rows_are_taken_ahead_of_the_reader() -> None:
    """Five of two rows fill a window of ten; the sixth is taken when the first was read."""
    engine, taken = Engine(), []

    def items():
        for number in range(30):
            taken.append(number)
            yield number

    stream = flowing(items(), engine.begin, rows=lambda _: 2, most=10, control=None)
    assert next(stream) == 0
    wait_until(lambda: len(taken) >= 6)
    time.sleep(0.02)
    assert len(taken) == 6
    assert list(stream) == list(range(1, 30))


def test_what_taking_raises_is_raised_after_what_was_begun() -> None:
    """The items before it are worth having."""

    def items():
        yield from range(3)
        raise Draining

    came = []
    with pytest.raises(Draining):
        came.extend(Engine().stream(items()))
    assert came == [0, 1, 2]
    assert not feeders()


def test_closing_ends_the_feeder_and_cancels_what_is_in_flight() -> None:
    """The items' generator is closed on the feeder's thread, and nothing is begun afterwards."""
    engine, closed = Engine(at_once=False), []

    def items():
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread().name)

    def finish() -> None:
        wait_until(lambda: 0 in engine.futures)
        engine.futures[0].set_result(0)

    stream = engine.stream(items(), most=3)
    threading.Thread(target=finish).start()
    assert next(stream) == 0
    stream.close()
    begun = len(engine.futures)
    assert closed == ["feeder"]
    assert all(control.cancelled for control in engine.controls)
    assert not feeders()
    assert len(engine.futures) == begun <= 5


def test_cancelling_wakes_a_reader_that_waits_for_an_item() -> None:
    """With the reason that was given, and passes it on to what is in flight."""
    control, go_on = Control(), threading.Event()
    engine = Engine()

    def items():
        yield 0
        control.cancel(Draining())
        go_on.wait(10)

    stream = engine.stream(items(), control=control)
    assert next(stream) == 0
    threading.Timer(0.05, go_on.set).start()
    with pytest.raises(Draining):
        next(stream)
    assert not feeders()
    with pytest.raises(Draining):
        engine.controls[0].check()


def test_a_deadline_wakes_a_reader_that_waits_for_an_item() -> None:
    go_on = threading.Event()

    def items():
        go_on.wait(10)
        yield 0

    soon = Control(time.monotonic() + 0.05)
    # The item is let through once the reading has ended, however late the reader wakes.
    stream = flowing(items(), Engine().begin, rows=lambda _: 1, most=4, control=soon, end=go_on.set)
    with pytest.raises(DeadlineExceeded):
        next(stream)
    assert not feeders()
