"""What a caller reads when its message or a handler fails: against a real server over real mutual TLS."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace

import grpc
import pytest

from ddib_fed.errors import (
    ContractMismatch,
    Difference,
    DiskFull,
    InternalError,
    MessageInvalid,
    QueueFull,
    UnknownFields,
)
from ddib_fed.protocol.details import clock_difference, from_rpc_error
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1 import decoding_pb2_grpc
from tests.node.institutions import Institution
from tests.node.listening import ASK, DESCRIBE, HOP, Listening, Requests, failure


def test_unknown_fields_are_refused_at_any_depth(node: Listening, north: Institution) -> None:
    """At the top, in a nested message, in a repeated one, and in a stream."""
    unknown = b"\x98\x06\x01"  # field 99, a number
    known = pb.DescribeDomainRequest(protocol=1).SerializeToString()
    inner = b"\x12" + bytes([len(unknown)]) + unknown  # in NegotiateContractRequest.source
    negotiate = DESCRIBE.replace("DescribeDomain", "NegotiateContract")
    for method, data in ((DESCRIBE, known + unknown), (negotiate, known + inner)):
        with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(method)(data, timeout=5)
        assert type(from_rpc_error(error.value, HOP)) is UnknownFields
    with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
        list(channel.stream_stream("/ddib_fed.v1.DecodingService/Decode")(iter([unknown]), timeout=5))
    assert type(from_rpc_error(error.value, HOP)) is UnknownFields


def test_garbage_is_a_message_that_breaks_the_protocol(node: Listening, north: Institution) -> None:
    """From somebody who may call."""
    with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(DESCRIBE)(b"\xff\xff\xff", timeout=5)
    assert type(from_rpc_error(error.value, HOP)) is MessageInvalid


def test_a_call_that_ends_without_its_message_is_refused(node: Listening, north: Institution) -> None:
    """Half-closed at once."""
    with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
        channel.stream_unary(DESCRIBE)(iter(()), timeout=5)
    assert type(from_rpc_error(error.value, HOP)) is MessageInvalid


# What is answered when something fails.


SECRET = "/srv/node/state/pki/leaf.key of patient 4711"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        KeyError(SECRET),
        OSError(2, SECRET),
        InternalError(SECRET),
        QueueFull(SECRET, hint=SECRET),
        Exception(SECRET),
        grpc.RpcError(SECRET),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_text_of_an_exception_never_leaves(
    node: Listening, north: Institution, error: Exception, stream: bool
) -> None:
    """Neither in the status nor in any metadata; ours or not."""
    node.echo.failure = error
    with node.stub(north) as stub, pytest.raises(grpc.RpcError) as raised:
        list(stub.Decode(iter([pb.DecodeRequest()]), timeout=5)) if stream else stub.DescribeDomain(
            ASK, timeout=5
        )
    call = raised.value
    seen = (
        f"{call.details()} {call.trailing_metadata()} {call.initial_metadata()} {call.debug_error_string()}"
    )
    assert "patient" not in seen
    assert "leaf.key" not in seen


def test_a_bug_is_logged_with_the_incident_that_the_caller_reads(
    node: Listening, north: Institution, caplog: pytest.LogCaptureFixture
) -> None:
    """Twelve hexadecimal digits tie the two together; the log has the traceback."""
    node.echo.failure = ZeroDivisionError("in the depths")
    with caplog.at_level(logging.ERROR):
        found = failure(node, north)
    assert isinstance(found, InternalError)
    assert len(found.incident) == 12
    assert int(found.incident, 16) >= 0
    assert found.incident in caplog.text
    assert "ZeroDivisionError: in the depths" in caplog.text


def test_a_known_error_arrives_with_its_facts(node: Listening, north: Institution) -> None:
    """Status, sentence, facts, differences, when to come again."""
    difference = Difference("dtype", "float32", "float64", "convert it")
    node.echo.failure = ContractMismatch("x", facts={"asked": 1}, differences=(difference,), retry_after_s=2)
    found = failure(node, north)
    assert isinstance(found, ContractMismatch)
    assert (found.facts, found.retry_after_s) == ({"asked": "1"}, 2.0)
    assert found.differences == (replace(difference, remedy='south.example says: "convert it"'),)


def test_an_error_of_another_node_keeps_its_incident_and_its_place(
    node: Listening, north: Institution
) -> None:
    """What a source passes on from its target."""
    node.echo.failure = QueueFull("x", hop="target west.example", incident="feed00")
    found = failure(node, north, hop="source south.example")
    assert (found.incident, found.hop) == ("feed00", "source south.example -> west.example")
    assert found.says == "west.example"


def test_each_call_has_one_outcome(node: Listening, north: Institution) -> None:
    """For the metrics: good, refused, failed, and left by the caller."""
    with node.stub(north) as stub:
        stub.DescribeDomain(ASK, timeout=5)
        node.echo.failure = QueueFull("x")
        with pytest.raises(grpc.RpcError):
            stub.DescribeDomain(ASK, timeout=5)
        node.outcomes.wait_for(2)
        requests = Requests()
        call = stub.Decode(requests, timeout=10)
        node.echo.failure = None
        requests.send(pb.DecodeRequest())
        next(call)
        call.cancel()
        node.outcomes.wait_for(3)
        requests.close()
    assert node.outcomes[:2] == [("DescribeDomain", "OK"), ("DescribeDomain", "RESOURCE_EXHAUSTED")]
    # gRPC may show the servicer the end of the stream before it shows that the caller has gone.
    assert node.outcomes[2] in {("Decode", "CANCELLED"), ("Decode", "OK")}


def test_every_call_ends_with_the_nodes_time(node: Listening, north: Institution) -> None:
    """Also one that is refused: two clocks are compared by it."""
    with node.channel(north) as channel:
        decoding_pb2_grpc.DecodingServiceStub(channel).DescribeDomain(ASK, timeout=5)
        assert abs(channel.clock_s) < 5
    node.echo.failure = QueueFull("x")
    with node.stub(north) as stub, pytest.raises(grpc.RpcError) as error:
        stub.DescribeDomain(ASK, timeout=5)
    assert abs(clock_difference(error.value.trailing_metadata())) < 5


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_internal_error(node: Listening, north: Institution, code: int) -> None:
    """For any file, e.g. the audit log; the error asks the caller to retry."""
    node.echo.failure = OSError(code, "No space left on device", "/srv/ddib/state/node.sqlite")
    found = failure(node, north)
    assert isinstance(found, DiskFull)
    assert found.retry_after_s
    assert "/srv" not in found.detail
