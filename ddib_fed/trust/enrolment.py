"""Enrolment of another machine by files: request, issue, install.

The private key stays in the folder where it was made; the answer is checked like one from a stranger
before it replaces anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ddib_fed.errors import FileMissing, InputError, PolicyDenied
from ddib_fed.files import private_folder, read_private, read_small
from ddib_fed.trust.certificates import (
    Authority,
    certificate_pem,
    check_request,
    fingerprint,
    issue_leaf,
    new_key,
    parse_certificates,
)
from ddib_fed.trust.identity import UNREADABLE, Identity
from ddib_fed.trust.pki import (
    MAX_ROOTS,
    check_installable,
    load_keys,
    read_roots,
    write_identity,
    write_key,
)

PENDING_KEY: Final = "request.key"


@dataclass(frozen=True, slots=True)
class Request:
    """A certificate request with a proof of possession of its key.

    Attributes:
        identity: The identity that it asks for.
        public_key: Its key.
    """

    identity: Identity
    public_key: ec.EllipticCurvePublicKey


def make_request(folder: Path, identity: Identity) -> bytes:
    """A request in PEM for `identity`; its key is kept in the folder and reused by later requests.

    Raises:
        InputError: The stored key cannot be read.
    """
    private_folder(folder)
    path = folder / PENDING_KEY
    if not path.exists():
        write_key(path, new_key())
    key = load_keys(read_private(path), path)[0]
    names = [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns_name)]
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, identity.name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    request = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(
        key, hashes.SHA256()
    )
    return request.public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes) -> Request:
    """The identity and public key of a request file.

    Raises:
        InputError: It is not a request as `make_request` writes it.
        PolicyDenied: Its signature or its key is not accepted.
        Unauthenticated: Its key is of a kind that is not accepted.
    """
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
        raise PolicyDenied(
            "a certificate for recovery comes with a node's renewal, and is asked for by no file",
            hint="ddib pki request asks for a node or a client",
        )
    return Request(identity, key)


def sign_request(
    authority: Authority,
    request: Request,
    roots: tuple[x509.Certificate, ...],
    *,
    now: datetime | None = None,
    lifetime: timedelta | None = None,
) -> bytes:
    """The certificate for a request, followed by the roots for its owner to trust.

    `now` and `lifetime` are those of `issue_leaf`.

    Raises:
        PolicyDenied: It asks for an identity of another institution.
    """
    identity = request.identity
    if identity.institution != authority.institution:
        raise PolicyDenied(
            f"the request is for {identity}, this root is of {authority.institution}",
            hint=f"sign it at the node of {identity.institution} that issues",
        )
    leaf = issue_leaf(
        authority, identity.kind, identity.name, public_key=request.public_key, now=now, lifetime=lifetime
    )
    return certificate_pem(leaf, *roots)


def install(
    folder: Path, pem: bytes, *, expected: Identity | None = None, now: datetime | None = None
) -> Identity:
    """Put a signed certificate in place.

    Args:
        folder: Where the key of the request is.
        pem: The leaf, then the institution's roots; without roots those in the folder hold.
        expected: The identity that it must name.
        now: The time to check it at.

    Raises:
        InputError: It is not of this form, or for another identity.
        PolicyDenied: None of its roots is already trusted by the folder.
        FileMissing: The folder has no key for it.
        Unauthenticated: It would not be accepted anywhere; the text says why.
    """
    leaf, *given = parse_certificates(pem, "the signed certificate", hint="ddib pki issue writes one")
    roots = _roots(folder, tuple(given))
    identity = check_installable(leaf, roots, now or datetime.now(UTC))
    if expected is not None and identity != expected:
        raise InputError(f"the certificate is for {identity}, here {expected} is needed")
    for name in (PENDING_KEY, "leaf.key"):
        path = folder / name
        keys = load_keys(read_private(path), path) if path.exists() else []
        for key in keys:
            if key.public_key() == leaf.public_key():
                write_identity(folder, certificate=leaf, key=key, roots=roots)
                (folder / PENDING_KEY).unlink(missing_ok=True)
                return identity
    raise FileMissing(
        f"{folder} has no key for the certificate of {identity}",
        hint="ddib pki request here, have that request signed, and install the answer",
    )


def _roots(folder: Path, given: tuple[x509.Certificate, ...]) -> tuple[x509.Certificate, ...]:
    path = folder / "roots.pem"
    known = read_roots(folder, read_small(path)) if path.exists() else ()
    if not given and not known:
        raise InputError(
            "the institution's root is missing",
            hint="append it to the certificate's file: cat leaf.pem ca.pem > signed.pem",
        )
    if len(given) > MAX_ROOTS:
        raise InputError(f"at most {MAX_ROOTS} roots can be trusted at once")
    if given and known and not set(given) & set(known):
        raise PolicyDenied(
            f"the root {fingerprint(given[0])} is not among those trusted in {folder}",
            hint=f"compare it with `ddib pki show` at the issuer; to start over, move {path} away",
        )
    return given or known
