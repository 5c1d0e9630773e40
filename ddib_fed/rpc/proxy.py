"""An HTTP CONNECT proxy on the way to a node: named by the configuration alone, never by the environment.

The proxy gets the address to connect to, and then carries TLS between the two ends: it can neither read nor change
what crosses. gRPC would take a proxy from `https_proxy` and leave it out by `no_proxy`; here it dials the proxy as if
it were the server, and asks for the tunnel itself.
"""

from __future__ import annotations

import base64
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
from ddib_fed.rpc.addresses import split_address

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
    """A proxy."""

    address: str
    login: str = field(default="", repr=False)

    @classmethod
    def of(cls, url: str | None, login_file: Path | None) -> Proxy | None:
        """The proxy of two settings, `proxy` and `proxy_login`; None where no proxy is set."""
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
        """The options of a gRPC channel that dials the proxy, to get to an address behind it."""
        return (
            ("grpc.http_connect_server", address),
            ("grpc.http_connect_headers", "\n".join(f"{name}:{value}" for name, value in self._headers())),
        )

    def connect(self, address: str, timeout_s: float) -> socket.socket:
        """A connection to an address behind the proxy."""
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
    """``host:port`` of http://HOST:PORT."""
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
"""http://HOST:PORT in a configuration."""


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
