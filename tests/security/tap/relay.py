"""A relay between two nodes that keeps every decrypted byte, connection by connection.

Its keys and roots are its own; both operators were made to admit them beside the true ones.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path

from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Peer, PeerStore, begin_node
from tests.e2e.harness import Pair

POLL_S = 0.5
"""At most so long after a connection was shut down a reader notices."""


@dataclass
class Connection:
    """What one connection carried, as HTTP/2 lies inside TLS."""

    to_target: bytearray = field(default_factory=bytearray)
    to_source: bytearray = field(default_factory=bytearray)


class Tap:
    """Listens as the target, dials the target as the source, and records both directions."""

    def __init__(
        self, upstream: int, target_pki: Path, source_pki: Path, *, source_roots: Path | None = None
    ) -> None:
        self.connections: list[Connection] = []
        self._upstream = upstream
        self._server = self._context(ssl.PROTOCOL_TLS_SERVER, target_pki)
        self._client = self._context(ssl.PROTOCOL_TLS_CLIENT, source_pki)
        self._client.check_hostname = False
        self._client.verify_mode = ssl.CERT_NONE
        self._server.verify_mode = ssl.CERT_REQUIRED
        self._server.load_verify_locations(source_roots or source_pki / "roots.pem")
        self._open: list[ssl.SSLSocket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def to_target(self) -> bytes:
        """Every byte on the way to the target, one connection behind the other."""
        return b"".join(connection.to_target for connection in self.connections)

    @property
    def to_source(self) -> bytes:
        """Every byte on the way back."""
        return b"".join(connection.to_source for connection in self.connections)

    @staticmethod
    def _context(protocol: int, pki: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.load_cert_chain(pki / "leaf.pem", pki / "leaf.key")
        context.set_alpn_protocols(["h2"])
        return context

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._relay, args=(plain,), daemon=True))
            self._threads[-1].start()

    def _relay(self, plain: socket.socket) -> None:
        try:
            near = self._server.wrap_socket(plain, server_side=True)
        except OSError:
            plain.close()
            return
        far = self._client.wrap_socket(socket.create_connection(("127.0.0.1", self._upstream)))
        kept = Connection()
        self.connections.append(kept)
        self._open.append(near)
        with near, far:
            ends = _End(near), _End(far)
            back = threading.Thread(target=self._pump, args=(*ends[::-1], kept.to_source), daemon=True)
            back.start()
            self._pump(*ends, kept.to_target)
            back.join()

    @staticmethod
    def _pump(source: _End, sink: _End, record: bytearray) -> None:
        try:
            while data := source.receive():
                record += data
                sink.send(data)
        except (OSError, ValueError):
            return
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End every connection, and wait until what it carried is recorded."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for near in self._open:
            with contextlib.suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=5)


class _End:
    """One end of a relayed connection, read by one thread and written by another."""

    def __init__(self, secured: ssl.SSLSocket) -> None:
        self.socket = secured
        self._lock = threading.Lock()
        secured.setblocking(False)

    def receive(self) -> bytes:
        """What came next; empty at the end."""
        while True:
            with self._lock:
                try:
                    return self.socket.recv(65_536)
                except ssl.SSLWantReadError:
                    pass
            select.select([self.socket], [], [], POLL_S)

    def send(self, data: bytes) -> None:
        """All of it."""
        left = memoryview(data)
        while left:
            with self._lock:
                try:
                    left = left[self.socket.send(left) :]
                    continue
                except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    pass
            select.select([], [self.socket], [], POLL_S)


def tap_between(pair: Pair, folder: Path) -> Tap:
    """From now on north reaches south through a tap; neither must run yet."""
    roots = {
        node.institution: begin_node(folder / node.institution, node.institution, "node-1").certificate
        for node in (pair.north, pair.south)
    }
    tap = Tap(
        pair.south.port,
        folder / pair.south.institution / "pki",
        folder / pair.north.institution / "pki",
        source_roots=pair.north.config.paths.pki / "roots.pem",
    )
    for node, other, port in ((pair.north, pair.south, tap.port), (pair.south, pair.north, pair.north.port)):
        true = pki.parse_certificates((other.config.paths.pki / "ca.pem").read_bytes(), "ca.pem")[0]
        both = (true, roots[other.institution])
        name = Identity(other.institution, "node", "node-1")
        peer = Peer(other.institution, name, f"localhost:{port}", both)
        PeerStore(node.config.paths.state, node.institution).add(
            peer, fingerprints=[pki.fingerprint(root) for root in both], replace=True
        )
    return tap
