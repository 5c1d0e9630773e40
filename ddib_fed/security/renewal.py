"""Renewal of a certificate through the institution's issuer; the private key is made here and never leaves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from ddib_fed.errors import InputError, MessageInvalid
from ddib_fed.files import write_file
from ddib_fed.protocol.addresses import Proxy
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security.diagnosis import explained
from ddib_fed.security.identity import Identity
from ddib_fed.security.pki import (
    CLOCK_SKEW,
    RECOVERY,
    TlsCredentials,
    certificate_pem,
    check_few,
    check_issued,
    load_identity,
    load_recovery,
    new_key,
    parse_certificates,
    write_identity,
)
from ddib_fed.security.tls import channel
from ddib_fed.v1 import identity_pb2 as pb
from ddib_fed.v1 import identity_pb2_grpc

Clock = Callable[[], datetime]

RENEW_AT: Final = 2 / 3
CALL_TIMEOUT_S: Final = 20.0


def utc_now() -> datetime:
    return datetime.now(UTC)


def is_due(credentials: TlsCredentials, now: datetime, *, jitter: float = 0.0) -> bool:
    """Whether a certificate is to be replaced: two thirds of its lifetime are over, less the share `jitter`.

    So is one that is not valid yet: it was made while a clock was wrong, which has been put right.
    """
    life = credentials.not_after - credentials.not_before
    due = credentials.not_before + life * (RENEW_AT - jitter)
    return now >= due or now < credentials.not_before - CLOCK_SKEW


def renew_through(
    folder: Path,
    *,
    address: str,
    server_name: str,
    hop: str,
    proxy: Proxy | None = None,
    now: datetime | None = None,
) -> TlsCredentials:
    """Get a new certificate for a new key from the institution's issuer, and install both.

    A node whose certificate has expired asks with the one for recovery that came with it. The answer is checked before
    it replaces the working certificate.

    Raises:
        Unauthenticated: The answer is not a certificate for this identity.
        MessageInvalid: The answer cannot be read.
        DdibError: As the issuer says, or PeerUnreachable.
    """
    current, key, moment = load_identity(folder), new_key(), now or utc_now()
    asking = load_recovery(folder) if moment >= current.not_after else None
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    message = pb.RenewRequest(certificate_request=request.public_bytes(serialization.Encoding.DER))
    with channel(
        address,
        server_name=server_name,
        pki_folder=folder,
        hop=hop,
        own=True,
        credentials=asking,
        proxy=proxy,
    ) as opened:
        try:
            answer = identity_pb2_grpc.IdentityServiceStub(opened).Renew(message, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            found = from_rpc_error(error, hop)
            raise explained(
                found, address, server_name=server_name, pki_folder=folder, proxy=proxy
            ) from error
    what, own = "the issuer's answer", current.identity
    try:
        roots = parse_certificates(answer.roots.encode(), what)
        certificate = parse_certificates(answer.certificate.encode(), what)[0]
        recovery = parse_certificates(answer.recovery.encode(), what)[0] if answer.recovery else None
    except InputError as exc:
        raise MessageInvalid(exc.detail) from exc
    check_few(roots, what)
    recovered = Identity(own.institution, "recovery", own.name)
    for each, expected in ((certificate, own), (recovery, recovered)):
        if each is None:
            continue
        if each.public_key() != key.public_key():
            raise MessageInvalid(f"{what} is for another key")
        check_issued(each, roots, now=moment, known=current.roots, expected=expected, what=what)
    write_identity(folder, certificate=certificate, key=key, roots=roots)
    if recovery is not None:
        write_file(folder / RECOVERY, certificate_pem(recovery), private=True)
    return load_identity(folder)
