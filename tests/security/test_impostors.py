"""Nobody speaks for another: who comes (identity), asks for what (call), at which port and in which state of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import UniformResourceIdentifier
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from ddib_fed.protocol.calls import from_rpc_error
from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.pki import Authority, certificate_pem, new_authority, new_key
from tests.conftest import Evidence
from tests.node.institutions import Institution, forge, names
from tests.node.tiny_nodes import make_institution, tiny_engine
from tests.source_node.test_service import Served
from tests.target_node.conftest import Target

pytestmark = pytest.mark.promise("identity")

TIMEOUT_S = 10.0
REFUSED = {"PEER_UNKNOWN", "POLICY_DENIED", "UNAUTHENTICATED"}
CALLS = {
    "Describe": "/ddib_fed.v1.DecodingService/DescribeDomain",
    "Negotiate": "/ddib_fed.v1.DecodingService/NegotiateContract",
    "Decode": "/ddib_fed.v1.DecodingService/Decode",
    "GetAggregate": "/ddib_fed.v1.CalibrationService/GetAggregate",
    "GetUnits": "/ddib_fed.v1.CalibrationService/GetUnits",
    "SignCalibration": "/ddib_fed.v1.CalibrationService/SignCalibration",
    "ListDomains": "/ddib_fed.v1.TranslationService/ListDomains",
    "SubmitJob": "/ddib_fed.v1.TranslationService/SubmitJob",
    "WatchJob": "/ddib_fed.v1.TranslationService/WatchJob",
    "FetchResults": "/ddib_fed.v1.TranslationService/FetchResults",
    "Renew": "/ddib_fed.v1.IdentityService/Renew",
    "Status": "/ddib_fed.v1.AdminService/Status",
    "Drain": "/ddib_fed.v1.AdminService/Drain",
    "Reflection": "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "Unknown": "/ddib_fed.v1.DecodingService/Encode",
    "Health": "/grpc.health.v1.Health/Check",
}
FOR_PEERS = frozenset({"Describe", "Negotiate", "Decode", "GetAggregate", "GetUnits", "SignCalibration"})
FOR_CLIENTS = frozenset({"ListDomains", "SubmitJob", "WatchJob", "FetchResults"})
ANYBODY = frozenset({"Health"})
"""Health answers whoever has a certificate of an admitted institution, or of the own one."""


@dataclass(frozen=True)
class Caller:
    """Somebody with a certificate, or without one."""

    chain: bytes | None
    key: bytes | None

    @classmethod
    def of(cls, pem: bytes, key: ec.EllipticCurvePrivateKey):
        return cls(pem, pki._key_pem(key))

    def channel(self, address: str, server: Institution) -> grpc.Channel:
        """To a node, whose certificate is believed."""
        credentials = grpc.ssl_channel_credentials(certificate_pem(server.root), self.key, self.chain)
        name = server.identity.dns_name
        options = [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
        return grpc.secure_channel(address, credentials, options)


def outcome(channel: grpc.Channel, method: str) -> str:
    """ "answered" if the servicer saw the call, whatever it said; otherwise what kept it away."""
    call = channel.unary_stream(method)(b"", timeout=TIMEOUT_S)
    try:
        for _ in call:
            break
        call.cancel()
    except grpc.RpcError as error:
        return _reason(error)
    return "answered"


def _reason(error: Any) -> str:
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        return "refused"
    if not any(key == "ddib-error-bin" for key, _ in error.trailing_metadata() or ()):
        return "no connection" if error.code() == grpc.StatusCode.UNAVAILABLE else str(error.code())
    found = from_rpc_error(error, "")
    # What node.toml does not allow an admitted peer is said by the servicer.
    return "refused" if found.reason in REFUSED and "policy" not in found.facts else "answered"


def _leaf(institution: Institution, kind: str, name: str, **changes: Any) -> Caller:
    return _forged(institution.authority, names(institution.name, name, kind), **changes)


def _forged(authority: Authority, named: Sequence[Any], **changes: Any) -> Caller:
    key, now = new_key(), datetime.now(UTC)
    times = {"start": now - timedelta(hours=1), "end": now + timedelta(hours=1)}
    return Caller.of(forge(authority, named, subject_key=key.public_key(), **(times | changes)), key)


def impostors(north: Institution, south: Institution, west: Institution) -> dict[str, Callable[[], Caller]]:
    """All who are not the admitted node north/node-1: west is admitted too, and everybody's root is at hand here."""
    now, hour = datetime.now(UTC), timedelta(hours=1)
    uri = UniformResourceIdentifier
    return {
        "no certificate": lambda: Caller(None, None),
        "a stranger's node": lambda: _forged(new_authority("evil.example"), names("evil.example")),
        "a root that calls itself north": lambda: _forged(
            new_authority("north.example"), names("north.example")
        ),
        "north's key signs as another": lambda: _leaf(north, "node", "node-1", signer=new_key()),
        "west signs as north": lambda: _forged(west.authority, names("north.example")),
        "south signs as north": lambda: _forged(south.authority, names("north.example")),
        "north's name issued by west's root with north's name": lambda: _forged(
            Authority("north.example", west.authority.certificate, west.authority.key), names("north.example")
        ),
        "expired": lambda: _leaf(north, "node", "node-1", start=now - 3 * hour, end=now - 2 * hour),
        "not yet valid": lambda: _leaf(north, "node", "node-1", start=now + 2 * hour, end=now + 3 * hour),
        "a root as a leaf": lambda: _leaf(north, "node", "node-1", ca=True),
        "two identities": lambda: _forged(
            north.authority, [*names("north.example"), uri("spiffe://west.example/node/node-1")]
        ),
        "no identity": lambda: _forged(north.authority, names("north.example")[1:]),
        "another host's name": lambda: _forged(
            north.authority, [names("north.example")[0], names("west.example")[1]]
        ),
        "an identity of another form": lambda: _forged(
            north.authority, [uri("spiffe://north.example/admin/node-1"), names("north.example")[1]]
        ),
        "only for servers": lambda: _leaf(north, "node", "node-1", usages=(Usage.SERVER_AUTH,)),
        "another node of north": lambda: _leaf(north, "node", "node-2"),
        "a client of north": lambda: _leaf(north, "client", "mallory", usages=(Usage.CLIENT_AUTH,)),
        "a client of west": lambda: _leaf(west, "client", "mallory", usages=(Usage.CLIENT_AUTH,)),
        "a client of south": lambda: _leaf(south, "client", "sam", usages=(Usage.CLIENT_AUTH,)),
        "south's own node": lambda: _leaf(south, "node", "node-1"),
        "another node of south": lambda: _leaf(south, "node", "node-2"),
    }


HEALTH_ONLY = {
    "target": {"another node of north", "a client of north", "a client of west", "a client of south",
               "south's own node", "another node of south"},
    "source": {"a client of south", "south's own node", "another node of south", "another node of north"},
}  # fmt: skip
"""Whom a port's TLS and certificate check let in, and no further than Health."""
IMPOSTORS = tuple(impostors(None, None, None))  # type: ignore[arg-type]


class Ports:
    """South's target port, which admits north and west; north's source port, whose clients are alice and mallory."""

    def __init__(self, folder: Path) -> None:
        self.north, self.south, self.west = (
            make_institution(folder / name, f"{name}.example") for name in ("north", "south", "west")
        )
        self.south.admit(self.north)
        self.south.admit(self.west)
        self.engine = tiny_engine()
        self.target = Target(folder / "south", self.south, self.engine)
        self.north.admit(self.south, self.target.server.address)
        self.source = Served(folder, self.north, self.engine)

    def ask(self, port: str, caller: Caller) -> dict[str, str]:
        """What came of each call at "target" or "source"."""
        address, server = {
            "target": (self.target.server.address, self.south),
            "source": (self.source.server.address, self.north),
        }[port]
        with caller.channel(address, server) as channel:
            return {name: outcome(channel, method) for name, method in CALLS.items()}

    def node(self, who: Institution) -> Caller:
        return Caller((who.pki / "leaf.pem").read_bytes(), (who.pki / "leaf.key").read_bytes())

    def close(self) -> None:
        self.source.close()
        self.target.close()
        self.engine.close()


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    made = Ports(tmp_path_factory.mktemp("ports"))
    yield made
    made.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Ports]:
    made = Ports(tmp_path)
    yield made
    made.close()


def answered(found: dict[str, str]) -> set[str]:
    return {call for call, what in found.items() if what == "answered"}


@pytest.mark.parametrize("who", IMPOSTORS)
@pytest.mark.parametrize("port", ["target", "source"])
def test_an_impostor_is_refused_every_call(ports: Ports, port: str, who: str, evidence: Evidence) -> None:
    """Twenty-one identities, each with every call of every service at both ports: no servicer sees one."""
    caller = impostors(ports.north, ports.south, ports.west)[who]()
    found = ports.ask(port, caller)
    evidence.cases(len(found))
    allowed = set(ANYBODY) if who in HEALTH_ONLY[port] else set()
    if (port, who) == ("source", "a client of north"):
        allowed = {*ANYBODY, *FOR_CLIENTS}  # she is one, whatever she is called
    assert answered(found) == allowed, found


@pytest.mark.parametrize("who", ["north", "west"])
def test_an_admitted_node_may_decode_and_nothing_else(ports: Ports, who: str) -> None:
    """What is refused above is refused for the identity: these two are answered, and no further than that."""
    assert answered(ports.ask("target", ports.node(getattr(ports, who)))) == {*ANYBODY, *FOR_PEERS}


def test_an_admitted_target_may_not_ask_its_source(ports: Ports) -> None:
    """South, which north admitted as a target, is let in to Health alone at north's port for clients."""
    assert answered(ports.ask("source", ports.node(ports.south))) == ANYBODY


def test_a_client_may_translate_and_nothing_else(ports: Ports) -> None:
    """Alice at her own node, and at the peer's."""
    folder = ports.source.folder / "alice"
    alice = Caller((folder / "leaf.pem").read_bytes(), (folder / "leaf.key").read_bytes())
    assert answered(ports.ask("source", alice)) == {*ANYBODY, *FOR_CLIENTS}
    assert answered(ports.ask("target", alice)) == ANYBODY


def test_a_live_connection_does_not_outlive_its_admission(fresh: Ports) -> None:
    """Removed, admitted again and with another root pinned, each on the same open connection: its next call counts."""
    north = fresh.node(fresh.north)
    method = CALLS["Describe"]
    with north.channel(fresh.target.server.address, fresh.south) as channel:
        assert outcome(channel, method) == "answered"
        fresh.south.store.remove("north.example")
        assert outcome(channel, method) == "refused"
        fresh.south.admit(fresh.north)
        assert outcome(channel, method) == "answered"
        other = Institution("north.example", fresh.source.folder / "other")
        fresh.south.store.add(other.peer(), fingerprints=[pki.fingerprint(other.root)], replace=True)
        assert outcome(channel, method) == "refused"


def test_a_withdrawn_client_is_refused_on_a_live_connection(fresh: Ports) -> None:
    """Her certificate is good for a month; the institution's list counts."""
    folder = fresh.source.folder / "alice"
    alice = Caller((folder / "leaf.pem").read_bytes(), (folder / "leaf.key").read_bytes())
    with alice.channel(fresh.source.server.address, fresh.north) as channel:
        assert outcome(channel, CALLS["ListDomains"]) == "answered"
        fresh.north.store.withdraw(Identity("north.example", "client", "alice"))
        assert {outcome(channel, CALLS[call]) for call in FOR_CLIENTS} == {"refused"}


@pytest.mark.parametrize("who", ["another node of north", "a client of south", "west signs as north"])
def test_a_node_that_is_not_ready_tells_impostors_nothing(tmp_path: Path, who: str) -> None:
    """Without its model, as while it loads: refused for the identity, before the state could be seen."""
    north, south, west = (make_institution(tmp_path / n, f"{n}.example") for n in ("north", "south", "west"))
    south.admit(north)
    south.admit(west)
    target = Target(tmp_path / "south", south, None)
    try:
        caller = impostors(north, south, west)[who]()
        with caller.channel(target.server.address, south) as channel:
            assert outcome(channel, CALLS["Describe"]) in {"refused", "no connection"}
    finally:
        target.close()
