"""The node's port: one owner, truthful health, and threads left for those who ask briefly."""

from __future__ import annotations

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ddib_fed.node.interceptors import CallInterceptor
from ddib_fed.node.policy import Policy
from ddib_fed.node.server import RESERVED_THREADS, NodeServer
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.security import tls
from ddib_fed.security.pki import certificate_pem
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1 import decoding_pb2_grpc
from tests.node.listening import Requests, described
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
                "south.example", store, policy, max_streams=2 * streams, max_streams_of_one=streams
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
