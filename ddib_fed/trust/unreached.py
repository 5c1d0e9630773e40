"""Why there is no connection to a node's address, before anything is sent over one.

A connection is direct unless the configuration names a proxy. Where a network lets out only what goes through its
proxy, that looks like a firewall that drops connections; one request to the proxy that the environment names tells the
two apart. Only commands that test a connection make it, a node never does. Nothing of ours is sent through the proxy.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from ddib_fed.rpc.addresses import split_address
from ddib_fed.rpc.proxy import Proxy, TunnelRefused
from ddib_fed.terminal import escape
from ddib_fed.trust.finding import Finding, host_and_port

_SCHEMES: Final = ("https", "all")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_HOST: Final = 80


def no_connection(error: OSError, address: str, timeout_s: float) -> Finding:
    """Why there is no direct connection to a node; if the environment names a proxy, with that proxy's answer."""
    found = unreached(error, address, timeout_s)
    proxy = _named_proxy(split_address(address)[0], os.environ)
    if proxy is None:
        return found
    status = _answer_to_connect(proxy, address, timeout_s)
    if status is not None and 200 <= status < 300:
        return Finding(
            "proxy",
            f"{found.text}, but the proxy {proxy} reaches it: this network lets out only what goes through the proxy, "
            "and this connection is direct",
            f'proxy = "http://{proxy.host[:_MAX_HOST]}:{proxy.port}" in the configuration uses it; or ask this '
            f"network's operators to let {address} through directly",
        )
    said = {
        None: "does not answer, or is no HTTP proxy",
        403: "refuses to connect there",
        407: "wants a password",
    }
    more = said.get(status, f"cannot connect there (HTTP {status})")
    return Finding(found.cause, f"{found.text}; the proxy {proxy} {more}", found.remedy)


def unreached(error: OSError, address: str, timeout_s: float) -> Finding:
    """Why an address, of a node or of a proxy, cannot be reached."""
    host, _port = split_address(address)
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return Finding(
                "name-server",
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
            f"nc -vz {host_and_port(address)}; let the firewalls of both sides pass {address}; where this network "
            'only lets a proxy out: proxy = "http://HOST:PORT" in the configuration',
        )
    if error.errno == errno.ECONNREFUSED:
        return Finding(
            "nothing-listens",
            f"nothing listens at {address} ({error.strerror})",
            f"is the node running there (behind a relay: is its tunnel up), and is the port right? "
            f"nc -vz {host_and_port(address)}",
        )
    if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}:
        return Finding(
            "no-route",
            f"there is no way to {address} ({error.strerror})",
            f"ip route get {host}; ask the network's operators",
        )
    return Finding(
        "no-connection",
        f"no connection to {address}: {error.strerror or error}",
        f"nc -vz {host_and_port(address)}",
    )


@dataclass(frozen=True, slots=True)
class _Proxy:
    """What the environment names."""

    variable: str
    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return escape(f"{self.host[:_MAX_HOST]}:{self.port} ({self.variable})")


def _named_proxy(host: str, environ: Mapping[str, str]) -> _Proxy | None:
    """The proxy for connections to a host; None where none is named, or the host is in no_proxy."""
    from urllib.request import proxy_bypass

    names = {
        name.lower(): value for name, value in environ.items() if name.lower().endswith("_proxy") and value
    }
    if proxy_bypass(host, {"no": names.get("no_proxy", "")}):
        return None
    for scheme in _SCHEMES:
        value = names.get(f"{scheme}_proxy")
        if value is None:
            continue
        try:
            url = urlsplit(value if "://" in value else f"http://{value}")
            port = url.port or _DEFAULT_PORTS.get(url.scheme, 0)
        except ValueError:
            continue
        if url.hostname:
            return _Proxy(f"{scheme}_proxy", url.scheme, url.hostname, port)
    return None


def _answer_to_connect(proxy: _Proxy, address: str, timeout_s: float) -> int | None:
    """The status with which an HTTP proxy answers CONNECT for ``host:port``; None where it is none."""
    if proxy.scheme != "http" or not proxy.port:
        return None
    try:
        Proxy(f"{proxy.host}:{proxy.port}").connect(address, timeout_s).close()
    except TunnelRefused as refused:
        return refused.code or None
    except (OSError, ValueError):
        return None
    return 200
