"""Health over a real port: true for the names that are served, told to whoever may ask, and nothing of it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest

from ddib_fed.errors import DdibError, MessageInvalid, NotFoundError, PeerSuspended, PolicyDenied
from ddib_fed.rpc.error_details import from_rpc_error
from ddib_fed.server.health import HealthServicer
from ddib_fed.trust import pki
from tests.node.institutions import Institution
from tests.server.listening import HOP, Listening

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE = "ddib_fed.v1.DecodingService"


@pytest.fixture
def own(node: Listening) -> Iterator[health_pb2_grpc.HealthStub]:
    with node.channel(node.south) as channel:
        yield health_pb2_grpc.HealthStub(channel)


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
    node.health.set(SERVICE, serving=False)
    assert client.Check(HealthCheckRequest(), timeout=5).status == SERVING
    assert client.Check(HealthCheckRequest(service=SERVICE), timeout=5).status == NOT_SERVING


def test_names_that_are_not_served_are_not_found_and_not_kept(node: Listening, own) -> None:
    """Whether they are asked for once, or watched."""
    for number in range(10):
        request = HealthCheckRequest(service=f"name {number}")
        assert type(refusal(partial(own.Check, request, timeout=5))) is NotFoundError
        assert type(refusal(partial(next, own.Watch(request, timeout=5)))) is NotFoundError
    assert node.health.statuses() == {"": True}


def test_a_long_name_is_refused_before_it_is_parsed(client) -> None:
    """No service has a name of a kilobyte."""
    request = HealthCheckRequest(service="x" * 2_000)
    assert type(refusal(lambda: client.Check(request, timeout=5))) is MessageInvalid


def test_a_watcher_of_the_own_institution_hears_of_each_change(node: Listening, own) -> None:
    """First what is, then what changes, until the node stops; the list has every name."""
    watching = own.Watch(HealthCheckRequest(), timeout=20)
    assert next(watching).status == SERVING
    node.health.set("", serving=False)
    assert next(watching).status == NOT_SERVING
    listed = own.List(HealthListRequest(), timeout=5).statuses
    assert {name: answer.status for name, answer in listed.items()} == {"": NOT_SERVING}
    node.health.close()
    assert list(watching) == []


def test_a_watch_that_is_taken_back_leaves_its_thread(node: Listening, own) -> None:
    """At once, although nothing changes."""
    for ended in range(1, 6):
        watching = own.Watch(HealthCheckRequest(), timeout=20)
        next(watching)
        watching.cancel()
        node.outcomes.wait_for(ended)
    assert node.limiter.active == 0


def test_a_watch_lasts_only_so_long(node: Listening, own) -> None:
    """Its caller gets an error, and may watch again."""
    node.health._watch_s = 0.1
    watching = own.Watch(HealthCheckRequest(), timeout=20)
    assert next(watching).status == SERVING
    found = refusal(lambda: next(watching))
    assert (found.reason, found.facts) == ("DEADLINE_EXCEEDED", {"watch_s": "0.1"})


def test_another_institution_may_not_watch_or_list(client) -> None:
    """Each Watch holds a thread, and its root issues as many certificates as it likes."""
    assert type(refusal(lambda: list(client.Watch(HealthCheckRequest(), timeout=5)))) is PolicyDenied
    assert type(refusal(lambda: client.List(HealthListRequest(), timeout=5))) is PolicyDenied


def test_a_suspended_institution_is_not_answered(node: Listening, client) -> None:
    """Until it is resumed."""
    node.south.store.suspend("north.example")
    assert type(refusal(lambda: client.Check(HealthCheckRequest(), timeout=5))) is PeerSuspended
    node.south.store.resume("north.example")
    assert client.Check(HealthCheckRequest(), timeout=5).status == SERVING


def test_a_servicer_says_nothing_serves_before_it_is_told(node: Listening) -> None:
    """A new one knows no name."""
    assert HealthServicer().statuses() == {}
