"""Names for a new node from what the machine says of itself: of the institution, and of whoever types."""

from __future__ import annotations

import getpass
import re
import socket

from ddib_fed.names import is_institution, is_label
from ddib_fed.rpc.addresses import is_loopback, split_address

_PRIVATE = "internal"
"""Top-level domain for private use, which is never delegated."""
_NOBODY = "client-1"


def institution_here(address: str | None, node_name: str) -> tuple[str, str]:
    """A name for the institution, and where it comes from."""
    if address is not None and (named := _of_host(address, node_name)):
        return named, "the host of --address"
    host = re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower()).strip("-.")
    domain = host.partition(".")[2]
    for found in (domain, host):
        if is_institution(found) and not host.startswith("localhost"):
            return found, "from this machine's name"
    label = host.partition(".")[0]
    return f"{label if is_label(label) else 'node'}.{_PRIVATE}", "from this machine's name"


def _of_host(address: str, node_name: str) -> str:
    try:
        host = split_address(address, bound=True)[0].lower().rstrip(".")
    except ValueError:
        return ""  # the address itself is refused later
    host = host.removeprefix(f"{node_name}.")
    return host if is_institution(host) and not is_loopback(host) else ""


def person_here() -> str:
    """The name of whoever types, as one DNS label."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        return _NOBODY
    label = re.sub(r"[^a-z0-9-]", "-", name.lower())[:63].strip("-")
    return label if is_label(label) else _NOBODY
