"""The node's port: one owner, truthful health, threads for brief calls, taken in turn by connections."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from ddib_fed.errors import DdibError, PeerSuspended
from ddib_fed.node.config import LimitsSection
from ddib_fed.node.policy import Policy
from ddib_fed.node.server import MOST_WAITING, RESERVED_THREADS, CallInterceptor, FairPool, NodeServer
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import pki, tls
from ddib_fed.security.pki import certificate_pem
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1 import decoding_pb2_grpc
from tests.node.institutions import Institution
from tests.node.listening import HOP, Listening, Requests, described
from tests.node.tiny_nodes import make_institution
from tests.source_node.conftest import wait_until

SERVICE = "ddib_fed.v1.DecodingService"
STREAMS = 3


class Servicer(decoding_pb2_grpc.DecodingServiceServicer):
    """Describes at once; a stream lasts as long as its caller wants."""

    def DescribeDomain(self, request, context):
        return described()

    def Decode(self, request_iterator, context):
        for _ in request_iterator:
            yield pb.DecodeResponse()


class Served:
    def __init__(self, folder, *, streams: int = STREAMS) -> None:
        self.north = make_institution(folder / "north", "north.example")
        self.south = make_institution(folder / "south", "south.example")
        self.south.admit(self.north)
        store = self.south.store
        self.credentials = tls.ServerCredentials(self.south.pki, store).grpc
        policy = Policy(institution="south.example", roles=("target",), issuer=False)
        self.interceptors = [
            CallInterceptor(
                "south.example",
                store,
                policy,
                limits=LimitsSection(max_streams=2 * streams),
                max_streams_of_one=streams,
            )
        ]
        self.server = self.listen("127.0.0.1:0", streams)
        decoding_pb2_grpc.add_DecodingServiceServicer_to_server(Servicer(), self.server.grpc)
        self.server.start()
        roots = certificate_pem(self.south.root)
        self.channel = tls.channel(
            self.server.address,
            server_name="node-1.south.example",
            pki_folder=self.north.pki,
            roots_pem=roots,
        )
        self.stub = decoding_pb2_grpc.DecodingServiceStub(self.channel)

    def listen(self, address: str, streams: int = STREAMS) -> NodeServer:
        return NodeServer(address, self.credentials, self.interceptors, max_streams=streams)

    def health(self, service: str = "") -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=10)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def close(self) -> None:
        self.channel.close()
        self.server.stop(0.0)


@pytest.fixture
def served(tmp_path):
    made = Served(tmp_path)
    yield made
    made.close()


def test_health_is_not_serving_until_told(served) -> None:
    """For the server and for each service; never SERVING by default."""
    assert served.health() == "NOT_SERVING"
    served.server.add_services([SERVICE])
    assert served.health(SERVICE) == "NOT_SERVING"
    served.server.set_serving(serving=True)
    assert {served.health(), served.health(SERVICE)} == {"SERVING"}
    served.server.set_serving(serving=False)
    assert {served.health(), served.health(SERVICE)} == {"NOT_SERVING"}


def test_unary_calls_and_health_are_answered_while_all_streams_are_taken(served) -> None:
    """One more stream is refused at once; what is brief finds a thread."""
    open_streams = []
    for _ in range(STREAMS):
        requests = Requests()
        call = served.stub.Decode(iter(requests), timeout=30)
        requests.send(pb.DecodeRequest())
        next(call)
        open_streams.append((requests, call))
    with pytest.raises(grpc.RpcError) as refused:
        next(served.stub.Decode(iter([pb.DecodeRequest()]), timeout=10))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for _ in range(2 * RESERVED_THREADS):
        served.stub.DescribeDomain(pb.DescribeDomainRequest(protocol=PROTOCOL), timeout=10)
        assert served.health() == "NOT_SERVING"
    for requests, call in open_streams:
        requests.close()
        assert not list(call)


def test_a_server_that_stops_lets_running_calls_end(served) -> None:
    """New calls are refused; the open one is answered to its end."""
    requests = Requests()
    call = served.stub.Decode(iter(requests), timeout=30)
    requests.send(pb.DecodeRequest())
    next(call)
    stopper = threading.Thread(target=served.server.stop, args=(10.0,))
    stopper.start()
    wait_until(lambda: refused(served))
    requests.send(pb.DecodeRequest())
    next(call)
    requests.close()
    assert not list(call)
    stopper.join(10)
    assert not stopper.is_alive()


def refused(served) -> bool:
    try:
        served.stub.DescribeDomain(pb.DescribeDomainRequest(protocol=PROTOCOL), timeout=10)
    except grpc.RpcError as error:
        return error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    return False


SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture
def client(node: Listening, north: Institution, tmp_path: Path) -> Iterator[health_pb2_grpc.HealthStub]:
    pki.issue_client(north.pki, tmp_path / "alice", "alice")
    with node.channel(north, pki_folder=tmp_path / "alice") as channel:
        yield health_pb2_grpc.HealthStub(channel)


def refusal(call) -> DdibError:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return from_rpc_error(error.value, HOP)


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


def test_a_suspended_institution_is_not_answered(node: Listening, client) -> None:
    """Until it is resumed."""
    node.south.store.suspend("north.example")
    assert type(refusal(lambda: client.Check(HealthCheckRequest(), timeout=5))) is PeerSuspended
    node.south.store.resume("north.example")
    assert client.Check(HealthCheckRequest(), timeout=5).status == SERVING


def event(peer: str) -> SimpleNamespace:
    return SimpleNamespace(call=SimpleNamespace(peer=peer.encode))


class Held:
    """A pool of one thread, which is busy until it is let go; what runs is written down."""

    def __init__(self) -> None:
        self.crowds: list[str] = []
        self.ran: list[str] = []
        self.pool = FairPool(1, self.crowds.append)
        self._go = threading.Event()
        self.pool.submit(self._go.wait)

    def call(self, peer: str, what: str):
        return self.pool.submit(lambda _state, _event: self.ran.append(what), None, event(peer))

    def go(self) -> None:
        self._go.set()
        self.pool.submit(lambda: None).result(10)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.go()
    made.pool.shutdown()


def test_a_call_waits_for_one_of_each_other_connection_at_most(held: Held) -> None:
    """One caller has a hundred calls waiting; the call that came last, of another, is the second to run."""
    calls = [held.call("ipv4:10.0.0.1:1", f"flood {number}") for number in range(100)]
    health = held.call("ipv4:10.0.0.2:1", "health")
    held.go()
    for call in (*calls, health):
        call.result(10)
    assert held.ran.index("health") == 1
    assert [what for what in held.ran if what != "health"] == [f"flood {number}" for number in range(100)]


def test_a_connection_with_too_many_waiting_calls_is_named(held: Held) -> None:
    """Once for each call beyond the limit; tasks of no call are not counted."""
    for _ in range(MOST_WAITING + 2):
        held.call("ipv4:10.0.0.1:1", "")
    assert held.crowds == ["ipv4:10.0.0.1:1"] * 2
    for _ in range(MOST_WAITING + 2):
        held.pool.submit(lambda: None)
    assert len(held.crowds) == 2
