"""The node's port: one owner, truthful health, threads for brief calls, taken in turn by connections."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from ddib_fed.node.policy import Policy
from ddib_fed.node.server import CallInterceptor, FairPool, NodeServer
from ddib_fed.security import tls
from ddib_fed.security.pki import certificate_pem
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1 import decoding_pb2_grpc
from tests.node.institutions import Institution
from tests.node.listening import ASK, Listening, described
from tests.node.tiny_nodes import make_institution

SERVICE = "ddib_fed.v1.DecodingService"


class Servicer(decoding_pb2_grpc.DecodingServiceServicer):
    """Describes at once; a stream lasts as long as its caller wants."""

    def DescribeDomain(self, request, context):
        return described()

    def Decode(self, request_iterator, context):
        for _ in request_iterator:
            yield pb.DecodeResponse()


class Served:
    """South's node server, and north's channel to it."""

    def __init__(self, folder) -> None:
        north = make_institution(folder / "north", "north.example")
        south = make_institution(folder / "south", "south.example")
        south.admit(north)
        policy = Policy(institution="south.example", roles=("target",), issuer=False)
        interceptor = CallInterceptor("south.example", south.store, policy)
        credentials = tls.ServerCredentials(south.pki, south.store).grpc
        self.server = NodeServer("127.0.0.1:0", credentials, [interceptor], max_streams=6)
        decoding_pb2_grpc.add_DecodingServiceServicer_to_server(Servicer(), self.server.grpc)
        self.server.start()
        self.channel = tls.channel(
            self.server.address, server_name="node-1.south.example", pki_folder=north.pki,
            roots_pem=certificate_pem(south.root),
        )  # fmt: skip
        self.stub = decoding_pb2_grpc.DecodingServiceStub(self.channel)

    def health(self, service: str = "") -> str:
        request = HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=60)
        return HealthCheckResponse.ServingStatus.Name(answer.status)

    def close(self) -> None:
        self.channel.close()
        self.server.stop(0.0)


@pytest.fixture
def served(tmp_path):
    made = Served(tmp_path)
    yield made
    made.close()


def refused(served) -> bool:
    try:
        served.stub.DescribeDomain(ASK, timeout=60)
    except grpc.RpcError as error:
        return error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    return False


def test_nothing_is_kept_of_who_asked(node: Listening, north: Institution) -> None:
    """Names that are not served are not found; nobody may watch, which would hold a thread and keep the name."""
    request = HealthCheckRequest(service="a name")
    for who in (node.south, north):
        with node.channel(who) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.RpcError) as unknown:
                stub.Check(request, timeout=60)
            with pytest.raises(grpc.RpcError) as watched:
                list(stub.Watch(request, timeout=60))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        assert watched.value.code() is grpc.StatusCode.UNIMPLEMENTED


def event(peer: str) -> SimpleNamespace:
    return SimpleNamespace(call=SimpleNamespace(peer=peer.encode))


class Held:
    """A pool of one thread, which is busy until it is let go; what runs is written down."""

    def __init__(self) -> None:
        self.crowds: list[str] = []
        self.ran: list[str] = []
        self.pool = FairPool(1, lambda _: None, self.crowds.append)
        self._go = threading.Event()
        self.pool.submit(self._go.wait)

    def call(self, peer: str, what: str):
        return self.pool.submit(lambda _state, _event: self.ran.append(what), None, event(peer))

    def go(self) -> None:
        self._go.set()
        self.pool.submit(lambda: None).result(60)


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
        call.result(60)
    assert held.ran.index("health") == 1
    assert [what for what in held.ran if what != "health"] == [f"flood {number}" for number in range(100)]
