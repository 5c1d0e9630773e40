"""Diagnoses why a connection to a node fails, with a TLS handshake by the standard library.

gRPC reports a missing certificate, a wrong root, an expired certificate and plaintext alike; here
each has its own message. Only the HTTP/2 preface is sent.
"""

from __future__ import annotations

import re
import socket
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from ddib_fed.errors import DdibError, InputError
from ddib_fed.rpc.addresses import split_address
from ddib_fed.trust.pki import Credentials, load_identity

TIMEOUT_S: Final = 5.0
_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS_FRAME: Final = 4
# From OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _HOSTNAME_MISMATCH, _PERMITTED_VIOLATION = 9, 10, 62, 47

Cause = Literal[
    "ok",
    "own-certificate",
    "name-not-found",
    "no-connection",
    "not-tls",
    "tls-version",
    "wrong-root",
    "wrong-name",
    "expired",
    "refused-us",
    "not-grpc",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a connection attempt.

    Attributes:
        cause: ``ok``, or the failure.
        text: The same for a person.
        remedy: What to do about it; empty if nothing failed.
    """

    cause: Cause
    text: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether both sides accepted each other."""
        return self.cause == "ok"


def diagnose(address: str, *, server_name: str, pki_folder: Path, roots_pem: bytes | None = None) -> Finding:
    """Connect as a node or client would, up to the first answer over HTTP/2.

    Args:
        address: ``host:port``.
        server_name: DNS name that the server's certificate must carry.
        pki_folder: With the own certificate.
        roots_pem: Accepted roots of the server's certificate; by default those of the own institution.
    """
    try:
        own = load_identity(pki_folder)
        host, port = split_address(address)
    except (DdibError, ValueError) as error:
        return Finding("own-certificate", str(error), getattr(error, "hint", "") or "ddib pki show")
    if own.not_after <= datetime.now(UTC):
        return Finding(
            "own-certificate",
            f"our own certificate expired at {own.not_after:%Y-%m-%d %H:%M} UTC",
            "start the node, which renews it; or ddib pki request, and install the answer",
        )
    try:
        connection = socket.create_connection((host, port), timeout=TIMEOUT_S)
    except socket.gaierror:
        return Finding("name-not-found", f"there is no host {host}", "check the address: ddib peer list")
    except OSError as error:
        text = f"nothing answers at {address}: {error.strerror or error}"
        return Finding(
            "no-connection", text, "is the node running there, and does a firewall let us through?"
        )
    with connection:
        return _handshake(connection, server_name, own, roots_pem or own.roots_pem, pki_folder)


def _handshake(
    connection: socket.socket, server_name: str, own: Credentials, roots_pem: bytes, folder: Path
) -> Finding:
    try:
        context = _context(own, roots_pem, folder)
        with context.wrap_socket(connection, server_hostname=server_name) as channel:
            return _greet(channel, own)
    except ssl.SSLCertVerificationError as error:
        return _distrust(error, server_name)
    except InputError as error:
        return Finding("own-certificate", error.detail, error.hint)
    except (ssl.SSLError, OSError) as error:
        return _no_handshake(str(error))


def _context(own: Credentials, roots_pem: bytes, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=roots_pem.decode())
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".diagnosis.") as file:  # mode 0600, deleted at once
        file.write(own.cert_chain_pem + own.key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _greet(channel: ssl.SSLSocket, own: Credentials) -> Finding:
    """In TLS 1.3 the server judges our certificate after our side is done: its first bytes tell."""
    try:
        channel.sendall(_GREETING)
        answer = channel.recv(9)
    except (ssl.SSLError, OSError):
        answer = b""
    if not answer:
        return Finding(
            "refused-us",
            f"the node closed the connection when it saw our certificate ({own.identity})",
            f"its operator must admit {own.identity.institution}: ddib peer export here, ddib peer add there; "
            "if that was done, compare the clocks",
        )
    if len(answer) < 4 or answer[3] != _SETTINGS_FRAME:
        return Finding("not-grpc", "TLS works, but the server is not a gRPC server", "check the port")
    return Finding("ok", f"{channel.version()}, both certificates accepted")


def _distrust(error: ssl.SSLCertVerificationError, server_name: str) -> Finding:
    code = error.verify_code
    if code in {_EXPIRED, _NOT_YET_VALID}:
        what = "has expired" if code == _EXPIRED else "is not valid yet"
        return Finding(
            "expired", f"the node's certificate {what}", "its operator must renew it; or a clock is wrong"
        )
    if code in {_HOSTNAME_MISMATCH, _PERMITTED_VIOLATION}:
        return Finding(
            "wrong-name",
            f"the node's certificate is not for {server_name}",
            "another node answers at this address: check it, or ask for a new peer file",
        )
    return Finding(
        "wrong-root",
        f"the node's certificate does not come from the root pinned here: {error.verify_message}",
        "another server answers, or the root was replaced: ask for a new peer file and compare its fingerprint",
    )


def _no_handshake(text: str) -> Finding:
    if re.search(r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|UNKNOWN_PROTOCOL|PACKET_LENGTH", text):
        return Finding("not-tls", "the server does not speak TLS", "check the port")
    if re.search(r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL", text):
        return Finding("tls-version", "the server does not speak TLS 1.3", "check the port, or a middlebox")
    return Finding(
        "not-tls", f"the TLS handshake broke off: {text}", "check the port, or a middlebox on the way"
    )
