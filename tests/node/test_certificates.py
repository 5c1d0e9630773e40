"""Certificates that are replaced in time, nodes that come back after they were not, and the service that issues."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ddib_fed.client.profile import Profile, render_client_toml, renew_client
from ddib_fed.errors import ConfigError, MessageInvalid, NotReady, PolicyDenied, QuotaSpent, Unauthenticated
from ddib_fed.node import certificates
from ddib_fed.node.admin import Metrics
from ddib_fed.node.config import NodeConfig, peer_store
from ddib_fed.node.policy import Charge, Policy, Quotas
from ddib_fed.node.role import NodeContext
from ddib_fed.node.server import CallInterceptor
from ddib_fed.protocol.calls import from_rpc_error
from ddib_fed.security import pki, tls
from ddib_fed.security.audit import AuditLog
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import PeerStore, begin_node
from ddib_fed.security.tls import renew_through
from ddib_fed.store import NodeStore
from ddib_fed.v1 import identity_pb2 as pb
from ddib_fed.v1 import identity_pb2_grpc
from tests import audit_rows
from tests.node.tiny_nodes import node_toml

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


def configured(folder: Path, name: str = "node-1", extra: str = "") -> NodeConfig:
    """A node.toml of north in `folder`, with `extra` in its table [identity]."""
    folder.mkdir(exist_ok=True)
    text = node_toml(name=name)
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
        self.store = NodeStore(config.paths.store, shared=True)
        node = NodeContext(config, peers, AuditLog(self.store), Metrics())
        self.quotas = node.quotas
        self.servicer = certificates.IdentityServicer(node, clock=self._clock)
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
    asked = pki.read_request(pki.make_request(folder, identity))
    pki.install(folder, pki.sign_request(authority, *asked, (authority.certificate,), now=now), now=now)


def second_node(issuer: NodeConfig, tmp_path: Path, extra: str, *, age: timedelta) -> NodeConfig:
    config = configured(tmp_path / "two", "node-2", extra)
    enrolled(issuer, config.paths.pki, Identity("north.example", "node", "node-2"), now=NOW - age)
    return config


@pytest.fixture
def issuer(tmp_path: Path) -> NodeConfig:
    """The node that holds the root's key."""
    config = configured(tmp_path / "issuer")
    authority = begin_node(config.paths.state, "north.example", "node-1", now=NOW - 100 * 24 * HOUR)
    pki.issue_to_folder(authority, config.paths.pki, "node", "node-1")
    return config


@pytest.fixture
def server(issuer: NodeConfig):
    made = Server(issuer)
    yield made
    made.grpc.stop(None).wait()
    made.store.close()


@pytest.mark.parametrize(("age", "done"), [(HOUR, None), (17 * HOUR, "renewed"), (500 * HOUR, "renewed")])
def test_an_issuer_recovers_at_start(issuer: NodeConfig, age: timedelta, done: str | None) -> None:
    authority = pki.load_authority(issuer.paths.pki)
    pki.issue_to_folder(authority, issuer.paths.pki, "node", "node-1", now=NOW - age)
    report = certificates.recover_at_start(issuer)
    assert (report or "").startswith(done or "")
    assert pki.load_identity(issuer.paths.pki).not_after > datetime.now(UTC)


def test_a_root_of_another_institution_is_noticed_before_it_issues(tmp_path: Path) -> None:
    """A state folder that was copied: no certificate is made that names another institution than node.toml."""
    config = configured(tmp_path / "copy")
    pki.create_institution(config.paths.pki, "south.example")
    for call in (certificates.recover_at_start, certificates.renew_node):
        with pytest.raises(ConfigError, match=r"south\.example"):
            call(config)
    assert not (config.paths.pki / "leaf.pem").exists()
    south = pki.load_authority(config.paths.pki)
    enrolled_as = pki.new_authority("north.example")
    pki.issue_to_folder(enrolled_as, config.paths.pki, "node", "node-1")
    with pytest.raises(ConfigError, match=south.institution):
        certificates.recover_at_start(config)


def test_a_node_that_cannot_renew_starts_while_its_certificate_is_good(issuer, tmp_path):
    config = second_node(issuer, tmp_path, "", age=17 * HOUR)
    assert "cannot be renewed" in (certificates.recover_at_start(config) or "")
    with pytest.raises(Unauthenticated, match="expired"):
        certificates.recover_at_start(config, now=NOW + 8 * HOUR)


def client(issuer: NodeConfig, server: Server, folder: Path, *, age: timedelta) -> Profile:
    folder.mkdir()
    enrolled(issuer, folder / "pki", Identity("north.example", "client", "alice"), now=NOW - age)
    text = render_client_toml(
        institution="north.example", name="alice", source_address=server.address,
        source_identity="node-1.north.example", pki="pki",
    )  # fmt: skip
    (folder / "client.toml").write_text(text)
    return Profile.load(folder / "client.toml")


def test_a_client_renews_through_its_source_node(issuer: NodeConfig, server: Server, tmp_path: Path) -> None:
    profile = client(issuer, server, tmp_path / "alice", age=timedelta(days=21))
    assert renew_client(profile)
    own = pki.load_identity(profile.pki_folder)
    assert own.identity.kind == "client"
    assert own.not_after > datetime.now(UTC) + timedelta(days=29)
    assert not renew_client(profile)


def renew(folder: Path, server: Server, request: bytes) -> pb.RenewResponse:
    with tls.channel(server.address, server_name="node-1.north.example", pki_folder=folder) as channel:
        stub = identity_pb2_grpc.IdentityServiceStub(channel)
        try:
            return stub.Renew(pb.RenewRequest(certificate_request=request), timeout=60)
        except grpc.RpcError as error:
            raise from_rpc_error(error, "issuer") from error


def der(folder: Path, identity: Identity) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_pem_x509_csr(pki.make_request(folder, identity)).public_bytes(Encoding.DER)


def test_only_the_key_of_a_request_is_used(issuer: NodeConfig, server: Server, tmp_path: Path) -> None:
    profile = client(issuer, server, tmp_path / "alice", age=timedelta(days=1))
    answer = renew(
        profile.pki_folder, server, der(tmp_path / "k", Identity("north.example", "node", "node-1"))
    )
    leaf = x509.load_pem_x509_certificate(answer.certificate.encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert next(iter(names)).value == "spiffe://north.example/client/alice"


class Stranger(identity_pb2_grpc.IdentityServiceServicer):
    """An issuer that is the institution's, and answers with what another root signed, or with nothing."""

    def __init__(self) -> None:
        self.root = pki.new_authority("north.example")
        self.answers = True

    def Renew(self, request, context):
        if not self.answers:
            return pb.RenewResponse(certificate="x", roots="y")
        key = x509.load_der_x509_csr(request.certificate_request).public_key()
        leaf = pki.issue_leaf(self.root, "node", "node-1", public_key=key)
        roots = pki.certificate_pem(self.root.certificate).decode()
        return pb.RenewResponse(certificate=pki.certificate_pem(leaf).decode(), roots=roots)


def test_an_answer_for_another_root_is_not_installed(issuer: NodeConfig) -> None:
    servicer, folder, server = Stranger(), issuer.paths.pki, grpc.server(ThreadPoolExecutor(1))
    identity_pb2_grpc.add_IdentityServiceServicer_to_server(servicer, server)
    credentials = tls.ServerCredentials(folder, PeerStore(issuer.paths.state, "north.example"))
    port = server.add_secure_port("127.0.0.1:0", credentials.grpc)
    server.start()
    before = pki.load_identity(folder)
    way = {"address": f"127.0.0.1:{port}", "server_name": "node-1.north.example", "hop": "issuer"}
    with pytest.raises(Unauthenticated, match="none of the roots"):
        renew_through(folder, **way)
    servicer.answers = False
    with pytest.raises(MessageInvalid):
        renew_through(folder, **way)
    server.stop(None).wait()
    assert pki.load_identity(folder) == before


def test_a_thread_renews_and_clears_its_problem(issuer: NodeConfig) -> None:
    ticks: list[int] = []
    now = [datetime.now(UTC)]
    thread = certificates.RenewalThread(issuer, clock=lambda: now[0], on_tick=lambda: ticks.append(1))
    first = pki.load_identity(issuer.paths.pki)
    thread.look()
    assert pki.load_identity(issuer.paths.pki) == first
    now[0] += 17 * HOUR
    good = (issuer.paths.pki / "ca.key").read_bytes()
    (issuer.paths.pki / "ca.key").write_bytes(b"")
    thread.look()
    assert "ca.key" in (thread.problem or "")
    (issuer.paths.pki / "ca.key").write_bytes(good)
    thread.look()
    assert thread.problem is not None, "it was tried a moment ago"
    now[0] += certificates.LONGEST_PAUSE
    thread.look()
    assert thread.problem is None
    assert pki.load_identity(issuer.paths.pki).not_after > first.not_after
    assert len(ticks) == 4


def test_an_identity_renews_so_often_in_a_day_and_no_more(issuer, server, tmp_path, monkeypatch):
    """Due or not; each is a line of the audit log. Others are not affected, and a restart gives nothing back."""
    monkeypatch.setattr("ddib_fed.node.certificates.RENEWALS_PER_DAY", 2)
    monkeypatch.setattr("ddib_fed.node.certificates.TRIES_PER_LIFE", 0)
    one, other = (tmp_path / name for name in ("alice", "bob"))
    for folder in (one, other):
        enrolled(issuer, folder, Identity("north.example", "client", folder.name))

    def renew(folder: Path) -> None:
        renew_through(folder, address=server.address, server_name="node-1.north.example", hop="issuer x")

    for _ in range(2):
        renew(one)
    with pytest.raises(QuotaSpent) as caught:
        renew(one)
    assert (caught.value.facts["quota"], caught.value.facts["limit"]) == ("renewals_per_day", "2")
    assert "renews" in caught.value.facts
    renew(other)
    lines = [line for line in audit_rows.records(issuer.paths.store) if line.get("by") == "renewal"]
    assert len(lines) == 3
    with closing(NodeStore(issuer.paths.store, shared=True)) as store, pytest.raises(QuotaSpent):
        Quotas(store).charge([Charge("renewals_per_day", "spiffe://north.example/client/alice", 1, 2)])


def test_a_certificate_that_cannot_be_written_down_is_neither_given_nor_counted(
    issuer: NodeConfig, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "alice"
    enrolled(issuer, folder, Identity("north.example", "client", "alice"))
    audit_rows.full_disk(monkeypatch)
    before = pki.load_identity(folder)
    with pytest.raises(NotReady):
        renew_through(folder, address=server.address, server_name="node-1.north.example", hop="issuer x")
    assert pki.load_identity(folder) == before
    (account,) = server.quotas._accounts.values()
    assert account.spent == 0


DAY = timedelta(days=1)
NODE = Identity("north.example", "node", "node-2")


@pytest.fixture
def two(issuer: NodeConfig, server: Server, tmp_path: Path) -> NodeConfig:
    config = second_node(issuer, tmp_path, f'issuer = "node-1@{server.address}"\n', age=17 * HOUR)
    assert "renewed" in (certificates.recover_at_start(config) or "")
    return config


def off_for(issuer: NodeConfig, config: NodeConfig, time: timedelta) -> None:
    """Make both certificates what they are after the node was off for so long since its last renewal."""
    folder, authority = config.paths.pki, pki.load_authority(issuer.paths.pki)
    (key,) = pki.load_keys((folder / "leaf.key").read_bytes(), folder / "leaf.key")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    for kind, name in (("node", "leaf.pem"), ("recovery", "recovery.pem")):
        made = pki.issue_leaf(authority, kind, "node-2", public_key=key.public_key(), now=NOW - time)
        (folder / name).write_bytes(pki.certificate_pem(made))


def test_a_node_that_was_off_for_a_week_comes_back_by_itself(issuer: NodeConfig, two: NodeConfig) -> None:
    """`check` says so, the start does it, with a new key and a new certificate for the next time."""
    off_for(issuer, two, 8 * DAY)
    assert "renewed at the start" in certificates.certificate_status(two)[1]
    before = (two.paths.pki / "recovery.pem").read_bytes()
    assert "renewed" in (certificates.recover_at_start(two) or "")
    assert pki.load_identity(two.paths.pki).not_after > datetime.now(UTC)
    assert (two.paths.pki / "recovery.pem").read_bytes() != before
    recovery = pki.load_recovery(two.paths.pki)
    assert recovery is not None
    assert recovery.not_after - recovery.not_before == 30 * DAY


def test_a_node_that_was_off_for_too_long_is_enrolled_again(issuer: NodeConfig, two: NodeConfig) -> None:
    """The certificate for recovery has expired as well; `check` and the start say the same."""
    off_for(issuer, two, 31 * DAY)
    for call in (certificates.certificate_status, certificates.recover_at_start):
        with pytest.raises(Unauthenticated, match="expired"):
            call(two)


def test_a_withdrawn_node_does_not_come_back(issuer: NodeConfig, two: NodeConfig) -> None:
    off_for(issuer, two, 8 * DAY)
    peer_store(issuer).withdraw(NODE)
    with pytest.raises(Unauthenticated, match="could not be renewed"):
        certificates.recover_at_start(two)


def test_no_file_asks_for_a_certificate_for_recovery(tmp_path: Path) -> None:
    request = pki.make_request(tmp_path / "x", Identity("north.example", "recovery", "node-2"))
    with pytest.raises(PolicyDenied, match="recovery"):
        pki.read_request(request)
