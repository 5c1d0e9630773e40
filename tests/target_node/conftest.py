"""A target node's service behind its real port: mTLS, interceptors, limits; north calls it with its own certificate."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from ddib_fed.data.points import parse_npy
from ddib_fed.latent import Latent
from ddib_fed.node.policy import Policy
from ddib_fed.node.server import CallInterceptor, NodeServer
from ddib_fed.protocol.calls import from_rpc_error
from ddib_fed.protocol.contract import PROTOCOL, Contract
from ddib_fed.protocol.streams import MIN_CHUNK, Announced, assemble, stream
from ddib_fed.security import tls
from ddib_fed.security.pki import certificate_pem
from ddib_fed.v1 import common_pb2, decoding_pb2_grpc
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1.decoding_pb2 import ContractSide
from target_node.service import TargetService
from tests.node.institutions import Institution
from tests.node.tiny_nodes import make_config, make_context, make_institution, tiny_engine


def side(institution: str, domain: str = "moons") -> ContractSide:
    return ContractSide(
        institution=institution, domain=domain, sample_kind="point", sample_shape=(2,), size_rule="none",
        value_range="unit-std", model_sha256=bytes(32), terminal_lambda=-5.0, initial_lambda=5.0,
    )  # fmt: skip


class Target:
    """South's node; `settings` are lines of its node.toml."""

    def __init__(self, folder, south: Institution, engine, **settings) -> None:
        self.south = south
        self.config = make_config(folder, south.name, "target", **settings)
        self.node = make_context(self.config, south, engine)
        self.service = TargetService(self.node)
        policy = Policy(institution=south.name, roles=("target",), issuer=False)
        limits = self.config.limits
        self.calls = CallInterceptor(
            south.name, self.node.peers, policy, limits=limits.model_copy(update={"max_streams": 8})
        )
        credentials = tls.ServerCredentials(south.pki, self.node.peers).grpc
        self.server = NodeServer("127.0.0.1:0", credentials, [self.calls], max_streams=8)
        self.service.register(self.server.grpc)
        self.server.start()
        self.calls.start()

    @contextmanager
    def called_by(self, who: Institution, **more) -> Iterator[decoding_pb2_grpc.DecodingServiceStub]:
        roots = certificate_pem(self.south.root)
        name = self.south.identity.dns_name
        with tls.channel(
            self.server.address, server_name=name, pki_folder=who.pki, roots_pem=roots, **more
        ) as channel:
            yield decoding_pb2_grpc.DecodingServiceStub(channel)

    def negotiate(self, who: Institution, domain: str = "moons", protocol: int = PROTOCOL) -> Contract:
        request = pb.NegotiateContractRequest(protocol=protocol, source=side(who.name, domain))
        with self.called_by(who) as stub:
            return Contract(asking(stub.NegotiateContract, request).contract)

    def decode(self, who: Institution, *messages: pb.DecodeRequest) -> list[pb.DecodeResponse]:
        with self.called_by(who) as stub:
            return asking(lambda sent, timeout: list(stub.Decode(sent, timeout=timeout)), iter(messages))

    def close(self) -> None:
        self.calls.stop()
        self.server.stop(0.0)
        self.node.audit.store.close()


def asking(method, request):
    """The answer, or our own error for what the other side said."""
    try:
        return method(request, timeout=60)
    except grpc.RpcError as error:
        raise from_rpc_error(error, "target south.example") from error


@pytest.fixture
def fresh_engine():
    made = tiny_engine()
    yield made
    made.close()


@pytest.fixture
def institutions(tmp_path):
    """North and south, south admitting north and west."""
    made = {name: make_institution(tmp_path / name, f"{name}.example") for name in ("north", "south", "west")}
    made["south"].admit(made["north"])
    made["south"].admit(made["west"])
    return made


@pytest.fixture
def north(institutions):
    return institutions["north"]


@pytest.fixture
def open_target(tmp_path, institutions, engine):
    """Opens south's node with more in its node.toml."""
    opened: list[Target] = []

    def open_it(*, warm: bool = True, **settings) -> Target:
        opened.append(Target(tmp_path / "south", institutions["south"], engine if warm else None, **settings))
        return opened[-1]

    yield open_it
    for target in opened:
        target.close()


@pytest.fixture
def target(open_target):
    return open_target()


def header(contract, **changes) -> pb.DecodeRequest:
    """The first message of a call."""
    fields = {
        "contract_sha256": contract.digest, "request_id": "job", "items": 2,
        "solver": common_pb2.SolverSettings(evaluations=8), **changes,
    }  # fmt: skip
    return pb.DecodeRequest(header=pb.DecodeHeader(**fields))


def sent(contract, points: np.ndarray, item: int = 0) -> list[pb.DecodeRequest]:
    """The messages of one latent; whatever it holds, as a hostile peer would."""
    data = points.astype("<f4").tobytes()
    latent = Latent.from_array(points)
    tensor = common_pb2.TensorHeader(shape=points.shape, size_bytes=len(data), sha256=latent.sha256)
    head = pb.LatentHeader(item=item, tensor=tensor, contract_sha256=contract.digest)
    return list(stream(pb.DecodeRequest, "latent", head, data))


def torn(contract, item: int = 0) -> pb.DecodeRequest:
    """The first of the two messages of a latent."""
    (message,) = sent(contract, np.zeros((10_000, 2), np.float32), item)
    return pb.DecodeRequest(latent=message.latent, data=message.data[:MIN_CHUNK])


def results(messages) -> dict[int, np.ndarray]:
    """Points by item, out of the messages of an answer."""
    said = (message for message in messages if message.WhichOneof("message") != "progress")

    def opener(head):
        return Announced(head.file.size_bytes, head.file.sha256, 1 << 20)

    return {
        whole.header.item: parse_npy(bytes(whole.data), max_bytes=1 << 20, max_points=1000)
        for whole in assemble(said, {"result": opener})
    }
