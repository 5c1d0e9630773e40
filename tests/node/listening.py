"""A real server on loopback with the node's interceptors, and servicers that do as little as possible."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from queue import SimpleQueue

import grpc
import pytest
from grpc_health.v1 import health

from ddib_fed.errors import DdibError
from ddib_fed.node.config import LimitsSection
from ddib_fed.node.connections import InboundGuard
from ddib_fed.node.policy import Policy
from ddib_fed.node.server import RESERVED_THREADS, CallInterceptor, caller, health_handler
from ddib_fed.protocol.calls import from_rpc_error
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.security import tls
from ddib_fed.security.pki import certificate_pem
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1 import decoding_pb2_grpc
from tests.node.institutions import Institution
from tests.protocol.examples import LIMITS, side


def described() -> pb.DescribeDomainResponse:
    """A description that passes the checks."""
    return pb.DescribeDomainResponse(protocol=PROTOCOL, side=side(), limits=LIMITS)


ASK = pb.DescribeDomainRequest(protocol=PROTOCOL)
DESCRIBE = "/ddib_fed.v1.DecodingService/DescribeDomain"
HOP = "target south.example"


class Echo(decoding_pb2_grpc.DecodingServiceServicer):
    """Says who called; echoes each message of a stream as progress; fails when told to; says much when told to."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.ended = threading.Event()
        self.taken = 0
        self.much = b""

    def DescribeDomain(self, request, context):
        if self.failure is not None:
            raise self.failure
        answer = described()
        answer.side.institution = str(caller())
        return answer

    def Decode(self, request_iterator, context):
        try:
            for number, _message in enumerate(request_iterator):
                self.taken += 1
                if self.failure is not None:
                    raise self.failure
                yield pb.DecodeResponse(progress=pb.DecodeProgress(item=number, stage=str(caller())))
                if self.much:
                    yield pb.DecodeResponse(data=self.much)
        finally:
            self.ended.set()


class Outcomes(list):
    """What the error interceptor reports for each call."""

    def __init__(self) -> None:
        super().__init__()
        self._more = threading.Condition()

    def __call__(self, method: str, status: str) -> None:
        with self._more:
            self.append((method.rpartition("/")[2], status))
            self._more.notify_all()

    def wait_for(self, count: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: len(self) >= count, timeout=60), list(self)


class Audit(list):
    """Keeps what is written."""

    def write(self, act: str, **values: str) -> None:
        self.append((act, values))


class Listening:
    """South's server: north is admitted."""

    def __init__(
        self,
        south: Institution,
        *,
        guard: InboundGuard | None = None,
        idle_s: float = 300.0,
        request_s: float = 20.0,
    ) -> None:
        self.south = south
        self.echo, self.outcomes, self.audit = Echo(), Outcomes(), Audit()
        self.now = lambda: datetime.now(UTC)
        self.peers = south.store
        self.credentials = tls.ServerCredentials(south.pki, self.peers)
        policy = Policy(institution=south.name, roles=("target",), issuer=False)
        self.calls = CallInterceptor(
            south.name,
            self.peers,
            policy,
            audit=self.audit,
            clock=lambda: self.now().timestamp(),
            on_outcome=self.outcomes,
            guard=guard,
            limits=LimitsSection(max_streams=4, idle_s=idle_s, request_s=request_s),
            max_streams_of_one=2,
        )
        threads = ThreadPoolExecutor(4 + RESERVED_THREADS)
        self.server = grpc.server(threads, interceptors=(self.calls,))
        decoding_pb2_grpc.add_DecodingServiceServicer_to_server(self.echo, self.server)
        self.health = health.HealthServicer()
        self.server.add_generic_rpc_handlers([health_handler(self.health)])
        self.port = self.server.add_secure_port("127.0.0.1:0", self.credentials.grpc)
        self.server.start()
        self.calls.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextmanager
    def channel(self, who: Institution, **overrides) -> Iterator[grpc.Channel]:
        """A channel with `who`'s certificate."""
        arguments = {
            "server_name": self.south.identity.dns_name,
            "pki_folder": who.pki,
            "roots_pem": certificate_pem(self.south.root),
        } | overrides
        with tls.channel(self.address, **arguments) as channel:
            yield channel

    @contextmanager
    def stub(self, who: Institution, **overrides) -> Iterator[decoding_pb2_grpc.DecodingServiceStub]:
        with self.channel(who, **overrides) as channel:
            yield decoding_pb2_grpc.DecodingServiceStub(channel)

    def close(self) -> None:
        self.calls.stop()
        self.server.stop(None).wait()


class Requests:
    """The client's side of a stream, one message at a time."""

    def __init__(self) -> None:
        self._queue: SimpleQueue = SimpleQueue()
        self.send = self._queue.put

    def close(self) -> None:
        self.send(None)

    def __iter__(self):
        return self

    def __next__(self):
        if (message := self._queue.get()) is None:
            raise StopIteration
        return message


def failure(node: Listening, who: Institution, hop: str = HOP, **overrides) -> DdibError:
    with node.stub(who, **overrides) as stub, pytest.raises(grpc.RpcError) as error:
        stub.DescribeDomain(ASK, timeout=60)
    return from_rpc_error(error.value, hop)
