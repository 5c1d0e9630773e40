"""Issues an institution's certificates, and reads certificates and requests.

This module alone decides the content of a certificate; of a request it uses only the key.
No file and no socket is touched.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ddib_fed.errors import InputError, PolicyDenied, Unauthenticated
from ddib_fed.trust.identity import Identity, Kind, check_institution, check_public_key, read_certificates

ROOT_LIFETIME: Final = timedelta(days=3650)
# A new root needs time: every peer must add it before the old one ends.
ROOT_NOTICE: Final = timedelta(days=90)
LIFETIMES: Final[dict[Kind, timedelta]] = {
    "node": timedelta(hours=24),
    "client": timedelta(days=30),
    "recovery": timedelta(days=30),
}
LEAST_LIFETIME: Final = timedelta(seconds=60)
"""Of a leaf: a node looks every 10 s whether it is due."""
# Clocks of two machines differ; a certificate begins this long ago.
CLOCK_SKEW: Final = timedelta(minutes=5)
MAX_REQUEST_BYTES: Final = 8 << 10


@dataclass(frozen=True, slots=True)
class Authority:
    """An institution's root and its private key, which sign certificates."""

    institution: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def fingerprint(certificate: x509.Certificate) -> str:
    """``SHA256:ab:cd:...``, as `openssl x509 -fingerprint -sha256` prints it."""
    return "SHA256:" + hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest().hex(":")


def same_fingerprint(one: str, other: str) -> bool:
    return _bare(one) == _bare(other)


def _bare(text: str) -> str:
    return (
        text.strip().lower().removeprefix("sha256:").removeprefix("sha256=").replace(":", "").replace(" ", "")
    )


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    """PEM of one certificate after another."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def parse_certificates(pem: bytes, what: str, *, hint: str = "") -> tuple[x509.Certificate, ...]:
    """The certificates in a PEM text, at least one.

    Raises:
        InputError: There is none, or one cannot be parsed.
    """
    try:
        return read_certificates(pem)
    except ValueError as exc:
        raise InputError(f"{what} has no readable certificate in PEM", hint=hint) from exc


_ROOT_NAME: Final = "ddib-fed root "


def new_authority(institution: str, *, now: datetime | None = None) -> Authority:
    """A root in memory; `create_institution` also writes it."""
    key, start = new_key(), now or datetime.now(UTC)
    public = key.public_key()
    ski = x509.SubjectKeyIdentifier.from_public_key(public)
    # The key's digest makes the names of an old and a new root differ, so that a chain is unambiguous.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, institution[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{_ROOT_NAME}{ski.digest.hex()[:16]}"),
        ]
    )
    permitted = [x509.UniformResourceIdentifier(institution), x509.DNSName(institution)]
    certificate = (
        _builder(name, name, public, start - CLOCK_SKEW, start + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None), critical=True
        )
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(ski, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(institution, certificate, key)


def root_warning(institution: str, ends: datetime, now: datetime) -> str:
    """What an operator must know of a root that ends soon; empty while there is time."""
    if ends - now > ROOT_NOTICE:
        return ""
    when = "expired at" if ends <= now else f"ends in {(ends - now).days} days, at"
    return (
        f"the root of {institution} {when} {ends:%Y-%m-%d %H:%M} UTC, and with it every certificate of {institution}; "
        "its operator begins a new one with ddib pki init --roll-over start"
    )


def check_root(authority: Authority, now: datetime) -> None:
    """Return if a root can still issue.

    Raises:
        Unauthenticated: It has expired.
    """
    ends = authority.certificate.not_valid_after_utc
    if ends <= now:
        raise Unauthenticated(
            f"the root of {authority.institution} expired at {ends:%Y-%m-%d %H:%M} UTC: nothing more can be issued",
            hint="ddib pki init --roll-over start && ddib pki init --roll-over switch; then ddib peer export",
        )


def is_root_of(name: x509.Name, institution: str) -> bool:
    """Whether it is a name that `new_authority` gives the roots of an institution."""
    organisations = [each.value for each in name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    names = [str(each.value) for each in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return organisations == [institution[:64]] and len(names) == 1 and names[0].startswith(_ROOT_NAME)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def issue_leaf(
    authority: Authority,
    role: Kind,
    name: str,
    *,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime | None = None,
    lifetime: timedelta | None = None,
) -> x509.Certificate:
    """A certificate for one identity: one URI, one DNS name.

    Args:
        authority: Signs it.
        role: Node or client.
        name: Of the identity in the authority's institution.
        public_key: Of its owner.
        now: When its life begins.
        lifetime: At least `LEAST_LIFETIME`; None for 24 hours of a node and 30 days of a client.

    Raises:
        InputError: `name` is no DNS label.
        Unauthenticated: The root has expired.
    """
    identity, start = Identity(authority.institution, role, name), now or datetime.now(UTC)
    check_root(authority, start)
    end = min(start + (lifetime or LIFETIMES[role]), authority.certificate.not_valid_after_utc)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role == "node":
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    names = [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns_name)]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        _builder(subject, authority.certificate.subject, public_key, start - CLOCK_SKEW, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
        .sign(authority.key, hashes.SHA256())
    )


def root_institution(certificate: x509.Certificate) -> str:
    """The institution that a root made here is constrained to."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound as exc:
        raise InputError("the root has no name constraints: it was not made by ddib pki init") from exc
    uris = [t for t in constraints.permitted_subtrees or [] if isinstance(t, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise InputError("the root is not constrained to one institution")
    return check_institution(uris[0].value)


def check_request(request: x509.CertificateSigningRequest) -> ec.EllipticCurvePublicKey:
    """The public key of a request, when the request proves possession of its private key.

    Raises:
        PolicyDenied: Its signature is wrong, or its key is not one that we sign.
    """
    if not request.is_signature_valid:
        raise PolicyDenied("the signature of the certificate request is not that of its key")
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PolicyDenied("only keys on P-256 or P-384 are signed")
    check_public_key(key, "the request")
    return key
