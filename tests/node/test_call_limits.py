"""How many streams and waiting calls a server takes at once, of one identity and in all."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest

from ddib_fed.errors import (
    DdibError,
    TooManyStreams,
)
from ddib_fed.node.interceptors import MAX_WAITING_OF_ONE
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1 import decoding_pb2_grpc
from tests.node.institutions import Institution
from tests.node.listening import ASK, DESCRIBE, HOP, Listening, Requests


def open_streams(stub: decoding_pb2_grpc.DecodingServiceStub, count: int) -> list:
    """Streams that have been answered once, and stay open."""
    streams = []
    for _ in range(count):
        requests = Requests()
        call = stub.Decode(requests, timeout=20)
        requests.send(pb.DecodeRequest())
        next(call)
        streams.append((call, requests))
    return streams


def close_streams(streams: list) -> None:
    for _call, requests in streams:
        requests.close()


def too_many(stub: decoding_pb2_grpc.DecodingServiceStub) -> DdibError:
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Decode(iter([pb.DecodeRequest()]), timeout=5))
    return from_rpc_error(error.value, HOP)


def test_streams_of_one_identity_are_capped_and_unary_calls_go_on(
    node: Listening, north: Institution
) -> None:
    """The excess is refused at once; when one ends there is room again."""
    with node.stub(north) as stub:
        streams = open_streams(stub, 2)
        assert node.calls.streams.active == 2
        found = too_many(stub)
        assert (type(found), found.facts, found.retry_after_s) == (TooManyStreams, {"limit": "2"}, 1.0)
        stub.DescribeDomain(ASK, timeout=5)
        close_streams(streams)
        assert [list(call) for call, _requests in streams] == [[], []]
        list(stub.Decode(iter([pb.DecodeRequest()]), timeout=5))


def test_streams_are_capped_in_all(north: Institution, tmp_path: Path) -> None:
    """Two peers share the total."""
    south, west = (
        Institution("south.example", tmp_path / "south"),
        Institution("west.example", tmp_path / "west"),
    )
    south.admit(north)
    south.admit(west)
    node = Listening(south, streams=(3, 2))
    with node.stub(north) as one, node.stub(west) as other:
        streams = [*open_streams(one, 2), *open_streams(other, 1)]
        assert too_many(other).facts == {"limit": "3"}
        one.DescribeDomain(ASK, timeout=5)
        close_streams(streams)
    node.close()


def test_a_cancelled_stream_gives_its_place_back(node: Listening, north: Institution) -> None:
    """When its handler has ended, not before."""
    with node.stub(north) as stub:
        for turn in range(3):
            streams = open_streams(stub, 2)
            for call, _requests in streams:
                call.cancel()
            close_streams(streams)
            node.outcomes.wait_for(2 * (turn + 1))
        assert node.calls.streams.active == 0


def test_unary_calls_whose_message_does_not_come_are_capped(node: Listening, north: Institution) -> None:
    """They would otherwise hold every thread of the reserve, and Health with it."""
    silent = [Requests() for _ in range(MAX_WAITING_OF_ONE + 1)]
    ended: SimpleQueue[grpc.Future] = SimpleQueue()
    with node.channel(north) as channel:
        ask = channel.stream_unary(DESCRIBE)
        calls = [ask.future(requests, timeout=20) for requests in silent]
        for call in calls:
            call.add_done_callback(ended.put)
        refused = ended.get(timeout=10)
        assert type(from_rpc_error(refused.exception(), HOP)) is TooManyStreams
        for requests in silent:
            requests.send(ASK.SerializeToString())
            requests.close()
        for call in calls:
            assert call is refused or call.result(timeout=10)
        channel.unary_unary(DESCRIBE)(ASK.SerializeToString(), timeout=5)
