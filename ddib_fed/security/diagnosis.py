"""Diagnoses why a connection to a node fails: one of the causes of the table, what was found, and the next command.

gRPC reports a missing certificate, a wrong root, an expired certificate and plaintext alike. Every command and every
node asks here when a connection failed, so that all of them name the same cause. Only the HTTP/2 preface is sent.
"""

from __future__ import annotations

import errno
import re
import shlex
import socket
import ssl
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from ddib_fed.errors import DdibError, PeerUnreachable, Unauthenticated
from ddib_fed.protocol.addresses import Proxy, TunnelRefused, split_address
from ddib_fed.security.identity import read_certificates
from ddib_fed.security.pki import CLOCK_SKEW, TlsCredentials, load_identity
from ddib_fed.terminal import escape

TIMEOUT_S: Final = 5.0
_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS_FRAME: Final = 4
# From OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _HOSTNAME_MISMATCH, _PERMITTED_VIOLATION = 9, 10, 62, 47
_MAX_NAME: Final = 80
_CLOCKS: Final = "`timedatectl` shows whether this machine's clock is synchronised"
_COMPARE: Final = "compare address and port with its operator's"
_PROXIES: Final = "compare `proxy` in the configuration with what this network's operators say"
_REQUEST: Final = "ddib pki request --profile client.toml"
_ADMIT: Final = "its operator must admit this institution: ddib peer export here, ddib peer add there"
_ONLY_PROXY: Final = 'where only a proxy leads out: proxy = "http://HOST:PORT" in the configuration'
_NEW_FILE: Final = (
    "Ask its operator for a new peer file (client: profile), and compare the fingerprint by telephone"
)
_TUNNEL: Final = "curl -v --proxytunnel -x http://{proxy} https://{address} shows the proxy's answer"

# Cause: what is said of it, where {detail} is what was found; and what to do.
CAUSES: Final[dict[str, tuple[str, str]]] = {
    "ok": ("{detail}", ""),
    "own-certificate": (
        "our own certificate {detail}",
        f"a node: start it, which renews it; a client: {_REQUEST}, have it signed, then ddib pki install; {_CLOCKS}",
    ),
    "name-not-found": ("there is no host {host}", f"getent hosts {{host}}; {_COMPARE}"),
    "nothing-listens": (
        "nothing listens at {address} ({detail})",
        "is the node running there (behind a relay: is its tunnel up), and the port right? nc -vz {host} {port}",
    ),
    "timeout": (
        "nothing answers at {address} within {timeout} s{detail}",
        f"nc -vz {{host}} {{port}}; let the firewalls of both sides pass {{address}}; {_ONLY_PROXY}",
    ),
    "no-connection": (
        "there is no way to {address} ({detail})",
        "getent hosts {host}; ip route get {host}; nc -vz {host} {port}; ask the network's operators",
    ),
    "closed": (
        (
            "the connection to {address} was closed before an answer over TLS: by a relay whose far end does not "
            "listen (ssh -R, frp, chisel), by a node that starts or stops, or by a firewall"
        ),
        "is the node running, behind a relay at the port to which the tunnel leads? {look}",
    ),
    "proxy-unreachable": (
        "the proxy that the configuration names cannot be reached: {detail}",
        f"nc -vz {{host}} {{port}}; {_PROXIES}",
    ),
    "proxy-refused": (
        "the proxy {proxy} opens no tunnel to {address}: {detail}",
        f"{_PROXIES}; ask them to allow CONNECT to {{address}}, without TLS inspection; {_TUNNEL}",
    ),
    "not-tls": (
        "what answers at {address} does not speak TLS ({detail})",
        f"nc {{host}} {{port}} shows what answers; {_COMPARE}. A proxy is used only where the configuration names it",
    ),
    "tls-version": ("what answers at {address} does not speak TLS 1.3", f"{{look}}: a middlebox? {_COMPARE}"),
    "wrong-root": (
        "the certificate of {name} does not come from the root pinned here ({detail})",
        (
            "{look}: another server has its place, a gateway opens TLS on the way (this network's operators must pass "
            f"{{address}} uninspected; no setting accepts another root), or its root was replaced. {_NEW_FILE}"
        ),
    ),
    "wrong-server": ("another server than {name} answers at {address}: {detail}", f"{{look}}; {_COMPARE}"),
    "not-valid": (
        "the certificate of {name} {detail}",
        f"its operator: is the node running, which renews it? else compare both clocks: {_CLOCKS}",
    ),
    "refused-us": (
        "the node closed the connection when it saw our certificate ({own})",
        f"{_ADMIT} (a client whose root is new: {_REQUEST}); if that was done, compare the clocks: {_CLOCKS}",
    ),
}
PASSING: Final = frozenset(
    {"ok", "nothing-listens", "timeout", "no-connection", "closed", "proxy-unreachable"}
)
"""Causes that a node which is being started, or a network, may have for a while; the others stay."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of a connection attempt: the cause, what is said of it, and what to do."""

    cause: str
    text: str
    remedy: str = ""

    @classmethod
    def of(cls, cause: str, detail: str = "", **words: object) -> Diagnosis:
        text, remedy = CAUSES[cause]
        return cls(cause, text.format(detail=detail, **words), remedy.format(**words))

    @property
    def ok(self) -> bool:
        return self.cause == "ok"

    def __str__(self) -> str:
        return f"{self.text} [{self.cause}]"

    def as_error(self, hop: str) -> DdibError:
        if is_ours := self.cause == "own-certificate":
            hop = "client" if hop.startswith("source ") else ""
        kind = Unauthenticated if is_ours or self.cause == "refused-us" else PeerUnreachable
        error = kind(str(self), hop=hop, hint=self.remedy)
        error.facts |= {"cause": self.cause, "found": str(self)}
        return error


def explained(error: DdibError, look: Callable[[], Diagnosis]) -> DdibError:
    """Return the cause of a failed call in place of gRPC's word for it, if a connection fails now too.

    Else return `error`, which then says that a connection works. A node's own error, which has an incident, stays.
    """
    if not isinstance(error, PeerUnreachable) or error.incident:
        return error
    diagnosis = look()
    if not diagnosis.ok:
        return diagnosis.as_error(error.hop)
    error.detail = f"{error.detail}; a connection works now"
    return error


def diagnose(
    address: str,
    *,
    server_name: str,
    pki_folder: Path,
    roots_pem: bytes | None = None,
    proxy: Proxy | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Diagnosis:
    """Connect as a node or client would, up to the first answer over HTTP/2."""
    try:  # 1. the own certificate
        credentials = load_identity(pki_folder)
        split_address(address)
    except (DdibError, ValueError) as error:
        return Diagnosis("own-certificate", str(error), getattr(error, "hint", "") or "ddib pki show")
    if (problem := own_validity(credentials)) is not None:
        return problem
    way = Way(address, proxy, timeout_s)
    try:  # 2. the connection
        connection = way.connect()
    except (OSError, TunnelRefused) as error:
        return way.problem(error)
    with connection:  # 3. TLS and the greeting of HTTP/2
        return _Attempt(way, server_name, credentials, roots_pem or credentials.roots_pem).over(
            connection, pki_folder
        )


def own_validity(own: TlsCredentials) -> Diagnosis | None:
    now = datetime.now(UTC)
    if own.not_before - CLOCK_SKEW <= now < own.not_after:
        return None
    what = "expired at" if own.not_after <= now else "begins at"
    when = own.not_after if own.not_after <= now else own.not_before
    detail = f"({own.identity}) {what} {_moment(when)}; here it is {_moment(now)}"
    return Diagnosis.of("own-certificate", detail, own=own.identity)


@dataclass(frozen=True, slots=True)
class Way:
    """The way to a node, directly or through the configured proxy."""

    address: str
    proxy: Proxy | None
    timeout_s: float

    @property
    def words(self) -> dict[str, object]:
        host, port = split_address(self.address)
        proxy, timeout = self.proxy.address if self.proxy else "", f"{self.timeout_s:.0f}"
        return {"address": self.address, "host": host, "port": port, "proxy": proxy, "timeout": timeout}

    def connect(self) -> socket.socket:
        if self.proxy is not None:
            return self.proxy.connect(self.address, self.timeout_s)
        return socket.create_connection(split_address(self.address), timeout=self.timeout_s)

    def problem(self, error: OSError | TunnelRefused) -> Diagnosis:
        if isinstance(error, OSError):
            if self.proxy is None:
                return self._unreached(error)
            behind = replace(self, address=self.proxy.address, proxy=None)
            return Diagnosis.of("proxy-unreachable", behind.problem(error).text, **behind.words)
        words = short(error.words)
        answered = f"answered {error.code} ({words})"
        if error.code in {502, 503, 504}:
            why = f"the proxy {self.words['proxy']} {answered}: it cannot reach the address"
            return Diagnosis.of("no-connection", why, **self.words)
        why = f"it {answered}"
        if error.code == 0:
            why = "it is no HTTP proxy, " + (f'and begins with "{words}"' if words else "and says nothing")
        elif error.code == 407 and self.proxy is not None and self.proxy.login:
            why += "; the login in the file of `proxy_login` is not accepted"
        elif error.code == 407:
            why += "; it asks for a login, USER:PASSWORD in a file of mode 600 that `proxy_login` names"
        return Diagnosis.of("proxy-refused", why, **self.words)

    def _unreached(self, error: OSError) -> Diagnosis:
        cause, detail = "no-connection", error.strerror or str(error)
        if isinstance(error, socket.gaierror):
            if error.errno != socket.EAI_AGAIN:
                cause = "name-not-found"
        elif isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
            cause, detail = "timeout", ": a firewall drops connections, or it is off"
        elif error.errno == errno.ECONNREFUSED:
            cause = "nothing-listens"
        return Diagnosis.of(cause, detail, **self.words)


@dataclass(frozen=True, slots=True)
class _Attempt:
    way: Way
    server_name: str
    own: TlsCredentials
    roots_pem: bytes

    def _found(self, cause: str, detail: str = "") -> Diagnosis:
        through = f" -proxy {self.way.proxy.address}" if self.way.proxy else ""
        to = f"{self.way.address}{through} -servername {self.server_name}"
        words = {
            "name": self.server_name,
            "own": self.own.identity,
            "look": f"openssl s_client -connect {to} -alpn h2 </dev/null shows what answers",
        }
        return Diagnosis.of(cause, detail, **words, **self.way.words)

    def over(self, connection: socket.socket, folder: Path) -> Diagnosis:
        try:
            context = _client_context(self.own, self.roots_pem, folder)
        except OSError as error:
            place = shlex.quote(str(folder))
            text = f"{folder} cannot be used: {error.strerror or error}"
            return Diagnosis("own-certificate", text, f"namei -l {place}; df -h {place}")
        answer = b""
        try:
            with _handshake(connection, context, self.server_name, self.way.timeout_s) as tls:
                version = tls.version()
                # In TLS 1.3 the server judges our certificate after our side is done: a gRPC server closes silently.
                with suppress(OSError):
                    tls.sendall(_GREETING)
                    answer = tls.recv(9)
        except ssl.SSLCertVerificationError as error:
            return self._distrust(error)
        except TimeoutError:
            return self._found("timeout", " over TLS, although connections are taken")
        except OSError as error:
            return self._no_handshake(error)
        if not answer:
            return self._found("refused-us")
        if len(answer) < 4 or answer[3] != _SETTINGS_FRAME:
            return self._found("wrong-server", "TLS works, but it is no gRPC server")
        return self._found("ok", f"{version}, both certificates accepted")

    def _distrust(self, error: ssl.SSLCertVerificationError) -> Diagnosis:
        """Diagnose by whose certificate it is why it is not accepted."""
        shown = presented_certificate(self.way, self.server_name)
        names, now = _names(shown), f"here it is {_moment(datetime.now(UTC))}"
        is_for = ", ".join(short(name) for name in names[:3]) or "nobody"
        issuer = "" if shown is None else short(shown.issuer.rfc4514_string())
        if error.verify_code == _EXPIRED:
            when = f" at {_moment(shown.not_valid_after_utc)}" if shown else ""
            return self._found("not-valid", f"has expired{when}; {now}")
        if error.verify_code == _NOT_YET_VALID:
            begins = f": it was made at {_moment(shown.not_valid_before_utc + CLOCK_SKEW)}" if shown else ""
            return self._found("not-valid", f"is not valid yet{begins}; {now}")
        if error.verify_code in {_HOSTNAME_MISMATCH, _PERMITTED_VIOLATION}:
            return self._found("wrong-server", f"its certificate is for {is_for}")
        institution = f"spiffe://{self.server_name.partition('.')[2]}/"
        expected = {self.server_name, split_address(self.way.address)[0]}
        if shown is None or any(name in expected or name.startswith(institution) for name in names):
            return self._found("wrong-root", f"{error.verify_message}; issued by {issuer or 'nobody'}")
        return self._found("wrong-server", f"its certificate is for {is_for}, issued by {issuer}")

    def _no_handshake(self, error: OSError) -> Diagnosis:
        if re.search(r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL", str(error)):
            return self._found("tls-version")
        if isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError):
            return self._found("closed")
        return self._found("not-tls", short(str(error)))


def _handshake(
    connection: socket.socket, context: ssl.SSLContext, server_name: str, timeout_s: float
) -> ssl.SSLSocket:
    connection.settimeout(timeout_s)
    connection.getpeername()  # raises where it was reset: `wrap_socket` would leave the socket open
    return context.wrap_socket(connection, server_hostname=server_name)


def _client_context(own: TlsCredentials, roots_pem: bytes, folder: Path) -> ssl.SSLContext:
    """Return the TLS context of a node or client, as gRPC makes it."""
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
    """Return the certificate that a server shows to an anonymous client without checks; None if it shows none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with way.connect() as connection, _handshake(connection, context, server_name, way.timeout_s) as tls:
            der = tls.getpeercert(binary_form=True)
        if not der:
            return None
        # Whatever cannot be read is found here, and not by whoever shows it.
        return read_certificates(ssl.DER_cert_to_PEM_cert(der).encode())[0]
    except (OSError, TunnelRefused, ValueError):
        return None


def _names(shown: x509.Certificate | None) -> list[str]:
    extensions = () if shown is None else shown.extensions  # which `presented_certificate` has read
    alternatives = [
        extension.value
        for extension in extensions
        if isinstance(extension.value, x509.SubjectAlternativeName)
    ]
    return [str(name.value) for names in alternatives for name in names]


def short(text: str) -> str:
    """Escape and shorten another server's words, so that they neither flood nor steer a terminal."""
    return escape(text[:_MAX_NAME])[:_MAX_NAME]


def _moment(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"
