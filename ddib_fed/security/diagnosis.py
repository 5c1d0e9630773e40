"""Diagnoses why a connection to a node fails: each cause has a name, a text and what to do about it.

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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, TypeVar

from cryptography import x509

from ddib_fed.errors import DdibError, PeerUnreachable, Unauthenticated
from ddib_fed.protocol.addresses import Proxy, TunnelRefused, split_address
from ddib_fed.security.identity import UNREADABLE
from ddib_fed.security.pki import CLOCK_SKEW, Credentials, is_root_of, load_identity, parse_certificates
from ddib_fed.terminal import escape

T = TypeVar("T")

TIMEOUT_S: Final = 5.0
CLOCK_HINT: Final = "`timedatectl` shows whether this machine's clock is synchronised"
_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS_FRAME: Final = 4
_SECOND_LOOK_S: Final = 2.0
_YOUNG: Final = timedelta(hours=2)
"""A certificate that began, or ends, within this time may be refused because of a clock."""
# From OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _HOSTNAME_MISMATCH, _PERMITTED_VIOLATION = 9, 10, 62, 47
_MAX_NAME: Final = 80

Cause = Literal[
    "ok",
    "own-certificate",  # cannot be used, has expired, or begins later
    "name-not-found",
    "nothing-listens",
    "timeout",  # no connection, or no answer over TLS, in time
    "no-connection",  # anything else, also of the name server, the route, or behind the proxy
    "closed",
    "proxy",  # only the proxy that the environment names leads there
    "proxy-unreachable",  # the configured proxy
    "proxy-refused",  # the configured proxy opens no tunnel, wants a login, or is none
    "not-tls",
    "tls-version",
    "tls-inspection",
    "wrong-root",
    "wrong-server",  # another node, another institution's, or no gRPC
    "not-valid",  # the node's certificate has expired or begins later
    "refused-us",
]
_PASSING: Final = frozenset(
    {"ok", "nothing-listens", "timeout", "no-connection", "closed", "proxy-unreachable"}
)
"""Causes that a node which is being started, or a network, may have for a while; the others stay."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a connection attempt."""

    cause: Cause
    text: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return self.cause == "ok"

    def __str__(self) -> str:
        return f"{self.text} [{self.cause}]"

    def as_error(self, hop: str) -> DdibError:
        """The error of a call that failed for this cause."""
        if own := self.cause == "own-certificate":
            hop = "client" if hop.startswith("source ") else ""
        kind = Unauthenticated if own or self.cause == "refused-us" else PeerUnreachable
        error = kind(str(self), hop=hop, hint=self.remedy)
        error.facts |= {"cause": self.cause, "found": str(self)}
        return error


def may_pass(cause: str) -> bool:
    """Whether waiting may end a cause."""
    return cause in _PASSING


def explained(
    error: DdibError,
    address: str,
    *,
    server_name: str,
    pki_folder: Path,
    roots_pem: bytes | None = None,
    proxy: Proxy | None = None,
    timeout_s: float = TIMEOUT_S,
) -> DdibError:
    """The cause of a failed call in place of gRPC's word for it, where a connection fails now.

    Else `error` itself, which then says that a connection works. A node that answered with an error (which has an
    incident) needs no diagnosis. Arguments as of `diagnose`.
    """
    if not isinstance(error, PeerUnreachable) or error.incident:
        return error
    finding = diagnose(
        address,
        server_name=server_name,
        pki_folder=pki_folder,
        roots_pem=roots_pem,
        proxy=proxy,
        timeout_s=timeout_s,
    )
    if not finding.ok:
        return finding.as_error(error.hop)
    error.detail = f"{error.detail}; a connection to {address} works now"
    error.args = (error.detail,)
    return error


def diagnose(
    address: str,
    *,
    server_name: str,
    pki_folder: Path,
    roots_pem: bytes | None = None,
    proxy: Proxy | None = None,
    timeout_s: float = TIMEOUT_S,
    asks_environment: bool = False,
) -> Finding:
    """Connect as a node or client would, up to the first answer over HTTP/2."""
    try:
        own = load_identity(pki_folder)
        split_address(address)
    except (DdibError, ValueError) as error:
        return Finding("own-certificate", str(error), getattr(error, "hint", "") or "ddib pki show")
    if (finding := own_validity(own)) is not None:
        return finding
    way = Way(address, proxy, timeout_s, asks_environment)
    try:
        connection = way.connect()
    except (OSError, TunnelRefused) as error:
        return way.problem(error)
    with connection:
        return _Attempt(way, server_name, own, roots_pem or own.roots_pem).over(connection, pki_folder)


def own_validity(own: Credentials) -> Finding | None:
    """What is wrong now with the dates of the own certificate."""
    now = datetime.now(UTC)
    if own.not_after <= now:
        return Finding(
            "own-certificate",
            f"our own certificate ({own.identity}) expired at {_moment(own.not_after)}, {_span(now - own.not_after)} "
            "ago by this machine's clock",
            f"a node: start it, which renews it; a client: ddib pki request --profile client.toml, "
            f"have it signed, then ddib pki install; {CLOCK_HINT}",
        )
    if own.not_before - CLOCK_SKEW > now:
        return Finding(
            "own-certificate",
            f"our own certificate ({own.identity}) begins at {_moment(own.not_before)}: this machine's clock is behind "
            f"by at least {_span(own.not_before - now)}",
            f"set the clock; {CLOCK_HINT}",
        )
    return None


@dataclass(frozen=True, slots=True)
class Way:
    """The way to a node, directly or through the configured proxy."""

    address: str
    proxy: Proxy | None
    timeout_s: float
    asks_environment: bool = False

    def connect(self) -> socket.socket:
        """A connection that leads to the node."""
        if self.proxy is not None:
            return self.proxy.connect(self.address, self.timeout_s)
        return socket.create_connection(split_address(self.address), timeout=self.timeout_s)

    def within(self, seconds: float) -> Way:
        return replace(self, timeout_s=min(self.timeout_s, seconds))

    def problem(self, error: OSError | TunnelRefused) -> Finding:
        """What an error of `connect` means."""
        if self.proxy is None:
            assert isinstance(error, OSError)  # a proxy raises the other one
            found = _unreached(error, self.address, self.timeout_s)
            return self._by_the_environment(found) if self.asks_environment else found
        compare = "compare `proxy` in the configuration with what this network's operators say"
        if isinstance(error, OSError):
            found = _unreached(error, self.proxy.address, self.timeout_s)
            return Finding(
                "proxy-unreachable",
                f"the proxy that the configuration names cannot be reached: {found.text}",
                f"{found.remedy}; {compare}",
            )
        answered = f"the proxy {self.proxy.address} answered {error.code} ({short(error.words)})"
        look = f"curl -v --proxytunnel -x http://{self.proxy.address} https://{self.address} shows its answer"
        if error.code == 0:
            begins = f'begins with "{short(error.words)}"' if error.words else "says nothing"
            return Finding(
                "proxy-refused",
                f"what answers at {self.proxy.address} is no HTTP proxy: it {begins}",
                f"{compare}; {look}",
            )
        if error.code == 407:
            given = "the login in the file of `proxy_login` is not accepted"
            return Finding(
                "proxy-refused",
                f"{answered}: {given if self.proxy.login else 'it asks for a login'}",
                "put USER:PASSWORD into a file of mode 600, and name it as `proxy_login` beside `proxy`; where the "
                f"proxy takes no such login (NTLM, Kerberos), its operators must pass {self.address} without one",
            )
        if error.code in {502, 503, 504}:
            return Finding(
                "no-connection",
                f"{answered}: it cannot reach {self.address}",
                f"is the node running there, and its address right? {look}",
            )
        return Finding(
            "proxy-refused",
            f"{answered}: it opens no tunnel to {self.address}",
            f"ask its operators to allow CONNECT to {self.address}, without TLS inspection; {look}",
        )

    def _by_the_environment(self, found: Finding) -> Finding:
        """With the answer of the proxy that the environment names, if it names one.

        A network that lets out only what goes through its proxy looks like a firewall that drops connections.
        """
        if (named := _named_proxy(split_address(self.address)[0])) is None:
            return found
        try:
            Proxy(named).connect(self.address, self.timeout_s).close()
        except TunnelRefused as refused:
            said = f"refuses to connect there (HTTP {refused.code})" if refused.code else "is no HTTP proxy"
        except (OSError, ValueError):
            said = "does not answer"
        else:
            return Finding(
                "proxy",
                f"{found.text}, but the proxy {named} that the environment names reaches it: this network lets out "
                "only what goes through the proxy, and this connection is direct",
                f'proxy = "http://{named}" in the configuration uses it; or ask this network\'s operators to let '
                f"{self.address} through directly",
            )
        return replace(found, text=f"{found.text}; the proxy {named} that the environment names {said}")


def _named_proxy(host: str) -> str | None:
    """``host:port`` of the HTTP proxy that the environment names for connections to a host."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies_environment, proxy_bypass

    named = getproxies_environment()
    value = named.get("https") or named.get("all")
    if not value or proxy_bypass(host, named):
        return None
    try:
        url = urlsplit(value if "://" in value else f"http://{value}")
        found = f"{url.hostname}:{url.port or 80}"
        split_address(found)
    except ValueError:
        return None
    return found if url.scheme == "http" else None


def _unreached(error: OSError, address: str, timeout_s: float) -> Finding:
    """Why an address, of a node or of a proxy, cannot be reached."""
    host, port = split_address(address)
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return Finding(
                "no-connection",
                f"the name {host} cannot be looked up: {error.strerror}",
                f"getent hosts {host}; does this machine reach its name server?",
            )
        return Finding(
            "name-not-found",
            f"there is no host {host}",
            f"getent hosts {host}; compare the address with its operator's",
        )
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return Finding(
            "timeout",
            f"nothing answers at {address} within {timeout_s:.0f} s: a firewall drops connections, or it is off",
            f"nc -vz {host} {port}; let the firewalls of both sides pass {address}; where this network only lets a "
            'proxy out: proxy = "http://HOST:PORT" in the configuration',
        )
    if error.errno == errno.ECONNREFUSED:
        return Finding(
            "nothing-listens",
            f"nothing listens at {address} ({error.strerror})",
            f"is the node running there (behind a relay: is its tunnel up), and the port right? nc -vz {host} {port}",
        )
    return Finding(
        "no-connection",
        f"there is no way to {address} ({error.strerror or error})",
        f"ip route get {host}; nc -vz {host} {port}; ask the network's operators",
    )


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One try to reach a node over TLS."""

    way: Way
    server_name: str
    own: Credentials
    roots_pem: bytes

    @property
    def address(self) -> str:
        return self.way.address

    @property
    def institution(self) -> str:
        return self.server_name.partition(".")[2]

    @property
    def look(self) -> str:
        """A command that shows the certificate of whatever answers."""
        proxy = self.way.proxy
        where = self.address if proxy is None else f"{self.address} -proxy {proxy.address}"
        command = f"openssl s_client -connect {where} -servername {self.server_name} -alpn h2 </dev/null"
        return f"{command} shows what answers"

    def over(self, connection: socket.socket, folder: Path) -> Finding:
        """What is found over a connection."""
        try:
            context = _client_context(self.own, self.roots_pem, folder)
        except OSError as error:
            place = shlex.quote(str(folder))
            return Finding(
                "own-certificate",
                f"{folder} cannot be used: {error.strerror or error}",
                f"namei -l {place}; df -h {place}",
            )
        handshake = _Handshake(connection, context, self.server_name, self.way.timeout_s)
        try:
            handshake.shake()
        except ssl.SSLCertVerificationError as error:
            return self._distrust(error)
        except TimeoutError:
            return Finding(
                "timeout",
                f"something at {self.address} takes connections and does not answer over TLS within "
                f"{self.way.timeout_s:.0f} s",
                f"{self.look}; compare the port with its operator's",
            )
        except OSError as error:
            return self._no_handshake(error, handshake.first)
        return self._greet(handshake)

    def _greet(self, handshake: _Handshake) -> Finding:
        """In TLS 1.3 the server judges our certificate after our side is done: a gRPC server closes without a word."""
        try:
            answer = handshake.ask(_GREETING, 9)
        except OSError:
            answer = b""
        if not answer:
            return self._refused()
        if len(answer) < 4 or answer[3] != _SETTINGS_FRAME:
            return Finding(
                "wrong-server",
                f"TLS works, but what answers at {self.address} is no gRPC server",
                f"{self.look}; compare the port with its operator's",
            )
        return Finding("ok", f"{handshake.tls.version()}, both certificates accepted")

    def _refused(self) -> Finding:
        mine, now = self.own.identity, datetime.now(UTC)
        admit = (
            f"its operator must admit {mine.institution}: ddib peer export here, ddib peer add there"
            if mine.kind == "node"
            else "get a certificate from the new root: ddib pki request --profile client.toml"
        )
        age, left, clocks = now - self.own.not_before, self.own.not_after - now, ""
        if age < _YOUNG:
            slow = _span(age + CLOCK_SKEW)
            clocks = f"; made {_span(age)} ago: a node whose clock is behind by more than {slow} refuses it"
        elif left < _YOUNG:
            clocks = f"; valid for {_span(left)} more: a node whose clock is ahead by more refuses it"
        return Finding(
            "refused-us",
            f"the node closed the connection when it saw our certificate ({mine}){clocks}",
            f"{admit}; if that was done, compare the clocks: {CLOCK_HINT}",
        )

    def _distrust(self, error: ssl.SSLCertVerificationError) -> Finding:
        """The certificate is not accepted: whose is it?"""
        shown = presented_certificate(self.way, self.server_name)
        if error.verify_code in {_EXPIRED, _NOT_YET_VALID}:
            return self._not_valid(shown, expired=error.verify_code == _EXPIRED)
        uris, names = _names(shown)
        is_for = f"; it is for {', '.join(short(name) for name in [*uris, *names][:3])}" if shown else ""
        if error.verify_code in {_HOSTNAME_MISMATCH, _PERMITTED_VIOLATION}:
            return Finding(
                "wrong-server",
                f"the certificate at {self.address} is not for {self.server_name}{is_for}",
                f"{self.look}: another node of the institution; compare address and name with its operator's",
            )
        if shown is not None and self._inspects(shown):
            return self._inspected(shown)
        if shown is None or self._names_the_institution(uris):
            return Finding(
                "wrong-root",
                f"the certificate of {self.server_name} does not come from the root pinned here "
                f"({error.verify_message})",
                f"{self.look}: its root was replaced, or another server has its place. Ask its operator for a new peer "
                "file (a client: a new profile) and compare the fingerprint by telephone",
            )
        issuer = short(shown.issuer.rfc4514_string())
        return Finding(
            "wrong-server",
            f"another server answers at {self.address}{is_for}, issued by {issuer}",
            f"{self.look}; compare address and port with its operator's",
        )

    def _not_valid(self, shown: x509.Certificate | None, *, expired: bool) -> Finding:
        when, now = "", datetime.now(UTC)
        if expired:
            if shown is not None and shown.not_valid_after_utc <= now:
                ends = shown.not_valid_after_utc
                when = f" at {_moment(ends)}, {_span(now - ends)} ago by this machine's clock"
            return Finding(
                "not-valid",
                f"the certificate of {self.server_name} has expired{when}",
                f"its operator: is the node running, which renews it? else this machine's clock is ahead: {CLOCK_HINT}",
            )
        if shown is not None and shown.not_valid_before_utc > now:
            made = shown.not_valid_before_utc + CLOCK_SKEW
            when = (
                f": it was made at {_moment(made)}. This machine's clock is behind, or that node's ahead, by at least "
                f"{_span(made - now)}"
            )
        return Finding(
            "not-valid",
            f"the certificate of {self.server_name} is not valid yet{when}",
            f"compare both clocks; {CLOCK_HINT}",
        )

    def _names_the_institution(self, uris: list[str]) -> bool:
        return any(uri.startswith(f"spiffe://{self.institution}/") for uri in uris)

    def _inspects(self, shown: x509.Certificate) -> bool:
        """Whether it names the node, and an authority made it that is neither pinned nor the institution's."""
        uris, names = _names(shown)
        host = split_address(self.address)[0]
        if not (self._names_the_institution(uris) or self.server_name in names or host in names):
            return False
        pinned = {root.subject for root in parse_certificates(self.roots_pem, "the pinned roots")}
        return shown.issuer not in pinned and not is_root_of(shown.issuer, self.institution)

    def _inspected(self, shown: x509.Certificate) -> Finding:
        issuer = short(shown.issuer.rfc4514_string())
        moved = (
            ", or the institution has another authority now, and its operator has a new peer file"
            if _names(shown)[0]
            else ""
        )
        return Finding(
            "tls-inspection",
            f"a certificate for {self.server_name} that {issuer} made, not the institution: TLS is opened between "
            f"here and {self.address}{moved}",
            f"{self.look}; ask this network's operators to pass {self.address} uninspected. No setting accepts another "
            "root",
        )

    def _no_handshake(self, error: OSError, first: bytes) -> Finding:
        text, (host, port) = str(error), split_address(self.address)
        if first.startswith(b"HTTP/"):
            return Finding(
                "not-tls",
                f"a plain HTTP server or proxy answers at {self.address}, without TLS",
                f"curl -v http://{self.address} shows what answers; compare the port with its operator's. A proxy is "
                "used only where the configuration names it, whatever https_proxy says",
            )
        if re.search(r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL", text):
            shown = presented_certificate(self.way.within(_SECOND_LOOK_S), self.server_name)
            if shown is not None and self._inspects(shown):
                return self._inspected(shown)
            return Finding(
                "tls-version",
                f"what answers at {self.address} does not speak TLS 1.3",
                f"{self.look}: a middlebox, or another server; compare the port with its operator's",
            )
        if re.search(r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|UNKNOWN_PROTOCOL|PACKET_LENGTH", text):
            begins = short(first[:20].decode("latin-1").strip())
            return Finding(
                "not-tls",
                f'what answers at {self.address} does not speak TLS: it begins with "{begins}"',
                f"nc {host} {port} shows what answers; compare the port with its operator's",
            )
        if isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError):
            if not first:
                return Finding(
                    "closed",
                    f"connections to {self.address} are taken, and closed without a byte: by a relay whose far end "
                    "does not listen (ssh -R, frp, chisel), by a node that starts or stops, or by a firewall",
                    f"is the node running behind the relay, at the port to which the tunnel leads? {self.look}",
                )
            return Finding(
                "closed",
                f"the connection to {self.address} was closed before an answer over TLS",
                f"{self.look}; a node that is being started or stopped, or a firewall: repeat the command",
            )
        return Finding(
            "not-tls",
            f"the TLS handshake with {self.address} broke off: {short(text)}",
            f"{self.look}; compare the port with its operator's, or ask for a middlebox on the way",
        )


class _Handshake:
    """TLS over one connection, which stays the caller's; `first` has the bytes with which the other side answered."""

    def __init__(
        self, connection: socket.socket, context: ssl.SSLContext, server_name: str, timeout_s: float
    ) -> None:
        self.first = b""
        connection.settimeout(timeout_s)
        self._connection = connection
        self._received, self._sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._received, self._sent, server_hostname=server_name)

    def shake(self) -> None:
        """TimeoutError when it takes too long; SSLError and OSError as Python's ssl raises them."""
        self._exchange(self.tls.do_handshake)

    def ask(self, question: bytes, size: int) -> bytes:
        """Up to `size` bytes of the answer."""
        self._exchange(lambda: self.tls.write(question))
        return self._exchange(lambda: self.tls.read(size))

    def _exchange(self, act: Callable[[], T]) -> T:
        while True:
            try:
                done = act()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._connection.recv(1 << 16)
                self.first = self.first or data[:64]
                if data:
                    self._received.write(data)
                else:
                    self._received.write_eof()
            except ssl.SSLError:
                with suppress(OSError):  # the other side may not wait to be told why
                    self._flush()
                raise
            else:
                self._flush()
                return done

    def _flush(self) -> None:
        if self._sent.pending:
            self._connection.sendall(self._sent.read())


def _client_context(own: Credentials, roots_pem: bytes, folder: Path) -> ssl.SSLContext:
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
            handshake = _Handshake(connection, context, server_name, way.timeout_s)
            handshake.shake()
            found = handshake.tls.getpeercert(binary_form=True)
        if not found:
            return None
        shown = x509.load_der_x509_certificate(found)
        # Whatever cannot be read is found here, and not by whoever shows it.
        _ = (
            shown.not_valid_before_utc,
            shown.not_valid_after_utc,
            shown.extensions,
            shown.issuer.rfc4514_string(),
        )
    except (OSError, TunnelRefused, *UNREADABLE):
        return None
    return shown


def _names(shown: x509.Certificate | None) -> tuple[list[str], list[str]]:
    """URIs, and DNS names and addresses, of a certificate."""
    if shown is None:
        return [], []
    try:
        found = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return [], []
    dns = found.get_values_for_type(x509.DNSName)
    addresses = [str(each) for each in found.get_values_for_type(x509.IPAddress)]
    return found.get_values_for_type(x509.UniformResourceIdentifier), [*dns, *addresses]


def short(text: str) -> str:
    """Words of another server, which can neither flood nor steer a terminal."""
    return escape(text[:_MAX_NAME])[:_MAX_NAME]


def _moment(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _span(length: timedelta) -> str:
    """A length of time in the largest unit of which it has two."""
    seconds = length.total_seconds()
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
