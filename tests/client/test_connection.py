"""When a call is tried again, after how long, and what is said when it no longer is."""

from __future__ import annotations

import threading

import pytest

from ddib_fed.client.connection import Patience
from ddib_fed.errors import Cancelled, DdibError, ExhaustedError, NotReady, QueueFull, TooManyStreams


class Clock(threading.Event):
    """Waits by moving the clock on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 100.0
        monkeypatch.setattr("ddib_fed.client.connection.time.monotonic", lambda: self.now)

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def patience(clock: Clock, told: list[float], *, limit_s: float = 60.0, busy_s: float = 600.0) -> Patience:
    return Patience(limit_s, busy_s, lambda _, delay: told.append(delay), clock)


def until_given_up(patience: Patience, error: DdibError) -> DdibError:
    try:
        while True:
            patience.wait(error)
    except DdibError as given_up:
        return given_up


@pytest.mark.parametrize("error", [TooManyStreams, QueueFull, ExhaustedError])
def test_a_limit_is_waited_for_as_long_as_the_node_asks(clock, error):
    """Not sooner than a tenth before, and up to two fifths longer, by chance: all who wait do not come at once."""
    told: list[float] = []
    asked = patience(clock, told)
    for _ in range(50):
        asked.progress()
        asked.wait(error(retry_after_s=2.0))
    assert all(1.8 <= delay <= 2.8 for delay in told)
    assert len(set(told)) > 40


def test_a_limit_that_stays_is_given_up_and_the_error_says_for_how_long_was_tried(clock):
    """Ten minutes here; the text names the time, and a command."""
    told: list[float] = []
    error = until_given_up(patience(clock, told), QueueFull("64 jobs are open", retry_after_s=30))
    assert 570 <= sum(told) <= 600.0001
    assert error.detail.startswith("64 jobs are open, and was still after ")
    assert "ddib job list" in error.hint


def test_a_node_that_is_away_is_waited_for_with_growing_pauses(clock):
    """Not below what it asks for."""
    told: list[float] = []
    until_given_up(patience(clock, told), NotReady(retry_after_s=0.5))
    assert told[0] >= 0.5
    assert 50 <= sum(told) <= 60.0001


def test_waiting_ends_with_the_connection(clock):
    """Ctrl-C does not have to wait for the next try."""
    clock.set()
    with pytest.raises(Cancelled):
        patience(clock, []).wait(TooManyStreams(retry_after_s=1))
