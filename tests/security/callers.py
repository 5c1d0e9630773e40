"""Who may come to a node's port with what certificate: admitted ones, and impostors of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import UniformResourceIdentifier
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import pki
from ddib_fed.security.pki import Authority, certificate_pem, new_authority, new_key
from tests.node.institutions import Institution, forge, names

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
    def of(cls, pem: bytes, key: ec.EllipticCurvePrivateKey) -> Caller:
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
