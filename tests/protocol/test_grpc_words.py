"""The words of the installed gRPC by which `errors_wire` tells one status' causes apart, each from a real call."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from ddib_fed.errors import DdibError, InternalError, MessageInvalid, NotFoundError, PeerUnreachable
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.v1 import decoding_pb2 as pb
from tests.node.institutions import Institution
from tests.node.listening import Listening

HOP = "target south.example"
DESCRIBE = "/ddib_fed.v1.DecodingService/DescribeDomain"
DECODE = "/ddib_fed.v1.DecodingService/Decode"
ASK = pb.DescribeDomainRequest(protocol=PROTOCOL).SerializeToString()
FIVE_MIB = ASK + b"\x0a\x00" * (5 << 19)


@pytest.fixture
def north(tmp_path) -> Institution:
    return Institution("north.example", tmp_path / "north")


@pytest.fixture
def node(tmp_path, north) -> Iterator[Listening]:
    south = Institution("south.example", tmp_path / "south")
    south.admit(north)
    listening = Listening(south)
    yield listening
    listening.close()


def failure(node: Listening, who: Institution, path: str, request, *, options=(), **codec) -> DdibError:
    """What a call that fails means."""
    with node.channel(who, options=options) as channel:
        make = channel.stream_stream if path == DECODE else channel.unary_unary
        with pytest.raises(grpc.RpcError) as error:
            tuple(make(path, **codec)(request, timeout=10))
    return from_rpc_error(error.value, HOP)


def refuse(data: object) -> bytes:
    raise ValueError(data)


@pytest.mark.slow
def test_a_message_over_our_limit_or_the_peers_is_final(node, north) -> None:
    """Refused before it is sent, or, where the caller has no limit of its own, by the node's gRPC."""
    for options in ((), (("grpc.max_send_message_length", -1),)):
        found = failure(node, north, DESCRIBE, FIVE_MIB, options=options)
        assert type(found) is MessageInvalid
        assert "4 MiB" in found.detail


def test_an_answer_over_the_limit_is_final(node, north) -> None:
    """The caller's gRPC refuses it by its size."""
    found = failure(node, north, DESCRIBE, ASK, options=(("grpc.max_receive_message_length", 10),))
    assert type(found) is MessageInvalid


def test_an_answer_that_is_no_message_is_final(node, north) -> None:
    """It is INTERNAL, as a stream that was reset."""
    assert type(failure(node, north, DESCRIBE, ASK, response_deserializer=refuse)) is MessageInvalid


def test_messages_that_cannot_be_made_here_are_our_bug(node, north) -> None:
    """A stream's, whose making fails on gRPC's thread, and a call's."""

    def broken() -> Iterator[bytes]:
        raise ValueError
        yield b""

    assert type(failure(node, north, DECODE, broken())) is InternalError
    assert type(failure(node, north, DECODE, iter([b""]), request_serializer=refuse)) is InternalError
    assert type(failure(node, north, DESCRIBE, b"", request_serializer=refuse)) is InternalError


def test_a_call_that_the_node_does_not_offer_is_final(node, north) -> None:
    """Another role's, or another release's."""
    assert type(failure(node, north, "/ddib_fed.v1.TranslationService/GetJob", b"")) is NotFoundError


def test_a_node_that_stops_under_a_call_is_unreachable(node, north) -> None:
    """A server that stops hard ends its calls with CANCELLED, and nobody here has cancelled."""

    def endless() -> Iterator[bytes]:
        yield b""
        node.server.stop(None)
        node.echo.ended.wait(10)

    assert type(failure(node, north, DECODE, endless())) is PeerUnreachable
