"""A TLS handshake by the standard library, over a connection whose first bytes are kept.

gRPC reports every failed handshake alike. Here OpenSSL names the reason, and what answered in place of TLS can be read.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509

from ddib_fed.rpc.proxy import TunnelRefused
from ddib_fed.trust.dialling import Way
from ddib_fed.trust.pki import Credentials

_READ: Final = 16 << 10
_KEPT: Final = 64
T = TypeVar("T")


class ClosedEarly(Exception):  # noqa: N818 - a finding
    """The other side closed the connection."""


class Handshake:
    """TLS over one connection, with a time limit for all of it."""

    def __init__(
        self, connection: socket.socket, context: ssl.SSLContext, server_name: str, timeout_s: float
    ) -> None:
        self._connection = connection
        self._until = time.monotonic() + timeout_s
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.first = b""
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)

    def shake(self) -> None:
        self._step(self.tls.do_handshake)

    def send(self, data: bytes) -> None:
        self._step(lambda: self.tls.write(data))

    def read(self, count: int) -> bytes:
        return self._step(lambda: self.tls.read(count))

    def _step(self, step: Callable[[], T]) -> T:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            except ssl.SSLError:
                with suppress(OSError):  # the alert: the other side's log says why
                    self._flush()
                raise
            else:
                self._flush()
                return done

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self._connection.settimeout(self._left())
            self._connection.sendall(data)

    def _receive(self) -> None:
        self._connection.settimeout(self._left())
        data = self._connection.recv(_READ)
        if not data:
            raise ClosedEarly
        self.first = (self.first + data)[:_KEPT]
        self._incoming.write(data)

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def client_context(own: Credentials, roots_pem: bytes, folder: Path) -> ssl.SSLContext:
    """What a node or client demands and shows, as gRPC does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=roots_pem.decode())
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".diagnosis.") as file:  # mode 0600, deleted at once
        file.write(own.cert_chain_pem + own.key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def presented_certificate(way: Way, server_name: str) -> x509.Certificate | None:
    """The certificate that a server shows to a client that checks nothing and shows nothing; None without one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with way.connect() as connection:
            handshake = Handshake(connection, context, server_name, way.timeout_s)
            handshake.shake()
            found = handshake.tls.getpeercert(binary_form=True)
            return _readable(x509.load_der_x509_certificate(found)) if found else None
    except (
        OSError,
        TunnelRefused,
        ClosedEarly,
        ValueError,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        return None


def _readable(shown: x509.Certificate) -> x509.Certificate:
    _ = shown.not_valid_before_utc, shown.not_valid_after_utc, shown.extensions, shown.issuer.rfc4514_string()
    return shown
