"""An issuing node, and nodes that renew there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc

from ddib_fed.node.certificates import IdentityServicer
from ddib_fed.node.config import NodeConfig, render_node_toml
from ddib_fed.node.interceptors import CallInterceptor
from ddib_fed.node.policy import Policy, Quotas
from ddib_fed.security import pki, tls
from ddib_fed.security.audit import AuditLog
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import PeerStore
from ddib_fed.security.pki import install, make_request, read_request, sign_request
from ddib_fed.store import NodeStore
from ddib_fed.v1 import identity_pb2_grpc

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


def configured(folder: Path, name: str = "node-1", extra: str = "") -> NodeConfig:
    """A node.toml of north in `folder`, with `extra` in its table [identity]."""
    folder.mkdir(exist_ok=True)
    text = render_node_toml(
        institution="north.example",
        name=name,
        roles=("source",),
        domain="moons",
        listen="127.0.0.1:0",
        address="127.0.0.1:7443",
    )
    (folder / "node.toml").write_text(text.replace("[identity]\n", f"[identity]\n{extra}"))
    return NodeConfig.load(folder / "node.toml")


class Server:
    """The issuer's IdentityService on loopback."""

    def __init__(self, config: NodeConfig) -> None:
        self.on_renewal = lambda: None
        peers = PeerStore(config.paths.state, "north.example")
        policy = Policy(institution="north.example", roles=("source",), issuer=True)
        interceptors = (CallInterceptor("north.example", peers, policy),)
        self.grpc = grpc.server(ThreadPoolExecutor(2), interceptors=interceptors)
        audit = AuditLog(NodeStore(config.paths.store, shared=True))
        self.quotas = Quotas(audit.store)
        self.servicer = IdentityServicer(config, audit, self.quotas, peers, clock=self._clock)
        identity_pb2_grpc.add_IdentityServiceServicer_to_server(self.servicer, self.grpc)
        self.credentials = tls.ServerCredentials(config.paths.pki, peers)
        self.port = self.grpc.add_secure_port("127.0.0.1:0", self.credentials.grpc)
        self.grpc.start()

    def _clock(self) -> datetime:
        self.on_renewal()
        return datetime.now(UTC)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


def enrolled(issuer: NodeConfig, folder: Path, identity: Identity, *, now: datetime | None = None) -> None:
    authority = pki.load_authority(issuer.paths.pki)
    request = read_request(make_request(folder, identity))
    install(folder, sign_request(authority, request, (authority.certificate,), now=now), now=now)


def second_node(issuer: NodeConfig, tmp_path: Path, extra: str, *, age: timedelta) -> NodeConfig:
    config = configured(tmp_path / "two", "node-2", extra)
    enrolled(issuer, config.paths.pki, Identity("north.example", "node", "node-2"), now=NOW - age)
    return config
