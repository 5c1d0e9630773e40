"""Health over a real port: true for the names that are served, told to whoever may ask, and nothing of it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from ddib_fed.errors import DdibError, MessageInvalid, PeerSuspended
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import pki
from tests.node.institutions import Institution
from tests.node.listening import HOP, Listening

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE = "ddib_fed.v1.DecodingService"


@pytest.fixture
def client(node: Listening, north: Institution, tmp_path: Path) -> Iterator[health_pb2_grpc.HealthStub]:
    pki.issue_client(north.pki, tmp_path / "alice", "alice")
    with node.channel(north, pki_folder=tmp_path / "alice") as channel:
        yield health_pb2_grpc.HealthStub(channel)


def refusal(call) -> DdibError:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return from_rpc_error(error.value, HOP)


def test_a_probe_is_told_of_the_node_and_of_each_service(node: Listening, client) -> None:
    """By anybody's certificate of an admitted institution: this is what a load balancer or grpc_health_probe asks."""
    node.health.set(SERVICE, NOT_SERVING)
    assert client.Check(HealthCheckRequest(), timeout=5).status == SERVING
    assert client.Check(HealthCheckRequest(service=SERVICE), timeout=5).status == NOT_SERVING


def test_nothing_is_kept_of_who_asked(node: Listening, north: Institution) -> None:
    """Names that are not served are not found; nobody may watch, which would hold a thread and keep the name."""
    request = HealthCheckRequest(service="a name")
    for who in (node.south, north):
        with node.channel(who) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.RpcError) as unknown:
                stub.Check(request, timeout=5)
            with pytest.raises(grpc.RpcError) as watched:
                list(stub.Watch(request, timeout=5))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        assert watched.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_long_name_is_refused_before_it_is_parsed(client) -> None:
    """No service has a name of a kilobyte."""
    request = HealthCheckRequest(service="x" * 2_000)
    assert type(refusal(lambda: client.Check(request, timeout=5))) is MessageInvalid


def test_a_suspended_institution_is_not_answered(node: Listening, client) -> None:
    """Until it is resumed."""
    node.south.store.suspend("north.example")
    assert type(refusal(lambda: client.Check(HealthCheckRequest(), timeout=5))) is PeerSuspended
    node.south.store.resume("north.example")
    assert client.Check(HealthCheckRequest(), timeout=5).status == SERVING
