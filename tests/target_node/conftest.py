"""A target node's service behind its real port: mTLS, interceptors, limits; north calls it with its own certificate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from ddib_fed.node.policy import Policy
from ddib_fed.node.server import CallInterceptor, NodeServer
from ddib_fed.protocol.contract import PROTOCOL, Contract
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import tls
from ddib_fed.security.pki import certificate_pem
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1 import decoding_pb2_grpc
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
            south.name,
            self.node.peers,
            policy,
            limits=limits.model_copy(update={"max_streams": 8}),
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
        request = pb.NegotiateContractRequest(
            protocol=protocol,
            source=side(who.name, domain),
        )
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
        return method(request, timeout=20)
    except grpc.RpcError as error:
        raise from_rpc_error(error, "target south.example") from error


@pytest.fixture(scope="session")
def engine():
    made = tiny_engine()
    yield made
    made.close()


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
