"""Addresses of nodes, checked, and an HTTP CONNECT proxy on the way to one: named by the configuration alone.

The proxy gets the address to connect to, and then carries TLS between the two ends: it can neither read nor change
what crosses. gRPC would take a proxy from `https_proxy` and leave it out by `no_proxy`; here it dials the proxy as if
it were the server, and asks for the tunnel itself.
"""

from __future__ import annotations

import base64
import errno
import ipaddress
import re
import shlex
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator

from ddib_fed.errors import ConfigError
from ddib_fed.files import read_private

# A DNS name has 253 characters (RFC 1035), the colon and the port six more.
MAX_ADDRESS: Final = 259
_FORM: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]{1,15})?\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})"
)
# Underscores are in no host name by RFC 952, but in many names of containers.
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# Numeric forms that inet_aton accepts: 127.1, 2130706433, 0x7f.1. One address would have many spellings.
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
# gRPC reads these, before a colon, as an address scheme and not as a host.
_SCHEMES: Final = frozenset({"dns", "google-c2p", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds"})


def split_address(text: str, *, bound: bool = False) -> tuple[str, int]:
    """Return host (without brackets) and port of `host:port` or `[v6]:port`; raise ValueError for another text."""
    match = _FORM.fullmatch(text) if len(text) <= MAX_ADDRESS else None
    if match is None:
        v6 = "; an IPv6 address stands in brackets" if text.count(":") > 1 else ""
        raise ValueError(f"{text[:MAX_ADDRESS]!a} is not host:port, e.g. 127.0.0.1:7443{v6}")
    port = int(match["port"])
    if not (0 if bound else 1) <= port <= 65535 or (len(match["port"]) > 1 and match["port"][0] == "0"):
        raise ValueError(f"{text!r} is not host:port: a port is a number from 1 to 65535")
    return _host(match["host"], text), port


def _host(host: str, text: str) -> str:
    is_v6, labels = host.startswith("["), host.removesuffix(".").split(".")
    if is_v6 or _NUMBER.fullmatch(labels[-1]):
        kind, host = ipaddress.IPv6Address if is_v6 else ipaddress.IPv4Address, host.strip("[]")
        try:
            kind(host)
        except ValueError as error:
            raise ValueError(f"{text!r} is not host:port: {error}") from error
        return host
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{text!r} is not host:port: {host!r} is no DNS name")
    if host.lower() in _SCHEMES:
        raise ValueError(
            f"{text!r} is not host:port: gRPC takes {host!r} for a kind of address; use a longer name"
        )
    return host


def bracketed(host: str) -> str:
    """Return a host as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host of this name."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_every_address(host: str) -> bool:
    """Return whether a host stands for all addresses of the machine: it can be bound, and not dialled."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address of a text; an IPv4 address in IPv6's form is the IPv4 address."""
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def check_bindable(listen: str, setting: str) -> None:
    """Bind an address and release it: gRPC and http.server only report that binding failed, not why."""
    host, port = split_address(listen, bound=True)
    what = f"{setting} = {listen!a}"
    elsewhere = (
        f"{setting} is an address of this machine (ip -brief address lists them), e.g. 0.0.0.0:{port}; "
        "node.address is what others dial"
    )
    remedies = {
        errno.EADDRINUSE: f"another process has the port (ss -ltnp 'sport = :{port}'): stop it, or choose another",
        errno.EACCES: "ports below 1024 need a privilege: choose one above, or "
        "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit",
    }
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{what}: there is no host {host!a}", hint=elsewhere) from error
    problems = []
    for family, _, _, _, place in places:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                probe.listen(1)
        except OSError as error:
            problems.append(error)
    busy = [error for error in problems if error.errno == errno.EADDRINUSE]
    if busy or len(problems) == len(places):
        worst = (busy or problems)[0]
        hint = remedies.get(worst.errno or 0, elsewhere)
        raise ConfigError(f"{what} cannot be bound: {worst.strerror}", hint=hint) from worst


_URL: Final = re.compile(r"http://(?P<address>[^/@?#]+)/?")
_LOGIN: Final = re.compile(r"[^:\x00-\x1f\x7f]{1,200}:[^\x00-\x1f\x7f]{1,200}")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (?P<code>[1-5][0-9]{2})(?: (?P<words>[ -~]{0,200}))?\r?")
# What a proxy answers before the tunnel is open: a status line and some headers, or a page that says why not.
_MOST_ANSWER: Final = 16 << 10


class TunnelRefused(Exception):  # noqa: N818 - a finding
    """A proxy answered and opened no tunnel."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(code, words)
        self.code = code
        self.words = words


@dataclass(frozen=True, slots=True)
class Proxy:
    address: str
    login: str = field(default="", repr=False)

    @classmethod
    def of(cls, url: str | None, login_file: Path | None) -> Proxy | None:
        """Return the proxy of the settings `proxy` and `proxy_login`; None without a proxy."""
        if url is None:
            if login_file is not None:
                raise ConfigError("proxy_login is set without proxy", hint='proxy = "http://HOST:PORT"')
            return None
        login = ""
        if login_file is not None:
            login = read_private(login_file).decode("utf-8", "replace").strip()
            if not _LOGIN.fullmatch(login):
                raise ConfigError(
                    f"{login_file} does not hold one line USER:PASSWORD",
                    hint=f"chmod 600 {shlex.quote(str(login_file))}",
                )
        return cls(proxy_address(url), login)

    def options(self, address: str) -> tuple[tuple[str, str], ...]:
        """Return the options of a gRPC channel that dials the proxy, to get to an address behind it."""
        return (
            ("grpc.http_connect_server", address),
            ("grpc.http_connect_headers", "\n".join(f"{name}:{value}" for name, value in self._headers())),
        )

    def connect(self, address: str, timeout_s: float) -> socket.socket:
        connection = socket.create_connection(split_address(self.address), timeout=timeout_s)
        try:
            lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
            lines += [f"{name}: {value}" for name, value in self._headers()]
            connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
            read_answer(connection, timeout_s)
        except BaseException:
            connection.close()
            raise
        return connection

    def _headers(self) -> tuple[tuple[str, str], ...]:
        if not self.login:
            return ()
        return (("Proxy-Authorization", "Basic " + base64.b64encode(self.login.encode()).decode()),)


def proxy_address(url: str) -> str:
    """Return ``host:port`` of http://HOST:PORT; raise ValueError for another URL."""
    if (match := _URL.fullmatch(url)) is None:
        login = "; a login stands in the file of proxy_login" if "@" in url else ""
        raise ValueError(
            f"{url[:300]!a} is not http://HOST:PORT, e.g. http://proxy.north.example:3128{login}"
        )
    split_address(match["address"])
    return match["address"]


def _checked(url: str) -> str:
    proxy_address(url)
    return url


ProxyUrl = Annotated[str, AfterValidator(_checked)]


def read_answer(connection: socket.socket, timeout_s: float) -> None:
    """Read the proxy's answer, and not one byte more: what follows is the server's."""
    until, answer = time.monotonic() + timeout_s, b""
    while not answer.endswith((b"\r\n\r\n", b"\n\n")):
        if len(answer) >= _MOST_ANSWER:
            raise TunnelRefused(0, answer[:80].decode("latin-1").strip())
        if (left := until - time.monotonic()) <= 0:
            raise TimeoutError
        connection.settimeout(left)
        byte = connection.recv(1)
        if not byte:
            break
        answer += byte
    first = answer.split(b"\n", 1)[0]
    match = _STATUS.fullmatch(first)
    if match is None:
        raise TunnelRefused(0, first[:80].decode("latin-1").strip())
    if not match["code"].startswith(b"2"):
        raise TunnelRefused(int(match["code"]), (match["words"] or b"").decode())
