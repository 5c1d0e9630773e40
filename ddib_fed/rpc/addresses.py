"""Parses `host:port`: one strict grammar for node.toml, client.toml, peer files and options.

ADDRESS = HOST ":" PORT
HOST    = IPv4 | "[" IPv6 "]" | DNS name, e.g. localhost, node-1.north.example, source_node
PORT    = 1 to 65535 in ASCII digits; 0 too for what is bound, where it means a free one
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

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
    """Host and port of `host:port` or `[v6]:port`; the host without brackets."""
    match = _FORM.fullmatch(text) if len(text) <= MAX_ADDRESS else None
    if match is None:
        v6 = "; an IPv6 address stands in brackets" if text.count(":") > 1 else ""
        raise ValueError(f"{text[:MAX_ADDRESS]!a} is not host:port, e.g. 127.0.0.1:7443{v6}")
    port = int(match["port"])
    if not (0 if bound else 1) <= port <= 65535 or (len(match["port"]) > 1 and match["port"][0] == "0"):
        raise ValueError(f"{text!r} is not host:port: a port is a number from 1 to 65535")
    return _host(match["host"], text), port


def _host(host: str, text: str) -> str:
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError as error:
            raise ValueError(f"{text!r} is not host:port: {error}") from error
        return host[1:-1]
    labels = host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            ipaddress.IPv4Address(host)
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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host of this name."""
    try:
        return host == "localhost" or _address(host).is_loopback
    except ValueError:
        return False


def is_every_address(host: str) -> bool:
    """Whether it stands for all addresses of the machine: a server can bind it, a client cannot dial it."""
    try:
        return _address(host).is_unspecified
    except ValueError:
        return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
