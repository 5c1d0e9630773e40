"""Institutions, honest ones and forgers, for the tests of trust."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Peer, PeerStore, begin_node
from ddib_fed.security.pki import certificate_pem, new_key

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dataclass
class Institution:
    """One node's folder with a root in it, as `ddib init node` leaves it."""

    name: str
    folder: Path
    authority: pki.Authority = field(init=False)

    def __post_init__(self) -> None:
        self.authority = begin_node(self.folder, self.name, "node-1")

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def root(self) -> x509.Certificate:
        return self.authority.certificate

    @property
    def identity(self) -> Identity:
        return Identity(self.name, "node", "node-1")

    @property
    def store(self) -> PeerStore:
        return PeerStore(self.folder, self.name)

    def peer(self, address: str = "127.0.0.1:7443") -> Peer:
        return Peer(self.name, self.identity, address, (self.root,))

    def admit(self, other: "Institution", address: str = "127.0.0.1:7443") -> None:
        self.store.add(other.peer(address), fingerprints=[pki.fingerprint(other.root)])


def changed(peer: Peer, **fields: object) -> bytes:
    """The peer file with other fields."""
    return json.dumps(peer.fields() | fields).encode()


def forge(
    authority: pki.Authority,
    names: Sequence[x509.GeneralName],
    *,
    usages: Sequence[x509.ObjectIdentifier] = (Usage.CLIENT_AUTH, Usage.SERVER_AUTH),
    start: datetime = NOW - HOUR,
    end: datetime = NOW + HOUR,
    ca: bool = False,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    signer: ec.EllipticCurvePrivateKey | None = None,
    subject_key: object | None = None,
) -> bytes:
    """A leaf with any names and dates, in PEM."""
    public = subject_key or new_key().public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf")]))
        .issuer_name(authority.certificate.subject)
        .public_key(public)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    for value, critical in extra:
        builder = builder.add_extension(value, critical=critical)
    return certificate_pem(builder.sign(signer or authority.key, hashes.SHA256()))


def names(institution: str, name: str = "node-1", kind: str = "node") -> list[x509.GeneralName]:
    uri = x509.UniformResourceIdentifier(f"spiffe://{institution}/{kind}/{name}")
    return [uri, x509.DNSName(f"{name}.{institution}")]


def issue_client(issuer: Path, folder: Path, name: str) -> pki.TlsCredentials:
    """A client of the institution whose root is in a folder, with its key in another."""
    request = pki.make_request(folder, Identity(pki.load_authority(issuer).institution, "client", name))
    identity, key = pki.read_request(request)
    roots = pki.parse_certificates((issuer / "roots.pem").read_bytes(), "roots.pem")
    pki.install(folder, pki.sign_request(pki.load_authority(issuer), identity, key, roots))
    return pki.load_identity(folder)
