"""Verifies a peer's certificate and returns its `Identity`.

Only an institution's own pinned roots vouch for it. gRPC checks a chain
against all roots in one bundle and would let one institution's CA mint another's names, so each call is
checked here.

    spiffe://north.example/node/node-1      a node        DNS name node-1.north.example
    spiffe://north.example/client/alice     a client      DNS name alice.north.example
    spiffe://north.example/recovery/node-1  that node, at its institution's issuer alone, after its leaf has expired
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from ddib_fed.errors import InputError, PeerUnknown, Unauthenticated
from ddib_fed.names import LABEL, MAX_DNS_NAME, is_institution, is_label

Kind = Literal["node", "client", "recovery"]
Pins = Mapping[str, tuple[x509.Certificate, ...]]

MAX_CERTIFICATE_BYTES = 16 << 10
MIN_RSA_BITS = 2048
_URI = re.compile(
    rf"spiffe://(?P<institution>(?:{LABEL}\.)+{LABEL})/(?P<kind>node|client|recovery)/(?P<name>{LABEL})"
)
# What cryptography raises for unreadable input, at loading or when a part is read; not all are ValueErrors.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_KNOWN_CRITICAL = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)


def check_institution(institution: str) -> str:
    """Return the name; raise InputError unless it is a DNS name of two or more labels in lower case, no address."""
    if not is_institution(institution):
        raise InputError(
            f"{institution!r} is not a DNS name in lower case such as north.example",
            hint="two or more labels of a-z 0-9 -, the last of two or more characters and not a number",
        )
    return institution


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """The identity of a node or client; InputError if a part is malformed, or the whole DNS name is too long."""

    institution: str
    kind: Kind
    name: str

    def __post_init__(self) -> None:
        check_institution(self.institution)
        if self.kind not in get_args(Kind):
            raise InputError(f"{self.kind!r} is neither node nor client")
        if not is_label(self.name):
            raise InputError(
                f"{self.name!r} is not a DNS label in lower case such as node-1",
                hint="1 to 63 of a-z 0-9 -, not starting or ending with a dash",
            )
        if len(self.dns_name) > MAX_DNS_NAME:
            raise InputError(f"{self.dns_name} is longer than {MAX_DNS_NAME} characters")

    @property
    def uri(self) -> str:
        return f"spiffe://{self.institution}/{self.kind}/{self.name}"

    @property
    def dns_name(self) -> str:
        return f"{self.name}.{self.institution}"

    def __str__(self) -> str:
        return self.uri

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """Read a URI strictly: no other scheme, case, port, escape, query or path."""
        match = _URI.fullmatch(uri) if len(uri) <= MAX_DNS_NAME + len("spiffe:///recovery/") else None
        if match is None:
            raise InputError("an identity has the form spiffe://INSTITUTION/node/NAME or /client/NAME")
        return cls(match["institution"], cast("Kind", match["kind"]), match["name"])


def verify_peer_certificate(pem: bytes, *, pins: Pins, now: datetime) -> Identity:
    """Return the identity that a certificate proves; raise Unauthenticated, or PeerUnknown if no root is pinned."""
    # 1. exactly one certificate of a reasonable size
    if len(pem) > MAX_CERTIFICATE_BYTES:
        raise Unauthenticated(f"the certificate is larger than {MAX_CERTIFICATE_BYTES} bytes")
    try:
        certificates = read_certificates(pem)
    except ValueError as exc:
        raise Unauthenticated("the certificate cannot be parsed") from exc
    if len(certificates) != 1:
        raise Unauthenticated(f"one certificate is expected, {len(certificates)} came")
    certificate = certificates[0]
    # 2. one URI of our form, the DNS name that belongs to it, and nothing else
    identity = certified_identity(certificate)
    # 3. its institution is known here
    roots = pins.get(identity.institution)
    if not roots:
        raise PeerUnknown(
            f"{identity.institution} has not been admitted here",
            hint="ddib peer add FILE --fingerprint FINGERPRINT",
        )
    # 4. one of the institution's own roots is named as issuer, and signed it
    named = [root for root in roots if root.subject == certificate.issuer]
    if not named:
        raise Unauthenticated(
            f"the certificate of {identity} was not issued by the pinned root of {identity.institution}"
        )
    root = next((part for part in named if _signed_by(certificate, part)), None)
    if root is None:
        raise Unauthenticated(f"the signature on the certificate of {identity} is not the pinned root's")
    # 5. both are valid now
    for part, what in (
        (certificate, f"certificate of {identity}"),
        (root, f"root of {identity.institution}"),
    ):
        begins, ends = part.not_valid_before_utc, part.not_valid_after_utc
        if now < begins:
            raise Unauthenticated(f"the {what} is not valid before {begins:%Y-%m-%d %H:%M} UTC")
        if now >= ends:
            raise Unauthenticated(f"the {what} expired at {ends:%Y-%m-%d %H:%M} UTC")
    # 6. the root may sign certificates, of this name
    check_root(root, identity.institution)
    _check_name_constraints(root, identity)
    # 7. it is a leaf for its role
    _check_usage(certificate, identity)
    return identity


def read_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates in a PEM text, each read to its end; raise ValueError if that fails or there is none."""
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem))
        for certificate in certificates:
            certificate.public_key()
            _ = (
                certificate.subject,
                certificate.issuer,
                certificate.extensions,
                certificate.not_valid_before_utc,
                certificate.not_valid_after_utc,
            )
    except UNREADABLE as exc:
        raise ValueError(str(exc)) from exc
    return certificates


def certified_identity(certificate: x509.Certificate) -> Identity:
    """Return the identity that a certificate names, without proof; raise Unauthenticated for none or two."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as exc:
        raise Unauthenticated("the certificate has no readable subject alternative names") from exc
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise Unauthenticated(f"one URI is expected in the certificate, it has {len(uris)}")
    try:
        identity = Identity.parse(uris[0])
    except InputError as exc:
        raise Unauthenticated(f"the certificate's URI is not an identity: {exc.detail}") from exc
    expected = {x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns_name)}
    if len(list(names)) != len(expected) or set(names) != expected:
        raise Unauthenticated(
            f"the certificate of {identity} must have the DNS name {identity.dns_name} and no other"
        )
    return identity


def _check_usage(certificate: x509.Certificate, identity: Identity) -> None:
    """Raise unless a leaf has the usages of its role, no unknown critical extension, and an acceptable key."""
    try:
        extensions = certificate.extensions
        usages = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        constraints = [e.value for e in extensions if isinstance(e.value, x509.BasicConstraints)]
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as exc:
        raise Unauthenticated(f"the certificate of {identity} does not state its purpose") from exc
    if any(value.ca for value in constraints):
        raise Unauthenticated(f"the certificate of {identity} is a CA's")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        raise Unauthenticated(f"the certificate of {identity} is not for clientAuth")
    if (ExtendedKeyUsageOID.SERVER_AUTH in usages) != (identity.kind == "node"):
        raise Unauthenticated(f"the certificate of {identity}: serverAuth is for nodes, and only for them")
    if unknown := [e.oid.dotted_string for e in extensions if e.critical and e.oid not in _KNOWN_CRITICAL]:
        raise Unauthenticated(
            f"the certificate of {identity} has unknown critical extensions: {', '.join(unknown)}"
        )
    check_public_key(certificate.public_key(), str(identity))


def _signed_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def check_root(root: x509.Certificate, institution: str) -> None:
    """Raise unless a root is a CA that may sign certificates, and its name constraints permit the institution."""
    try:
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        constraints = None
    if constraints is None or not constraints.ca:
        raise Unauthenticated(f"the root of {institution} is no CA certificate")
    _check_name_constraints(root, Identity(institution, "node", "x"))


def name_constraints(root: x509.Certificate) -> x509.NameConstraints | None:
    """Return the name constraints of a root; None if it has none."""
    try:
        return root.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return None


def _check_name_constraints(root: x509.Certificate, identity: Identity) -> None:
    """Raise Unauthenticated unless RFC 5280, section 4.2.1.10, permits both names of a leaf."""
    constraints = name_constraints(root)
    if constraints is None:
        return
    for kind, name in (
        (x509.UniformResourceIdentifier, identity.institution),
        (x509.DNSName, identity.dns_name),
    ):
        permitted, excluded = (
            [tree for tree in trees or () if isinstance(tree, kind)]
            for trees in (constraints.permitted_subtrees, constraints.excluded_subtrees)
        )
        inside = not permitted or any(_within(name, tree) for tree in permitted)
        if not inside or any(_within(name, tree) for tree in excluded):
            raise Unauthenticated(f"the name constraints of the root do not permit {name}")


def _within(name: str, tree: x509.GeneralName) -> bool:
    base = str(tree.value).lower()
    if isinstance(tree, x509.UniformResourceIdentifier):
        return name.endswith(base) if base.startswith(".") else name == base
    return name == base or name.endswith("." + base.removeprefix("."))


def check_public_key(key: object, what: str) -> None:
    """Raise Unauthenticated unless a key is P-256 or P-384, or RSA of at least `MIN_RSA_BITS`."""
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return
    raise Unauthenticated(f"the key of {what} is neither P-256, P-384 nor RSA of {MIN_RSA_BITS} bits or more")
