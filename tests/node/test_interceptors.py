"""Who calls, may they, how much at once, and what they read when it fails: over real mutual TLS."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest

from ddib_fed import errors
from ddib_fed.node import server
from ddib_fed.node.server import CHECK_EVERY_S, MAX_WAITING_OF_ONE, Slots
from ddib_fed.protocol.calls import from_rpc_error
from ddib_fed.security.admission import presented_certificate
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1 import decoding_pb2_grpc
from tests.e2e.harness import wait_until
from tests.node.institutions import Institution, issue_client
from tests.node.listening import ASK, DESCRIBE, HOP, Listening, Requests, failure
from tests.security.attacks.raw_http2 import HEALTH, Raw, message


def test_a_method_that_is_not_the_callers_is_refused_before_its_message_is_parsed(node, north, tmp_path):
    """Garbage from somebody who may not call is refused for who sends it, not for what it is."""
    issue_client(north.pki, tmp_path / "alice", "alice")
    with node.channel(north, pki_folder=tmp_path / "alice") as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(DESCRIBE)(b"\xff\xff\xff", timeout=60)
    assert type(from_rpc_error(error.value, HOP)) is errors.PolicyDenied


def test_a_removed_peers_stream_ends_with_its_next_message(node: Listening, north: Institution) -> None:
    with node.stub(north) as stub:
        ((call, requests),) = open_streams(stub, 1)
        node.south.store.remove("north.example")
        time.sleep(2 * CHECK_EVERY_S)
        requests.send(pb.DecodeRequest())
        with pytest.raises(grpc.RpcError) as error:
            next(call)
    assert type(from_rpc_error(error.value, HOP)) is errors.PeerUnknown
    assert node.echo.ended.wait(60)
    assert node.echo.taken == 1
    requests.close()


def test_a_removed_peers_idle_stream_is_swept(node: Listening, north: Institution) -> None:
    with node.stub(north) as stub:
        ((call, requests),) = open_streams(stub, 1)
        assert node.calls.sweep() == 0
        node.south.store.remove("north.example")
        assert node.calls.sweep() == 1
        with pytest.raises(grpc.RpcError) as error:
            next(call)
    assert error.value.code() is grpc.StatusCode.CANCELLED
    assert node.echo.ended.wait(60)
    requests.close()


def test_unknown_fields_are_refused_at_any_depth(node: Listening, north: Institution) -> None:
    unknown = b"\x98\x06\x01"  # field 99, a number
    known = pb.DescribeDomainRequest(protocol=1).SerializeToString()
    inner = b"\x12" + bytes([len(unknown)]) + unknown  # in NegotiateContractRequest.source
    negotiate = DESCRIBE.replace("DescribeDomain", "NegotiateContract")
    for method, data in ((DESCRIBE, known + unknown), (negotiate, known + inner)):
        with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(method)(data, timeout=60)
        assert type(from_rpc_error(error.value, HOP)) is errors.UnknownFields
    with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
        list(channel.stream_stream("/ddib_fed.v1.DecodingService/Decode")(iter([unknown]), timeout=60))
    assert type(from_rpc_error(error.value, HOP)) is errors.UnknownFields


# What is answered when something fails.


SECRET = "/srv/node/state/pki/leaf.key of patient 4711"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET), OSError(2, SECRET), errors.InternalError(SECRET), errors.QueueFull(SECRET, hint=SECRET),
        grpc.RpcError(SECRET),
    ],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_the_text_of_an_exception_never_leaves(node: Listening, north: Institution, error: Exception) -> None:
    node.echo.failure = error
    with node.stub(north) as stub:
        for call in (
            lambda: stub.DescribeDomain(ASK, timeout=60),
            lambda: list(stub.Decode(iter([pb.DecodeRequest()]), timeout=60)),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            end = raised.value
            seen = f"{end.details()} {end.trailing_metadata()} {end.initial_metadata()} {end.debug_error_string()}"
            assert "patient" not in seen
            assert "leaf.key" not in seen


def test_a_bug_is_logged_with_the_incident_that_the_caller_reads(node, north, caplog):
    node.echo.failure = ZeroDivisionError("in the depths")
    with caplog.at_level(logging.ERROR):
        found = failure(node, north)
    assert isinstance(found, errors.InternalError)
    assert len(found.incident) == 12
    assert int(found.incident, 16) >= 0
    assert found.incident in caplog.text
    assert "ZeroDivisionError: in the depths" in caplog.text


def open_streams(stub: decoding_pb2_grpc.DecodingServiceStub, count: int) -> list:
    """Streams that have been answered once, and stay open."""
    streams = []
    for _ in range(count):
        requests = Requests()
        call = stub.Decode(requests, timeout=60)
        requests.send(pb.DecodeRequest())
        next(call)
        streams.append((call, requests))
    return streams


def close_streams(streams: list) -> None:
    for _call, requests in streams:
        requests.close()


def too_many(stub: decoding_pb2_grpc.DecodingServiceStub) -> errors.DdibError:
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Decode(iter([pb.DecodeRequest()]), timeout=60))
    return from_rpc_error(error.value, HOP)


def test_streams_of_one_identity_are_capped_and_unary_calls_go_on(node, north):
    with node.stub(north) as stub:
        streams = open_streams(stub, 2)
        assert node.calls.streams.active == 2
        found = too_many(stub)
        assert (type(found), found.facts, found.retry_after_s) == (errors.TooManyStreams, {"limit": "2"}, 1.0)
        stub.DescribeDomain(ASK, timeout=60)
        close_streams(streams)
        assert [list(call) for call, _requests in streams] == [[], []]
        list(stub.Decode(iter([pb.DecodeRequest()]), timeout=60))


def test_a_cancelled_stream_gives_its_place_back(node: Listening, north: Institution) -> None:
    with node.stub(north) as stub:
        for turn in range(3):
            streams = open_streams(stub, 2)
            for call, _requests in streams:
                call.cancel()
            close_streams(streams)
            node.outcomes.wait_for(2 * (turn + 1))
        assert node.calls.streams.active == 0


def test_unary_calls_whose_message_does_not_come_are_capped(node: Listening, north: Institution) -> None:
    silent = [Requests() for _ in range(MAX_WAITING_OF_ONE + 1)]
    ended: SimpleQueue[grpc.Future] = SimpleQueue()
    with node.channel(north) as channel:
        ask = channel.stream_unary(DESCRIBE)
        calls = [ask.future(requests, timeout=60) for requests in silent]
        for call in calls:
            call.add_done_callback(ended.put)
        refused = ended.get(timeout=60)
        assert type(from_rpc_error(refused.exception(), HOP)) is errors.TooManyStreams
        for requests in silent:
            requests.send(ASK.SerializeToString())
            requests.close()
        for call in calls:
            assert call is refused or call.result(timeout=60)
        channel.unary_unary(DESCRIBE)(ASK.SerializeToString(), timeout=60)


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
    node, silent, late = listen(request_s=1.5), Requests(), Requests()
    with node.channel(north) as channel:
        ask = channel.stream_unary(DESCRIBE)
        call, slow = ask.future(silent, timeout=60), ask.future(late, timeout=60)
        threading.Timer(0.3, lambda: (late.send(ASK.SerializeToString()), late.close())).start()
        assert slow.result(timeout=60)
        error = call.exception(timeout=60)
        silent.close()
    assert (error.code(), error.details()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED, "the caller did not send its request within 1.5 s",
    )  # fmt: skip
    wait_until(lambda: node.calls.waiting[True].active == 0)


@pytest.mark.slow
def test_a_caller_that_takes_nothing_of_its_stream_loses_it(listen, north: Institution) -> None:
    node = listen(idle_s=0.5)
    node.echo.much = MUCH
    with node.stub(north) as stub:
        call = stub.Decode(iter([pb.DecodeRequest()] * 50), timeout=30)
        assert node.echo.ended.wait(60)
        wait_until(lambda: node.calls.streams.active == 0)
        with pytest.raises(grpc.RpcError) as error:
            list(call)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.value.details() == "the caller took nothing of the answers for 0.5 s"


def test_a_caller_that_takes_no_answers_can_have_so_many_calls_open(listen, north, monkeypatch):
    """Over all its connections; the excess is refused, which it hears, and another caller is served."""
    monkeypatch.setattr(server, "OPEN_OF_ONE", 20)
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
            channel.unary_unary(HEALTH)(b"", timeout=60)
    wait_until(lambda: len(node.calls.open_calls) == 0)


def taken(slots: Slots, who: str, ends: ExitStack) -> int:
    """How many places somebody gets."""
    count = 0
    while True:
        try:
            ends.enter_context(slots.taken(who))
        except errors.TooManyStreams:
            return count
        count += 1


def test_a_certificate_that_expires_ends_the_admission(node: Listening, north: Institution) -> None:
    with node.stub(north) as stub:
        stub.DescribeDomain(ASK, timeout=60)
        node.now = lambda: datetime.now(UTC) + timedelta(hours=25)
        with pytest.raises(grpc.RpcError) as error:
            stub.DescribeDomain(ASK, timeout=60)
    assert type(from_rpc_error(error.value, HOP)) is errors.Unauthenticated


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"transport_security_type": [b"ssl"]},
        {"transport_security_type": [b"ssl"], "ssl_tls_version": [b"TLSv1.2"], "x509_pem_cert": [b"x"]},
        {"transport_security_type": [b"ssl"], "x509_pem_cert": [b"x"]},
        {"transport_security_type": [b"ssl"], "ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [b"x", b"y"]},
    ],
)
def test_a_call_without_one_certificate_over_tls_13_is_refused(context: dict[str, list[bytes]]) -> None:
    with pytest.raises(errors.Unauthenticated):
        presented_certificate(context)
