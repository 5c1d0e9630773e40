"""A caller that keeps a call waiting gets an error and loses the call; one that is slow keeps it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from ddib_fed.node import interceptors
from ddib_fed.v1 import decoding_pb2 as pb
from tests.node.institutions import Institution
from tests.node.listening import ASK, DESCRIBE, Listening, Requests
from tests.security.attacks.raw_http2 import HEALTH, Raw, message
from tests.source_node.conftest import wait_until

MUCH = bytes(256 << 10)


@pytest.fixture
def listen(north: Institution, tmp_path: Path) -> Iterator[Callable[..., Listening]]:
    """Opens south's server with other limits."""
    south = Institution("south.example", tmp_path / "south")
    south.admit(north)
    with ExitStack() as ends:

        def listen(**limits: float) -> Listening:
            made = Listening(south, **limits)
            ends.callback(made.close)
            return made

        yield listen


@pytest.mark.slow
def test_a_call_without_its_request_is_ended_with_the_reason(listen, north: Institution) -> None:
    """Its thread and its place are there for others; a request that is only late is answered."""
    node, silent, late = listen(request_s=3.0), Requests(), Requests()
    with node.channel(north) as channel:
        ask = channel.stream_unary(DESCRIBE)
        call, slow = ask.future(silent, timeout=20), ask.future(late, timeout=20)
        threading.Timer(0.3, lambda: (late.send(ASK.SerializeToString()), late.close())).start()
        assert slow.result(timeout=10)
        error = call.exception(timeout=10)
        silent.close()
    assert (error.code(), error.details()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED, "the caller did not send its request within 3 s",
    )  # fmt: skip
    wait_until(lambda: node.calls._waiting.active == 0)


@pytest.mark.slow
def test_a_caller_that_takes_nothing_of_its_stream_loses_it(listen, north: Institution) -> None:
    """It sees the error when it reads; its place is free for others at once."""
    node = listen(idle_s=0.5)
    node.echo.much = MUCH
    with node.stub(north) as stub:
        call = stub.Decode(iter([pb.DecodeRequest()] * 50), timeout=30)
        assert node.echo.ended.wait(10)
        wait_until(lambda: node.calls.streams.active == 0)
        with pytest.raises(grpc.RpcError) as error:
            list(call)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.value.details() == "the caller took nothing of the answers for 0.5 s"


@pytest.mark.slow
def test_a_slow_reader_keeps_its_stream(listen, north: Institution) -> None:
    """It takes a little now and then, for longer in all than it may take nothing."""
    node, pause, count = listen(idle_s=4.0), threading.Event(), 0
    node.echo.much = MUCH
    started = time.monotonic()
    with node.stub(north) as stub:
        for _ in stub.Decode(iter([pb.DecodeRequest()] * 50), timeout=120):
            count += 1
            pause.wait(0.06)
    assert count == 100
    assert time.monotonic() - started > 4.0


@pytest.mark.slow
def test_a_stream_that_has_nothing_to_say_is_not_the_callers_fault(listen, north: Institution) -> None:
    """It waits for the node, or the node for its next message, and neither is about taking answers."""
    node, requests = listen(idle_s=1.0), Requests()
    with node.stub(north) as stub:
        call = stub.Decode(requests, timeout=20)
        requests.send(pb.DecodeRequest())
        next(call)
        threading.Event().wait(1.5)
        assert node.calls.look() == 0
        requests.send(pb.DecodeRequest())
        assert next(call).progress.item == 1
        requests.close()
        assert list(call) == []


@pytest.mark.slow
def test_answers_that_nobody_takes_do_not_stay_in_memory(listen, north: Institution) -> None:
    """A call with one answer lasts, for gRPC, until that is taken: with a window of 0, never."""
    node = listen(idle_s=3.0)
    with Raw(node.port, north.pki, window=0) as raw:
        for _ in range(10):
            raw.data(raw.open(HEALTH), message(b""), end=True)
        wait_until(lambda: (raw.read(), len(node.outcomes))[1] == 10)
        assert len(node.calls.open_calls) == 10
        wait_until(lambda: (raw.read(), len(node.calls.open_calls))[1] == 0)


def test_a_caller_that_takes_no_answers_can_have_so_many_calls_open(
    listen, north: Institution, monkeypatch
) -> None:
    """Over all its connections; the excess is refused, which it hears, and another caller is served."""
    monkeypatch.setattr(interceptors, "OPEN_OF_ONE", 20)
    node = listen(idle_s=30.0)
    with ExitStack() as held:
        for _ in range(3):
            raw = held.enter_context(Raw(node.port, north.pki, window=0))
            for _ in range(10):
                raw.data(raw.open(HEALTH), message(b""), end=True)
            raw.read()
        wait_until(lambda: len(node.outcomes) == 30)
        assert len(node.calls.open_calls) == 20
        assert [status for _, status in node.outcomes].count("RESOURCE_EXHAUSTED") == 10
        with node.channel(node.south) as channel:
            channel.unary_unary(HEALTH)(b"", timeout=10)
    wait_until(lambda: len(node.calls.open_calls) == 0)
