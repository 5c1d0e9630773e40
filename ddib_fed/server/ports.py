"""Checks that an address can be bound, and explains why when it cannot.

The address is released at once; gRPC and http.server only report that binding failed.
"""

from __future__ import annotations

import errno
import socket

from ddib_fed.errors import ConfigError
from ddib_fed.rpc.addresses import split_address


def check_bindable(listen: str, setting: str) -> None:
    """Bind an address and release it."""
    host, port = split_address(listen, bound=True)
    what = f"{setting} = {listen!a}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"{what}: there is no host {host!a}", hint=_remedy(None, listen, setting)
        ) from error
    problems = [problem for family, _, _, _, place in found if (problem := _bind(family, place)) is not None]
    busy = [problem for problem in problems if problem.errno == errno.EADDRINUSE]
    if busy or len(problems) == len(found):
        worst = (busy or problems)[0]
        raise ConfigError(
            f"{what} cannot be bound: {worst.strerror}", hint=_remedy(worst.errno, listen, setting)
        ) from worst


def _bind(family: int, place: tuple[object, ...]) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        return error
    return None


def _remedy(number: int | None, listen: str, setting: str) -> str:
    port = split_address(listen, bound=True)[1]
    match number:
        case errno.EADDRINUSE:
            return f"another process has the port (ss -ltnp 'sport = :{port}'): stop it, or choose another {setting}"
        case errno.EACCES:
            return (
                f"ports below 1024 need a privilege: choose a {setting} above, "
                "or AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit"
            )
        case _:
            return (
                f"{setting} is an address of this machine (ip -brief address lists them), e.g. 0.0.0.0:{port}; "
                "node.address is what others dial"
            )
