"""Iterators that are read ahead, and streams that gRPC ended without waking their reader."""

import threading

import grpc
import pytest

from ddib_fed.protocol import calls
from ddib_fed.protocol.calls import CheckedChannel, ReadAhead


def test_an_error_of_the_iterator_is_raised_after_the_elements_before_it():
    def elements():
        yield 1
        raise KeyError("broken")

    with ReadAhead(elements(), 1, "ahead") as ahead:
        taken = ahead.each()
        assert next(taken) == 1
        with pytest.raises(KeyError, match="broken"):
            next(taken)


def test_an_element_that_does_not_come_in_time_is_said():
    """And the wait begins anew where that is no error."""
    come, times = threading.Event(), []

    def elements():
        come.wait(60)
        yield 1

    def late():
        times.append(1)
        if len(times) == 2:
            come.set()

    with ReadAhead(elements(), 1, "ahead") as ahead:
        assert list(ahead.each(lambda: 0.05, late)) == [1]
    assert len(times) >= 2


def test_an_iterator_that_is_left_is_closed():
    """Its thread does not wait for a place in the queue."""
    closed = threading.Event()

    def elements():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with ReadAhead(elements(), 1, "ahead") as ahead:
        assert next(ahead.each()) == 0
    assert closed.wait(60)


class EndedError(grpc.RpcError):
    """What a stream of a closed channel raises."""


class StuckStream:
    """What gRPC 1.85.3 leaves behind: the status is there, and reading returns only once the channel is closed."""

    def __init__(self, closed: threading.Event) -> None:
        self._closed = closed

    def is_active(self) -> bool:
        return False

    def __next__(self) -> bytes:
        assert self._closed.wait(30)
        raise EndedError


class StuckChannel(grpc.Channel):
    """A channel whose streams are stuck."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def stream_stream(self, *args, **kwargs):
        return lambda *_, **__: StuckStream(self.closed)

    unary_unary = unary_stream = stream_unary = stream_stream

    def subscribe(self, *args, **kwargs):
        raise AssertionError("these tests do not watch connectivity")

    unsubscribe = subscribe

    def close(self) -> None:
        self.closed.set()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


@pytest.mark.slow
def test_a_reader_that_grpc_forgot_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its channel is closed and known to be broken; before, reading never returned, whatever the deadline."""
    monkeypatch.setattr(calls, "STUCK_S", 0.2)
    channel = CheckedChannel(StuckChannel(), "target south.example", own=False)
    with pytest.raises(EndedError):
        next(channel.stream_stream("/any")(iter(())))
    assert channel.broken
