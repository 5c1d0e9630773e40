"""Renewal of a certificate through the institution's issuer; the private key is made here and never leaves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ddib_fed.errors import InputError, MessageInvalid, Unauthenticated
from ddib_fed.rpc.error_details import from_rpc_error
from ddib_fed.trust.certificates import new_key, parse_certificates
from ddib_fed.trust.diagnosis import explained
from ddib_fed.trust.pki import MAX_ROOTS, Credentials, check_installable, load_identity, write_identity
from ddib_fed.trust.tls import channel
from ddib_fed.v1 import identity_pb2 as pb
from ddib_fed.v1 import identity_pb2_grpc

Clock = Callable[[], datetime]

RENEW_AT: Final = 2 / 3
CALL_TIMEOUT_S: Final = 20.0


def utc_now() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


def is_due(credentials: Credentials, now: datetime, *, jitter: float = 0.0) -> bool:
    """Whether two thirds of the certificate's lifetime are over; `jitter` is a share of it to be earlier by."""
    life = credentials.not_after - credentials.not_before
    return now >= credentials.not_before + life * (RENEW_AT - jitter)


def renew_through(
    folder: Path, *, address: str, server_name: str, hop: str, now: datetime | None = None
) -> Credentials:
    """Get a new certificate for a new key from the institution's issuer, and install both.

    Args:
        folder: Holds the still valid certificate.
        address: ``host:port`` of the issuer.
        server_name: DNS name that its certificate must carry.
        hop: What to call it in an error.
        now: The time to check the answer at.

    Raises:
        Unauthenticated: The answer is not a certificate for this identity.
        MessageInvalid: The answer cannot be read.
        DdibError: As the issuer says, or PeerUnreachable.
    """
    current, key = load_identity(folder), new_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    message = pb.RenewRequest(certificate_request=request.public_bytes(serialization.Encoding.DER))
    with channel(address, server_name=server_name, pki_folder=folder, hop=hop, own=True) as opened:
        try:
            answer = identity_pb2_grpc.IdentityServiceStub(opened).Renew(message, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            found = from_rpc_error(error, hop)
            raise explained(found, address, server_name=server_name, pki_folder=folder) from error
    return _install(folder, current, key, answer, now or utc_now())


def _install(
    folder: Path,
    current: Credentials,
    key: ec.EllipticCurvePrivateKey,
    answer: pb.RenewResponse,
    now: datetime,
) -> Credentials:
    """Check the issuer's answer before it replaces the working certificate."""
    try:
        certificate = parse_certificates(answer.certificate.encode(), "the issuer's answer")[0]
        roots = parse_certificates(answer.roots.encode(), "the issuer's answer")
    except InputError as exc:
        raise MessageInvalid(exc.detail) from exc
    if len(roots) > MAX_ROOTS or certificate.public_key() != key.public_key():
        raise MessageInvalid("the issuer's answer has too many roots, or is for another key")
    check_successor(current, certificate, roots, now, "the issuer's answer")
    write_identity(folder, certificate=certificate, key=key, roots=roots)
    return load_identity(folder)


def check_successor(
    current: Credentials,
    certificate: x509.Certificate,
    roots: tuple[x509.Certificate, ...],
    now: datetime,
    what: str,
) -> None:
    """Check that a certificate may replace the current one: same identity, from a trusted root.

    Raises:
        Unauthenticated: It may not.
    """
    known = parse_certificates(current.roots_pem, "roots.pem")
    if not set(known) & set(roots):
        raise Unauthenticated(f"{what} has none of the roots that are trusted here")
    identity = check_installable(certificate, roots, now)
    if identity != current.identity:
        raise Unauthenticated(f"{what} is for {identity}, not {current.identity}")
