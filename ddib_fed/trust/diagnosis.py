"""Diagnoses why a connection to a node fails: each cause has a name, a text and what to do about it.

gRPC reports a missing certificate, a wrong root, an expired certificate and plaintext alike. Every command and every
node asks here when a connection failed, so that all of them name the same cause. Only the HTTP/2 preface is sent.
"""

from __future__ import annotations

import re
import shlex
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from ddib_fed.errors import DdibError, PeerUnreachable
from ddib_fed.rpc.addresses import split_address
from ddib_fed.rpc.proxy import Proxy, TunnelRefused
from ddib_fed.trust.dialling import Way
from ddib_fed.trust.finding import CLOCK_HINT, Finding, host_and_port, moment, short, span
from ddib_fed.trust.handshake import ClosedEarly, Handshake, client_context, presented_certificate
from ddib_fed.trust.pki import CLOCK_SKEW, Credentials, is_root_of, load_identity, parse_certificates

TIMEOUT_S: Final = 5.0
_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS_FRAME: Final = 4
_SECOND_LOOK_S: Final = 2.0
_YOUNG: Final = timedelta(hours=2)
"""A certificate that began, or ends, within this time may be refused because of a clock."""
# From OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _HOSTNAME_MISMATCH, _PERMITTED_VIOLATION = 9, 10, 62, 47


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

    Else `error` itself, which then says that a connection works.

    A node that answered with an error (which has an incident) needs no diagnosis.
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
    """Connect as a node or client would, up to the first answer over HTTP/2.

    Args:
        address: ``host:port``.
        server_name: DNS name that the server's certificate must carry.
        pki_folder: With the own certificate.
        roots_pem: Accepted roots of the server's certificate; by default those of the own institution.
        proxy: What the configuration names to lead there; None for a direct connection.
        timeout_s: For connecting, and again for the handshake.
        asks_environment: Whether a proxy that the environment names is asked when a direct connection fails; for
            commands that somebody runs to test a connection.
    """
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
    attempt = _Attempt(way, server_name, own, roots_pem or own.roots_pem)
    with connection:
        return attempt.over(connection, pki_folder)


def own_validity(own: Credentials) -> Finding | None:
    """What is wrong now with the dates of the own certificate."""
    now = datetime.now(UTC)
    if own.not_after <= now:
        return Finding(
            "own-expired",
            f"our own certificate ({own.identity}) expired at {moment(own.not_after)}, {span(now - own.not_after)} ago "
            "by this machine's clock",
            f"a node: start it, which renews it; a client: ddib pki request --folder DIR --identity {own.identity}, have "
            f"it signed, then ddib pki install; {CLOCK_HINT}",
        )
    if own.not_before - CLOCK_SKEW > now:
        return Finding(
            "own-not-valid-yet",
            f"our own certificate ({own.identity}) begins at {moment(own.not_before)}: this machine's clock is behind "
            f"by at least {span(own.not_before - now)}",
            f"set the clock; {CLOCK_HINT}",
        )
    return None


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
    def look(self) -> str:
        """A command that shows the certificate of whatever answers."""
        proxy = self.way.proxy
        where = self.address if proxy is None else f"{self.address} -proxy {proxy.address}"
        return f"openssl s_client -connect {where} -servername {self.server_name} -alpn h2 </dev/null"

    def over(self, connection: socket.socket, folder: Path) -> Finding:
        """What is found over a connection."""
        try:
            context = client_context(self.own, self.roots_pem, folder)
        except OSError as error:
            place = shlex.quote(str(folder))
            return Finding(
                "own-certificate",
                f"{folder} cannot be used: {error.strerror or error}",
                f"namei -l {place}; df -h {place}",
            )
        handshake = Handshake(connection, context, self.server_name, self.way.timeout_s)
        try:
            handshake.shake()
        except ssl.SSLCertVerificationError as error:
            return self._distrust(error)
        except TimeoutError:
            return Finding(
                "silent",
                f"something at {self.address} takes connections and does not answer over TLS within "
                f"{self.way.timeout_s:.0f} s",
                f"{self.look} shows more; compare the port with its operator's",
            )
        except (ClosedEarly, OSError) as error:
            return self._no_handshake(error, handshake.first)
        return self._greet(handshake)

    def _greet(self, handshake: Handshake) -> Finding:
        """In TLS 1.3 the server judges our certificate after our side is done: a gRPC server closes without a word."""
        try:
            handshake.send(_GREETING)
            answer = handshake.read(9)
        except (ClosedEarly, OSError):
            return self._refused()
        if len(answer) < 4 or answer[3] != _SETTINGS_FRAME:
            return Finding(
                "not-grpc",
                f"TLS works, but what answers at {self.address} is no gRPC server",
                f"{self.look} shows what answers; compare the port with its operator's",
            )
        return Finding("ok", f"{handshake.tls.version()}, both certificates accepted")

    def _refused(self) -> Finding:
        mine, now = self.own.identity, datetime.now(UTC)
        admit = (
            f"its operator must admit {mine.institution}: ddib peer export here, ddib peer add there"
            if mine.kind == "node"
            else f"get a certificate from the new root: ddib pki request --folder DIR --identity {mine}"
        )
        age, left, clocks = now - self.own.not_before, self.own.not_after - now, ""
        if age < _YOUNG:
            slow = span(age + CLOCK_SKEW)
            clocks = f"; made {span(age)} ago: a node whose clock is behind by more than {slow} refuses it"
        elif left < _YOUNG:
            clocks = f"; valid for {span(left)} more: a node whose clock is ahead by more refuses it"
        return Finding(
            "refused-us",
            f"the node closed the connection when it saw our certificate ({mine}){clocks}",
            f"{admit}; if that was done, compare the clocks: {CLOCK_HINT}",
        )

    def _distrust(self, error: ssl.SSLCertVerificationError) -> Finding:
        shown = presented_certificate(self.way, self.server_name)
        if error.verify_code == _EXPIRED:
            return self._expired(shown)
        if error.verify_code == _NOT_YET_VALID:
            return self._not_valid_yet(shown)
        if error.verify_code in {_HOSTNAME_MISMATCH, _PERMITTED_VIOLATION}:
            return Finding(
                "wrong-name",
                f"the certificate at {self.address} is not for {self.server_name}{_is_for(shown)}",
                f"{self.look} shows what answers: another node of the institution; compare address and name with its "
                "operator's",
            )
        return self._other_root(error, shown)

    def _expired(self, shown: x509.Certificate | None) -> Finding:
        when, now = "", datetime.now(UTC)
        if shown is not None and shown.not_valid_after_utc <= now:
            ago = span(now - shown.not_valid_after_utc)
            when = f" at {moment(shown.not_valid_after_utc)}, {ago} ago by this machine's clock"
        return Finding(
            "expired",
            f"the certificate of {self.server_name} has expired{when}",
            f"its operator: is the node running, which renews it? else this machine's clock is ahead: {CLOCK_HINT}",
        )

    def _not_valid_yet(self, shown: x509.Certificate | None) -> Finding:
        when, now = "", datetime.now(UTC)
        if shown is not None and shown.not_valid_before_utc > now:
            made = shown.not_valid_before_utc + CLOCK_SKEW
            when = (
                f": it was made at {moment(made)}. This machine's clock is behind, or that node's ahead, by at least "
                f"{span(made - now)}"
            )
        return Finding(
            "not-valid-yet",
            f"the certificate of {self.server_name} is not valid yet{when}",
            f"compare both clocks; {CLOCK_HINT}",
        )

    def _other_root(self, error: ssl.SSLCertVerificationError, shown: x509.Certificate | None) -> Finding:
        """The certificate is not of a pinned root: whose is it?"""
        if shown is not None and self._names_it(shown) and self._foreign(shown):
            return self._inspected(shown)
        _, _, institution = self.server_name.partition(".")
        uris, _names_shown = _names(shown)
        if any(uri.startswith(f"spiffe://{institution}/") for uri in uris) or shown is None:
            return Finding(
                "wrong-root",
                f"the certificate of {self.server_name} does not come from the root pinned here "
                f"({error.verify_message})",
                f"{self.look} shows what answers: its root was replaced, or another server has its place. Ask its "
                "operator for a new peer file (a client: a new profile) and compare the fingerprint by telephone",
            )
        issuer = short(shown.issuer.rfc4514_string())
        return Finding(
            "wrong-server",
            f"another server answers at {self.address}{_is_for(shown)}, issued by {issuer}",
            f"{self.look} shows what answers; compare address and port with its operator's",
        )

    def _names_it(self, shown: x509.Certificate) -> bool:
        uris, names = _names(shown)
        _, _, institution = self.server_name.partition(".")
        ours = any(uri.startswith(f"spiffe://{institution}/") for uri in uris)
        return ours or self.server_name in names or split_address(self.address)[0] in names

    def _foreign(self, shown: x509.Certificate) -> bool:
        _, _, institution = self.server_name.partition(".")
        pinned = parse_certificates(self.roots_pem, "the pinned roots")
        return shown.issuer not in {root.subject for root in pinned} and not is_root_of(
            shown.issuer, institution
        )

    def _inspected(self, shown: x509.Certificate) -> Finding:
        issuer = short(shown.issuer.rfc4514_string())
        uris, _names_shown = _names(shown)
        moved = (
            ", or the institution has another authority now, and its operator has a new peer file"
            if uris
            else ""
        )
        return Finding(
            "tls-inspection",
            f"a certificate for {self.server_name} that {issuer} made, not the institution: TLS is opened between "
            f"here and {self.address}{moved}",
            f"{self.look} shows what answers; ask this network's operators to pass {self.address} uninspected. No "
            "setting accepts another root",
        )

    def _no_handshake(self, error: Exception, first: bytes) -> Finding:
        text = str(error)
        if first.startswith(b"HTTP/"):
            return Finding(
                "plain-http",
                f"a plain HTTP server or proxy answers at {self.address}, without TLS",
                f"curl -v http://{self.address} shows what answers; compare the port with its operator's. A proxy is "
                "used only where the configuration names it, whatever https_proxy says",
            )
        if re.search(r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL", text):
            shown = presented_certificate(self.way.within(_SECOND_LOOK_S), self.server_name)
            if shown is not None and self._names_it(shown) and self._foreign(shown):
                return self._inspected(shown)
            return Finding(
                "tls-version",
                f"what answers at {self.address} does not speak TLS 1.3",
                f"{self.look} shows what answers: a middlebox, or another server; compare the port with its operator's",
            )
        if re.search(r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|UNKNOWN_PROTOCOL|PACKET_LENGTH", text):
            begins = short(first[:20].decode("latin-1").strip())
            return Finding(
                "not-tls",
                f'what answers at {self.address} does not speak TLS: it begins with "{begins}"',
                f"nc {host_and_port(self.address)} shows what answers; compare the port with its operator's",
            )
        if not first and not isinstance(error, ssl.SSLError):
            return Finding(
                "closed",
                f"connections to {self.address} are taken, and closed without a byte: by a relay whose far end does "
                "not listen (ssh -R, frp, chisel), by a node that is being started or stopped, or by a firewall",
                f"is the node running behind the relay, at the port to which the tunnel leads? {self.look} shows more",
            )
        if isinstance(error, ClosedEarly) or not isinstance(error, ssl.SSLError):
            return Finding(
                "closed",
                f"the connection to {self.address} was closed before an answer over TLS",
                f"{self.look} shows more; a node that is being started or stopped, or a firewall: repeat the command",
            )
        return Finding(
            "not-tls",
            f"the TLS handshake with {self.address} broke off: {short(text)}",
            f"{self.look} shows more; compare the port with its operator's, or ask for a middlebox on the way",
        )


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


def _is_for(shown: x509.Certificate | None) -> str:
    uris, names = _names(shown)
    found = [*uris, *names]
    return f"; it is for {', '.join(short(name) for name in found[:3])}" if found else ""
