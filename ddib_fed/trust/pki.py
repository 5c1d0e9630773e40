"""Creates an institution's certificates and keeps those of a node or client in a folder.

A root's key is never overwritten, no key leaves its folder, and files that are read are checked to belong
together.

    ca.pem, ca.key      the institution's root; the key only on the node that issues
    leaf.pem, leaf.key  the identity of this folder's owner
    recovery.pem        of the same key: with it a node asks its issuer for a new leaf after this one has expired
    roots.pem           the trusted roots of its own institution; two during a roll-over
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ddib_fed.errors import AlreadyExists, FileMissing, InputError
from ddib_fed.files import private_folder, read_private, read_small, write_file
from ddib_fed.trust.certificates import (
    CLOCK_SKEW,
    LEAST_LIFETIME,
    Authority,
    certificate_pem,
    fingerprint,
    issue_leaf,
    new_authority,
    new_key,
    parse_certificates,
    root_institution,
    root_warning,
    same_fingerprint,
)
from ddib_fed.trust.identity import (
    Identity,
    Kind,
    certified_identity,
    check_institution,
    verify_peer_certificate,
)
from ddib_fed.trust.peers.withdrawn import refuse_withdrawn

__all__ = [
    "Authority",
    "Credentials",
    "check_installable",
    "create_institution",
    "fingerprint",
    "has_authority",
    "init_node_identity",
    "issue_client",
    "issue_leaf",
    "issue_to_folder",
    "load_authority",
    "load_identity",
    "load_recovery",
    "same_fingerprint",
    "write_identity",
]

MAX_ROOTS: Final = 2
RECOVERY: Final = "recovery.pem"
_KEY_HINT = "put the file back from a copy of the state folder"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What TLS needs, read from a folder and checked to belong together; it may have expired.

    Attributes:
        cert_chain_pem: The leaf.
        key_pem: Its private key, PKCS #8.
        roots_pem: The institution's own roots.
        identity: The identity in the leaf.
        not_before: When the leaf's life began.
        not_after: When it ends.
    """

    cert_chain_pem: bytes
    key_pem: bytes = field(repr=False)
    roots_pem: bytes
    identity: Identity
    not_before: datetime
    not_after: datetime

    @property
    def root_not_after(self) -> datetime:
        """When the root that signed the leaf ends; that of the leaf where none of the roots did."""
        leaf = parse_certificates(self.cert_chain_pem, "the leaf")[0]
        roots = parse_certificates(self.roots_pem, "the roots")
        return max(
            (root.not_valid_after_utc for root in roots if root.subject == leaf.issuer),
            default=self.not_after,
        )

    def root_warning(self, now: datetime) -> str:
        """What to know of a root that ends soon; empty while there is time."""
        return root_warning(self.identity.institution, self.root_not_after, now)


def create_institution(folder: Path, institution: str, *, now: datetime | None = None) -> Authority:
    """Make the root of an institution: P-256, critical name constraints, valid for ten years.

    Raises:
        InputError: `institution` is no DNS name.
        AlreadyExists: The folder has a root or a key already.
    """
    check_institution(institution)
    for name in ("ca.key", "ca.pem", "roots.pem"):
        if (folder / name).exists():
            raise AlreadyExists(
                f"{folder / name} exists: this folder has a root already", hint="ddib pki show says which"
            )
    authority = new_authority(institution, now=now)
    private_folder(folder)
    write_file(folder / "ca.key", _key_pem(authority.key), private=True, overwrite=False)
    write_file(folder / "ca.pem", certificate_pem(authority.certificate), private=True, overwrite=False)
    write_file(folder / "roots.pem", certificate_pem(authority.certificate), private=True, overwrite=False)
    return authority


def load_authority(folder: Path) -> Authority:
    """The root of a folder that issues.

    Raises:
        FileMissing: The folder does not issue.
        InputError: Root and key cannot be read, or do not belong together.
    """
    hint = "certificates are issued on the node with ca.key: run this there"
    key = load_keys(read_private(folder / "ca.key", hint=hint), folder / "ca.key")[0]
    certificate = parse_certificates(
        read_small(folder / "ca.pem", hint=hint), f"{folder / 'ca.pem'}", hint=_KEY_HINT
    )[0]
    if certificate.public_key() != key.public_key():
        raise InputError(f"{folder / 'ca.key'} is not the key of ca.pem beside it", hint=_KEY_HINT)
    return Authority(root_institution(certificate), certificate, key)


def has_authority(folder: Path) -> bool:
    """Whether the folder holds the institution's issuing key."""
    return (folder / "ca.key").exists()


def write_identity(
    folder: Path,
    *,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    roots: tuple[x509.Certificate, ...],
) -> None:
    """Install a leaf, its key and the roots; after a crash at any point `load_identity` still works.

    The key file holds the new key and the old one while the certificate is exchanged, and `load_identity`
    takes the key that fits.

    Raises:
        InputError: The key is not the certificate's.
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


def load_identity(folder: Path) -> Credentials:
    """The credentials of a folder.

    Raises:
        FileMissing: There are none.
        InputError: They cannot be read, or key and certificate do not belong together.
    """
    return _load(folder, "leaf.pem")


def load_recovery(folder: Path) -> Credentials | None:
    """What a node asks its issuer with after its leaf has expired; None if there is none, or none of its key."""
    try:
        found = _load(folder, RECOVERY)
    except (FileMissing, InputError):
        return None
    return found if found.identity.kind == "recovery" else None


def _load(folder: Path, certificate_file: str) -> Credentials:
    anew = _anew(folder)
    for _attempt in range(3):  # the files may be exchanged between two reads
        key_pem = read_private(folder / "leaf.key", hint=anew)
        leaf_pem = read_small(folder / certificate_file, hint=anew)
        roots_pem = read_small(folder / "roots.pem", hint=anew)
        certificate = parse_certificates(leaf_pem, f"{folder / certificate_file}", hint=anew)[0]
        for key in load_keys(key_pem, folder / "leaf.key", hint=anew):
            if key.public_key() == certificate.public_key():
                return Credentials(
                    cert_chain_pem=certificate_pem(certificate),
                    key_pem=_key_pem(key),
                    roots_pem=certificate_pem(*read_roots(folder, roots_pem)),
                    identity=certified_identity(certificate),
                    not_before=_begins(certificate),
                    not_after=certificate.not_valid_after_utc,
                )
    raise InputError(f"{folder / 'leaf.key'} is not the key of {certificate_file} beside it", hint=anew)


def _anew(folder: Path) -> str:
    return (
        f"ddib pki request --folder {shlex.quote(str(folder))} --identity spiffe://INSTITUTION/client/NAME\n"
        "or for a node: ddib pki request; for the first node of an institution: ddib pki init"
    )


def read_roots(folder: Path, pem: bytes) -> tuple[x509.Certificate, ...]:
    """The roots that a folder trusts, by the content of its file.

    Raises:
        InputError: They cannot be read; the hint is what puts them back.
    """
    path, root = folder / "roots.pem", folder / "ca.pem"
    if root.exists():
        hint = shlex.join(["cp", str(root), str(path)])
    else:
        hint = f"{shlex.join(['mv', str(path), f'{path}.damaged'])}\n{_anew(folder)}"
    return parse_certificates(pem, str(path), hint=hint)


def _begins(certificate: x509.Certificate) -> datetime:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start + CLOCK_SKEW if end - start >= CLOCK_SKEW + LEAST_LIFETIME else start


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key unless there is one.

    Raises:
        AlreadyExists: There is one.
    """
    write_file(path, _key_pem(key), private=True, overwrite=False)


def load_keys(pem: bytes, path: Path, *, hint: str = _KEY_HINT) -> list[ec.EllipticCurvePrivateKey]:
    """Each private key in a PEM text, at least one.

    Args:
        pem: The text.
        path: Where it came from, for the error.
        hint: What puts it right.

    Raises:
        InputError: There is none, or one of an unsupported type.
    """
    end = b"-----END PRIVATE KEY-----"
    keys: list[ec.EllipticCurvePrivateKey] = []
    for block in pem.split(end)[:-1]:
        try:
            key = serialization.load_pem_private_key(block + end, password=None)
        except (ValueError, TypeError) as exc:
            raise InputError(f"{path} has an unreadable key", hint=hint) from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError(f"{path} has a key that is not an elliptic curve key", hint=hint)
        keys.append(key)
    if not keys:
        raise InputError(f"{path} has no private key in PEM (PKCS #8)", hint=hint)
    return keys


def init_node_identity(
    pki_folder: Path, institution: str, name: str, *, now: datetime | None = None
) -> Authority:
    """Create the institution's root and this node's leaf from it, for `ddib init node`.

    Raises:
        InputError: A name cannot be used.
        AlreadyExists: The folder has a root already.
    """
    Identity(institution, "node", name)
    authority = create_institution(pki_folder, institution, now=now)
    issue_to_folder(authority, pki_folder, "node", name, now=now)
    return authority


def issue_to_folder(
    authority: Authority,
    folder: Path,
    role: Kind,
    name: str,
    *,
    now: datetime | None = None,
    lifetime: timedelta | None = None,
) -> Credentials:
    """A new key and leaf, written to a folder that may hold older ones; the roots there are kept.

    `now` and `lifetime` are those of `issue_leaf`.

    Raises:
        InputError: `name` cannot be used.
    """
    key = new_key()
    public = key.public_key()
    certificate = issue_leaf(authority, role, name, public_key=public, now=now, lifetime=lifetime)
    private_folder(folder)
    with changing_roots(folder):
        roots = _roots_with(folder, authority.certificate)
        write_identity(folder, certificate=certificate, key=key, roots=roots)
    return load_identity(folder)


@contextmanager
def changing_roots(folder: Path) -> Iterator[None]:
    """Inside, no other process reads this folder's roots in order to write them: none of two changes is lost."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _roots_with(folder: Path, root: x509.Certificate) -> tuple[x509.Certificate, ...]:
    path = folder / "roots.pem"
    known = parse_certificates(read_small(path), f"{path}") if path.exists() else ()
    return known if root in known else (*known, root)[-MAX_ROOTS:]


def issue_client(
    issuer_folder: Path,
    client_folder: Path,
    name: str,
    *,
    now: datetime | None = None,
    lifetime: timedelta | None = None,
    before: Callable[[Identity], object] = lambda _: None,
) -> Credentials:
    """Create a client's leaf in its own folder, issued on this machine, for `ddib init client`.

    Args:
        issuer_folder: Holds the root's key.
        client_folder: Gets key, leaf and roots.
        name: The client's, one DNS label.
        now: When it becomes valid.
        lifetime: As of `issue_leaf`.
        before: Called with the identity before it gets a certificate; what it raises prevents that.

    Raises:
        FileMissing: `issuer_folder` does not issue.
        AlreadyExists: `client_folder` already has an identity.
        PolicyDenied: The client is withdrawn at the issuer.
    """
    if (client_folder / "leaf.key").exists():
        raise AlreadyExists(f"{client_folder} already has an identity", hint="choose another folder")
    authority = load_authority(issuer_folder)
    identity = Identity(authority.institution, "client", name)
    refuse_withdrawn(issuer_folder, identity)
    before(identity)
    credentials = issue_to_folder(authority, client_folder, "client", name, now=now, lifetime=lifetime)
    roots = read_small(issuer_folder / "roots.pem")
    write_file(client_folder / "roots.pem", roots, private=True)
    return credentials


def check_installable(
    certificate: x509.Certificate, roots: tuple[x509.Certificate, ...], now: datetime
) -> Identity:
    """The identity of a signed certificate that a node would accept from us.

    Raises:
        Unauthenticated: It is not; the text says what is wrong with it.
    """
    identity = certified_identity(certificate)
    return verify_peer_certificate(certificate_pem(certificate), pins={identity.institution: roots}, now=now)
