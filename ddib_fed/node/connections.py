"""Limits connections: handshake time, number in all, of one address without an authorised call, and of one caller.

gRPC accepts every connection, and each is an open file of the process until its handshake is done or fails. One without
a handshake ends after a few seconds; of those without an authorised call, only the youngest few per address are kept,
and of those with one, the oldest of each caller, up to an eighth of all.
The one rule: a connection costs constant work, and looking at all of them at most a fixed share of the time.
"""

import errno
import ipaddress
import logging
import os
import resource
import socket
import stat
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from ddib_fed.protocol.addresses import ip_address

log = logging.getLogger(__name__)

# TLS and the first frame of HTTP/2 take two round trips; gRPC's default is two minutes.
HANDSHAKE_TIMEOUT_S: Final = 5
# The limit is raised to this where allowed; a start warns where it is not above the second.
WANTED_FILES: Final = 65_536
FEW_FILES: Final = 1_024
# Many times what clients and peers need. More are closed before their handshake begins.
MOST_CONNECTIONS: Final = 1_024
# Without an authorised call yet: a peer or client needs one for the moment before its first call.
UNPROVEN_PER_ADDRESS: Final = 32
# A connection has this long for its first call, unless strangers have this part of all connections: then the oldest of
# the largest addresses are ended, no more than needed, so that a handshake has time to end.
PATIENCE_S: Final = 1.0
STRANGERS: Final = 0.5
# One of so many parts of all connections is for one caller, whose calls are authorised.
CALLERS: Final = 8
LOOK_EVERY_S: Final = 0.05
# After a look, time without one, in the CPU time that it took: a flood costs a bounded share.
REST: Final = 4
SAY_EVERY_S: Final = 60.0
# A connection may send so much without a call or message: gRPC keeps every header of an endless block, at up to ten
# times its size.
UNPROVEN_BYTES: Final = 256 << 10
PROVEN_BYTES: Final = 16 << 20
# This is the offset of tcpi_bytes_received in Linux's struct tcp_info.
_TCP_RECEIVED: Final = 128
_OPEN_FILES: Final = next((place for place in ("/proc/self/fd", "/dev/fd") if Path(place).is_dir()), None)

Peer = tuple[str, int]


def raise_file_limit() -> int:
    """Raise this process's limit on open files as far as allowed, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
        with suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return file_limit()


def file_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED_FILES if soft == resource.RLIM_INFINITY else soft


def most_connections(limit: int) -> int:
    return min(MOST_CONNECTIONS, limit // 2)


def server_options(most: int) -> tuple[tuple[str, int], ...]:
    """Return options of a gRPC server: a cap on all connections, and a timeout for handshakes."""
    return (
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1000),
        ("grpc.max_allowed_incoming_connections", most),
    )


@lru_cache(4_096)
def peer_of(text: str) -> Peer | None:
    """Address and port from gRPC's name of a caller, ``ipv4:127.0.0.1:4000``; None for a Unix socket."""
    family, _, rest = unquote(text).partition(":")
    host, _, port = rest.rpartition(":")
    if family not in {"ipv4", "ipv6"} or not port.isdigit():
        return None
    return _host(host.strip("[]")), int(port)


def _host(text: str) -> str:
    return str(ip_address(text.partition("%")[0]))


def _neighbourhood(host: str) -> str:
    return str(ipaddress.ip_network((host, 64), strict=False)) if ":" in host else host


class Repeated:
    """Calls a function on a thread of its own until it is stopped; what the function raises is logged."""

    def __init__(self, name: str, act: Callable[[], object], pause_s: Callable[[], float]) -> None:
        self._act, self._pause_s = act, pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._act()
            except Exception:  # the thread must outlive any failure
                log.exception("%s failed, and is tried again", self._thread.name)
            self._stop.wait(self._pause_s())


@dataclass(slots=True)
class _Connection:
    peer: Peer
    since: float
    inode: int
    fd: int
    heard_at: int = 0
    """Bytes that it had received when its last call or message came."""

    def end(self) -> bool:
        """Shut it down; returns whether it was still open."""
        with suppress(OSError), _duplicate(self.fd, self.inode) as end:
            end.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):  # nothing is left
                while end.recv(1 << 20, socket.MSG_DONTWAIT):  # up to 6 MB that gRPC would still read
                    pass
            return True
        return False


class InboundGuard:
    """Ends connections of callers and addresses that have too many, and those that send without end and no call."""

    def __init__(self, most: int, *, per_address: int = UNPROVEN_PER_ADDRESS) -> None:
        self._most, self._per_address = most, per_address
        self._per_caller = max(per_address, most // CALLERS)
        self._port = 0
        self._next_look = 0.0
        self._lock = threading.Lock()
        self._heard: set[Peer | None] = set()
        self._crowds: set[Peer | None] = set()
        self._proven: dict[Peer, str] = {}
        self._known: dict[int, _Connection | None] = {}
        self._said = -SAY_EVERY_S
        self._unsaid: Counter[str] = Counter()
        self._looking = Repeated("inbound", self.look, self._pause_s)
        self.stop = self._looking.stop

    def start(self, port: int) -> None:
        self._port = port
        self._looking.start()

    def _pause_s(self) -> float:
        return max(LOOK_EVERY_S, self._next_look - time.monotonic())

    # What gRPC's threads report; `caller` is its name of the other end.

    def called(self, caller: str) -> None:
        """Note a call or message on a connection: TLS let it in."""
        with self._lock:
            self._heard.add(peer_of(caller))

    def admitted(self, caller: str, account: str) -> None:
        """Count a connection for an account, no longer for its address, because a call on it was authorised."""
        if (peer := peer_of(caller)) is not None:
            with self._lock:
                self._proven[peer] = account

    def end(self, caller: str) -> None:
        """End the connection at the next look, also if its calls were authorised."""
        with self._lock:
            self._crowds.add(peer_of(caller))

    def look(self) -> int:
        """Check once; returns how many connections were ended for their number."""
        with self._lock:
            before = set(self._proven)
        self._refresh()
        present = [entry for entry in self._known.values() if entry is not None]
        counts = [(connection, _received(connection.fd)) for connection in present]
        with self._lock:  # once the bytes are counted: what was authorised by now is not taken for a stranger
            crowds, self._crowds = self._crowds, set()
            heard, self._heard = self._heard, set()
            for peer in before - {connection.peer for connection in present}:  # closed since
                self._proven.pop(peer, None)
            proven = dict(self._proven)
        for connection, received in counts:
            if connection.peer in heard:
                connection.heard_at = received
            endless = received - connection.heard_at > (
                PROVEN_BYTES if connection.peer in proven else UNPROVEN_BYTES
            )
            if (endless or connection.peer in crowds) and connection.end():
                why = "it sends without end, and no call" if endless else "its calls come too fast"
                log.warning("ended a connection from %s: %s", connection.peer[0], why)
        ended = Counter(origin for origin, connection in self._too_many(present, proven) if connection.end())
        self._unsaid += ended
        if self._unsaid and time.monotonic() - self._said >= SAY_EVERY_S:  # a flood must not fill the log
            log.warning(
                "ended %d connections (%s): one address may have %d without an authorised call, one caller %d with one",
                self._unsaid.total(),
                ", ".join(f"{count} from {where}" for where, count in self._unsaid.most_common(3)),
                self._per_address,
                self._per_caller,
            )
            self._said = time.monotonic()
            self._unsaid.clear()
        return ended.total()

    def _too_many(
        self, present: list[_Connection], proven: dict[Peer, str]
    ) -> Iterator[tuple[str, _Connection]]:
        """Yield the oldest connections of strangers that are too many, and the youngest of callers."""
        strangers: defaultdict[str, list[_Connection]] = defaultdict(list)
        callers: defaultdict[str, list[_Connection]] = defaultdict(list)
        for connection in sorted(present, key=lambda connection: (connection.since, connection.inode)):
            account = proven.get(connection.peer)
            group = strangers[_neighbourhood(connection.peer[0])] if account is None else callers[account]
            group.append(connection)
        young = time.monotonic() - PATIENCE_S
        share = _share([len(connection) for connection in strangers.values()], int(STRANGERS * self._most))
        for origin, group in strangers.items():
            impatient = sum(connection.since <= young for connection in group[: -self._per_address])
            for connection in group[: max(impatient, len(group) - share)]:
                yield origin, connection
        for account, group in callers.items():
            for connection in group[self._per_caller :]:
                yield account, connection

    def _refresh(self) -> None:
        """Find the connections of the port among this process's files; new ones are looked up."""
        started, now, sockets = time.thread_time(), time.monotonic(), dict[int, _Connection | None]()
        for name in os.listdir(_OPEN_FILES) if _OPEN_FILES is not None else ():  # noqa: PTH208 - often
            with suppress(OSError):  # closed since
                file = os.fstat(int(name))
                if not stat.S_ISSOCK(file.st_mode):
                    continue
                inode = file.st_ino
                known = self._known[inode] if inode in self._known else self._inspect(int(name), inode, now)
                if known is not None:
                    known.fd = int(name)
                sockets[inode] = known
        self._known = sockets
        self._next_look = time.monotonic() + REST * (time.thread_time() - started)

    def _inspect(self, fd: int, inode: int, now: float) -> _Connection | None:
        with suppress(OSError, ValueError), _duplicate(fd, inode) as end:
            if end.family in {socket.AF_INET, socket.AF_INET6} and end.getsockname()[1] == self._port:
                host, port = end.getpeername()[:2]
                return _Connection((_host(host), port), now, inode, fd)
        return None


def _share(counts: list[int], most: int) -> int:
    """Return the largest limit for each group with which all together have at most `most`, but at least 1."""
    rest = most
    for left, count in zip(range(len(counts), 0, -1), sorted(counts), strict=True):
        if count * left > rest:
            return max(1, rest // left)
        rest -= count
    return most


def _duplicate(fd: int, inode: int) -> socket.socket:
    duplicate = socket.socket(fileno=os.dup(fd))
    if os.fstat(duplicate.fileno()).st_ino == inode:
        return duplicate
    duplicate.close()
    raise OSError(errno.EBADF, "another file now")


def _received(fd: int) -> int:
    """Return the bytes that a connection has received; 0 where the system does not tell, or it is closed."""
    if sys.platform != "linux":
        return 0
    with suppress(OSError):
        borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
        try:
            info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_RECEIVED + 8)
        finally:
            borrowed.detach()  # it is gRPC's
        if len(info) == _TCP_RECEIVED + 8:
            return int.from_bytes(info[_TCP_RECEIVED:], sys.byteorder)
    return 0
