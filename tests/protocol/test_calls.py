"""Iterators that are read ahead, and streams that gRPC ended without waking their reader."""

import threading

import grpc
import pytest

from ddib_fed.protocol import calls
from ddib_fed.protocol.calls import CheckedChannel


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
