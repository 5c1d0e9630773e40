"""Makes an institution's root, signs certificates with it, and keeps those of a node or client in a folder.

This module alone decides the content of a certificate; of a request it uses only the name and the key. A root's key is
never overwritten, no key leaves its folder, and files that are read are checked to belong together.

    ca.pem, ca.key      the institution's root; the key only on the node that issues
    leaf.pem, leaf.key  the identity of this folder's owner
    request.key         of a request whose certificate has not come back yet
    recovery.pem        of the leaf's key: with it a node asks its issuer for a new leaf after this one has expired
    roots.pem           the trusted roots of its own institution, at most two
"""

import hashlib
import re
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ddib_fed.errors import AlreadyExists, FileMissing, InputError, PolicyDenied, Unauthenticated
from ddib_fed.files import private_folder, read_private, read_small, write_file
from ddib_fed.security.identity import (
    UNREADABLE,
    Identity,
    Kind,
    certified_identity,
    check_institution,
    check_public_key,
    name_constraints,
    read_certificates,
    verify_peer_certificate,
)

ROOT_LIFETIME: Final = timedelta(days=3650)
# A new root needs time: every peer must add it before the old one ends.
ROOT_NOTICE: Final = timedelta(days=90)
LIFETIMES: Final[dict[Kind, timedelta]] = {
    "node": timedelta(hours=24),
    "client": timedelta(days=30),
    "recovery": timedelta(days=30),
}
LEAST_LIFETIME: Final = timedelta(seconds=60)
"""A node looks every 10 s whether its leaf is due."""
# Clocks of two machines differ; a certificate begins this long ago.
CLOCK_SKEW: Final = timedelta(minutes=5)
MAX_REQUEST_BYTES: Final = 8 << 10
MAX_ROOTS: Final = 2
RECOVERY: Final = "recovery.pem"
PENDING_KEY: Final = "request.key"
_KEY_HINT: Final = "put the file back from a copy of the state folder"
_NEW_ROOT: Final = (
    "move state/pki away, then ddib pki init and ddib peer export; each peer: ddib peer add --force"
)


@dataclass(frozen=True, slots=True)
class Authority:
    """An institution's root and its private key, which sign certificates."""

    institution: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def check(self, now: datetime) -> None:
        """Raise Unauthenticated if the root has expired, so that it cannot issue."""
        if self.certificate.not_valid_after_utc <= now:
            why = root_warning(self.institution, self.certificate.not_valid_after_utc, now)
            raise Unauthenticated(f"nothing more can be issued: {why}", hint=_NEW_ROOT)


@dataclass(frozen=True, slots=True)
class TlsCredentials:
    """What TLS needs, read from a folder and checked to belong together; the leaf may have expired, see `problem`."""

    certificate: x509.Certificate
    key_pem: bytes = field(repr=False)
    roots: tuple[x509.Certificate, ...]
    identity: Identity
    not_before: datetime

    @property
    def cert_chain_pem(self) -> bytes:
        return certificate_pem(self.certificate)

    @property
    def roots_pem(self) -> bytes:
        return certificate_pem(*self.roots)

    @property
    def not_after(self) -> datetime:
        return self.certificate.not_valid_after_utc

    @property
    def root_not_after(self) -> datetime:
        """The end of the root that signed the leaf, or of the leaf if no root here did."""
        issuers = [root for root in self.roots if root.subject == self.certificate.issuer]
        return max((root.not_valid_after_utc for root in issuers), default=self.not_after)

    def problem(self, now: datetime) -> str | None:
        """Return why others would refuse it now: expired, not yet valid, of another root; None if they would not."""
        try:
            check_issued(self.certificate, self.roots, now=now)
        except Unauthenticated as error:
            return error.detail
        return None


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def fingerprint(certificate: x509.Certificate) -> str:
    """Return ``SHA256:ab:cd:...``, as `openssl x509 -fingerprint -sha256` prints it."""
    return "SHA256:" + hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest().hex(":")


def same_fingerprint(one: str, other: str) -> bool:
    def bare(text: str) -> str:
        return re.sub("^sha256[:=]|[: ]", "", text.strip().lower())

    return bare(one) == bare(other)


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def parse_certificates(pem: bytes, what: str, *, hint: str = "") -> tuple[x509.Certificate, ...]:
    """Return the certificates in a PEM text, at least one; raise InputError if one cannot be parsed."""
    try:
        return read_certificates(pem)
    except ValueError as exc:
        raise InputError(f"{what} has no readable certificate in PEM", hint=hint) from exc


def load_keys(pem: bytes, path: Path, *, hint: str = _KEY_HINT) -> list[ec.EllipticCurvePrivateKey]:
    """Return each private key in a PEM text, at least one; raise InputError that names `path` and the remedy."""
    end = b"-----END PRIVATE KEY-----"
    try:
        loaded = [
            serialization.load_pem_private_key(block + end, password=None) for block in pem.split(end)[:-1]
        ]
    except (ValueError, TypeError) as exc:
        raise InputError(f"{path} has an unreadable key", hint=hint) from exc
    keys = [key for key in loaded if isinstance(key, ec.EllipticCurvePrivateKey)]
    if not keys or len(keys) < len(loaded):
        raise InputError(f"{path} has not only private keys on an elliptic curve in PEM (PKCS #8)", hint=hint)
    return keys


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def new_authority(institution: str, *, now: datetime | None = None) -> Authority:
    """Make a root in memory: P-256, critical name constraints, ten years; `create_institution` also writes it."""
    key, start = new_key(), now or datetime.now(UTC)
    public = key.public_key()
    ski = x509.SubjectKeyIdentifier.from_public_key(public)
    # The key's digest makes the names of an old and a new root differ, so that a chain is unambiguous.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, institution[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"ddib-fed root {ski.digest.hex()[:16]}"),
        ]
    )
    trees = [x509.UniformResourceIdentifier(institution), x509.DNSName(institution)]
    certificate = (
        _builder(name, name, public, start - CLOCK_SKEW, start + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.NameConstraints(trees, excluded_subtrees=None), critical=True)
        .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(ski, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(institution, certificate, key)


def create_institution(folder: Path, institution: str, *, now: datetime | None = None) -> Authority:
    """Make the root of an institution; raise AlreadyExists if the folder has a root or a key already."""
    check_institution(institution)
    for name in ("ca.key", "ca.pem", "roots.pem"):
        if (folder / name).exists():
            raise AlreadyExists(
                f"{folder / name} exists: this folder has a root already", hint="ddib pki show says which"
            )
    authority = new_authority(institution, now=now)
    private_folder(folder)
    root = certificate_pem(authority.certificate)
    for name, content in (("ca.key", _key_pem(authority.key)), ("ca.pem", root), ("roots.pem", root)):
        write_file(folder / name, content, private=True, overwrite=False)
    return authority


def load_authority(folder: Path) -> Authority:
    """Return the root of a folder that issues; raise FileMissing if it does not, InputError for another key."""
    hint = "certificates are issued on the node with ca.key: run this there"
    key = load_keys(read_private(folder / "ca.key", hint=hint), folder / "ca.key")[0]
    pem = read_small(folder / "ca.pem", hint=hint)
    certificate = parse_certificates(pem, f"{folder / 'ca.pem'}", hint=_KEY_HINT)[0]
    if certificate.public_key() != key.public_key():
        raise InputError(f"{folder / 'ca.key'} is not the key of ca.pem beside it", hint=_KEY_HINT)
    return Authority(_root_institution(certificate), certificate, key)


def has_authority(folder: Path) -> bool:
    return (folder / "ca.key").exists()


def root_warning(institution: str, ends: datetime, now: datetime) -> str:
    """Return a warning about a root that ends soon; empty while there is time."""
    if ends - now > ROOT_NOTICE:
        return ""
    when = "expired at" if ends <= now else f"ends in {(ends - now).days} days, at"
    return (
        f"the root of {institution} {when} {ends:%Y-%m-%d %H:%M} UTC, and with it every certificate of {institution}; "
        f"its operator makes a new one: {_NEW_ROOT}"
    )


def _root_institution(certificate: x509.Certificate) -> str:
    constraints = name_constraints(certificate)
    trees = constraints.permitted_subtrees or [] if constraints else []
    uris = [tree.value for tree in trees if isinstance(tree, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise InputError("the root is not constrained to one institution: it was not made by ddib pki init")
    return check_institution(uris[0])


def issue_leaf(
    authority: Authority,
    role: Kind,
    name: str,
    *,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime | None = None,
    lifetime: timedelta | None = None,
) -> x509.Certificate:
    """Issue a certificate for one identity of the authority's institution: one URI, one DNS name."""
    identity, start = Identity(authority.institution, role, name), now or datetime.now(UTC)
    authority.check(start)
    end = min(start + (lifetime or LIFETIMES[role]), authority.certificate.not_valid_after_utc)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role == "node":
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    issuer = authority.key.public_key()
    return (
        _builder(_subject(identity), authority.certificate.subject, public_key, start - CLOCK_SKEW, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_names(identity), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def _subject(identity: Identity) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)])


def _names(identity: Identity) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns_name)]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)


def _key_usage(*usages: str) -> x509.KeyUsage:
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: name in usages for name in every})


def issue_to_folder(
    authority: Authority,
    folder: Path,
    role: Kind,
    name: str,
    *,
    now: datetime | None = None,
    lifetime: timedelta | None = None,
) -> TlsCredentials:
    """Write a new key and leaf of `issue_leaf` to a folder that may hold older ones; keep its roots."""
    key = new_key()
    public, root = key.public_key(), authority.certificate
    certificate = issue_leaf(authority, role, name, public_key=public, now=now, lifetime=lifetime)
    path = folder / "roots.pem"
    known = parse_certificates(read_small(path), str(path)) if path.exists() else ()
    roots = known if root in known else (*known, root)[-MAX_ROOTS:]
    write_identity(folder, certificate=certificate, key=key, roots=roots)
    return load_identity(folder)


def write_identity(
    folder: Path,
    *,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    roots: tuple[x509.Certificate, ...],
) -> None:
    """Install a leaf, its key and the roots; after a crash at any point `load_identity` still works.

    The key file holds both keys while the certificate is exchanged; `load_identity` takes the one that fits.
    """
    if certificate.public_key() != key.public_key():
        raise InputError(f"the key is not that of the certificate for {folder}")
    private_folder(folder)
    key_file, new = folder / "leaf.key", _key_pem(key)
    old = read_private(key_file) if key_file.exists() else b""
    write_file(folder / "roots.pem", certificate_pem(*roots), private=True)
    write_file(key_file, new + old, private=True)
    write_file(folder / "leaf.pem", certificate_pem(certificate), private=True)
    write_file(key_file, new, private=True)


def load_identity(folder: Path, certificate_file: str = "leaf.pem") -> TlsCredentials:
    """Return the credentials of a folder; raise FileMissing without any, InputError if they do not belong together."""
    anew = _anew(folder)
    for _attempt in range(3):  # the files may be exchanged between two reads
        key_pem = read_private(folder / "leaf.key", hint=anew)
        leaf_pem = read_small(folder / certificate_file, hint=anew)
        roots_pem = read_small(folder / "roots.pem", hint=anew)
        certificate = parse_certificates(leaf_pem, f"{folder / certificate_file}", hint=anew)[0]
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if end - start >= CLOCK_SKEW + LEAST_LIFETIME:
            start += CLOCK_SKEW
        for key in load_keys(key_pem, folder / "leaf.key", hint=anew):
            if key.public_key() == certificate.public_key():
                roots = _read_roots(folder, roots_pem)
                return TlsCredentials(
                    certificate, _key_pem(key), roots, certified_identity(certificate), start
                )
    raise InputError(f"{folder / 'leaf.key'} is not the key of {certificate_file} beside it", hint=anew)


def load_recovery(folder: Path) -> TlsCredentials | None:
    """Return the credentials for recovery after the leaf has expired; None without usable ones."""
    try:
        credentials = load_identity(folder, RECOVERY)
    except (FileMissing, InputError):
        return None
    return credentials if credentials.identity.kind == "recovery" else None


def _anew(folder: Path) -> str:
    return (
        f"ddib pki request --profile {shlex.quote(str(folder.parent / 'client.toml'))}\n"
        "or for a node: ddib pki request; for the first node of an institution: ddib pki init"
    )


def _read_roots(folder: Path, pem: bytes) -> tuple[x509.Certificate, ...]:
    """Parse the roots of a folder's file; the hint of an error puts them back."""
    path, root = folder / "roots.pem", folder / "ca.pem"
    if root.exists():
        hint = shlex.join(["cp", str(root), str(path)])
    else:
        hint = f"{shlex.join(['mv', str(path), f'{path}.damaged'])}\n{_anew(folder)}"
    return parse_certificates(pem, str(path), hint=hint)


def check_issued(
    certificate: x509.Certificate,
    roots: tuple[x509.Certificate, ...],
    *,
    now: datetime,
    known: tuple[x509.Certificate, ...] = (),
    expected: Identity | None = None,
    what: str = "the certificate",
) -> Identity:
    """Return the identity of a certificate; raise Unauthenticated unless it may be put in place with these roots.

    One of the `known` roots must be among them, and the identity be the `expected` one.
    """
    if known and not set(known) & set(roots):
        raise Unauthenticated(
            f"{what} has none of the roots that are trusted here",
            hint="compare the roots with `ddib pki show` at the issuer; to start over, move roots.pem away",
        )
    identity = certified_identity(certificate)
    verify_peer_certificate(certificate_pem(certificate), pins={identity.institution: roots}, now=now)
    if expected is not None and identity != expected:
        raise Unauthenticated(f"{what} is for {identity}, not {expected}")
    return identity


def check_few(roots: tuple[x509.Certificate, ...], what: str) -> None:
    """Raise if more roots come from outside than can be trusted at once."""
    if len(roots) > MAX_ROOTS:
        raise Unauthenticated(f"{what} comes with {len(roots)} roots, and at most {MAX_ROOTS} can be trusted")


# Requests: how a node or client on another machine gets its first certificate, without its key travelling


def make_request(folder: Path, identity: Identity) -> bytes:
    """Return a request in PEM for `identity`; its key is kept in the folder and reused by later requests."""
    private_folder(folder)
    path = folder / PENDING_KEY
    if not path.exists():
        write_file(path, _key_pem(new_key()), private=True, overwrite=False)
    key = load_keys(read_private(path), path)[0]
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(identity))
        .add_extension(_names(identity), critical=False)
        .sign(key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM)


def check_request(request: x509.CertificateSigningRequest) -> ec.EllipticCurvePublicKey:
    """Return the public key of a request; raise PolicyDenied unless it proves possession of its private key."""
    if not request.is_signature_valid:
        raise PolicyDenied("the signature of the certificate request is not that of its key")
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PolicyDenied("only keys on P-256 or P-384 are signed")
    check_public_key(key, "the request")
    return key


def read_request(pem: bytes) -> tuple[Identity, ec.EllipticCurvePublicKey]:
    """Return identity and public key of a request file; raise unless it asks for one node or client."""
    try:
        request = x509.load_pem_x509_csr(pem)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = check_request(request)
    except (*UNREADABLE, x509.ExtensionNotFound) as exc:
        raise InputError("this is not a certificate request", hint="ddib pki request writes one") from exc
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InputError("the request must ask for one identity")
    identity = Identity.parse(uris[0])
    if identity.kind == "recovery":
        raise PolicyDenied("a certificate for recovery comes with a node's renewal alone")
    return identity, key


def sign_request(
    authority: Authority,
    identity: Identity,
    key: ec.EllipticCurvePublicKey,
    roots: tuple[x509.Certificate, ...],
    *,
    now: datetime | None = None,
    lifetime: timedelta | None = None,
) -> bytes:
    """Sign a certificate for a request; return it, followed by the roots for its owner to trust."""
    if identity.institution != authority.institution:
        raise PolicyDenied(
            f"the request is for {identity}, this root is of {authority.institution}",
            hint=f"sign it at the node of {identity.institution} that issues",
        )
    leaf = issue_leaf(authority, identity.kind, identity.name, public_key=key, now=now, lifetime=lifetime)
    return certificate_pem(leaf, *roots)


def install(
    folder: Path, pem: bytes, *, expected: Identity | None = None, now: datetime | None = None
) -> Identity:
    """Put a signed certificate in place, where the key of the request is; it is checked like one from a stranger."""
    leaf, *sent_roots = parse_certificates(pem, "the signed certificate", hint="ddib pki issue writes one")
    path = folder / "roots.pem"
    known = _read_roots(folder, read_small(path)) if path.exists() else ()
    roots = tuple(sent_roots) or known
    if not roots:
        raise InputError(
            "the institution's root is missing",
            hint="append it to the certificate's file: cat leaf.pem ca.pem > signed.pem",
        )
    check_few(tuple(sent_roots), "the certificate")
    identity = check_issued(leaf, roots, now=now or datetime.now(UTC), known=known, expected=expected)
    for path in (folder / PENDING_KEY, folder / "leaf.key"):
        for key in load_keys(read_private(path), path) if path.exists() else ():
            if key.public_key() == leaf.public_key():
                write_identity(folder, certificate=leaf, key=key, roots=roots)
                (folder / PENDING_KEY).unlink(missing_ok=True)
                return identity
    raise FileMissing(
        f"{folder} has no key for the certificate of {identity}",
        hint="ddib pki request here, have that request signed, and install the answer",
    )


class Certificates:
    """The key, the certificate and the roots of one identity, in its folder."""

    def __init__(self, folder: Path, owner: Identity) -> None:
        self.folder, self.owner = folder, owner

    @property
    def withdrawn(self) -> dict[Identity, str]:
        """The identities that are refused here, each with its comment; only a node has some."""
        return {}

    def request(self, path: str | Path | None = None) -> Path:
        """Write a request for the institution's issuer, by default NAME.csr; the key stays in the folder.

        Return the file; raise AlreadyExists if it exists.
        """
        out = Path(path or f"{self.owner.name}.csr")
        write_file(out, make_request(self.folder, self.owner), overwrite=False)
        return out

    def install(self, certificate: str | Path) -> Identity:
        """Install a signed certificate after checking its key, name and root; return its identity."""
        return install(self.folder, read_small(Path(certificate), pipe=True), expected=self.owner)

    def show(self) -> TlsCredentials:
        """Return the installed certificate with its identity and roots; raise FileMissing if there is none."""
        return load_identity(self.folder)

    @property
    def roots(self) -> list[dict[str, str | datetime]]:
        """Fingerprint and end of each trusted root of the institution."""
        return [
            {"fingerprint": fingerprint(root), "valid_until": root.not_valid_after_utc}
            for root in self.show().roots
        ]

    @property
    def issues(self) -> bool:
        """Whether the folder has the root's key."""
        return has_authority(self.folder)
