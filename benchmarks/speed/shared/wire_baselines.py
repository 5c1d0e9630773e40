"""What the wire is measured against: the same bytes over a TLS 1.3 socket."""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from multiprocessing.connection import Connection
from pathlib import Path

from ddib_fed.networks.placement import keep_freed_memory, share_heaps

LATENT_BYTES = 64 << 20
PIECE = 1 << 20
MEBIBYTE = float(1 << 20)


def as_nodes_do() -> None:
    share_heaps()
    keep_freed_memory()


def serve_raw(folder: Path, port: Connection, rows_back: int) -> None:
    """Takes latents over TLS 1.3 into one buffer, and sends as much back as the node does."""
    as_nodes_do()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "state/pki/leaf.pem", folder / "state/pki/leaf.key")
    buffer = memoryview(bytearray(LATENT_BYTES))
    back = buffer[: rows_back * 8]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port.send(listening.getsockname()[1])
        with context.wrap_socket(listening.accept()[0], server_side=True) as connection:
            while digest := connection.recv(1):
                receive(connection, buffer)
                if digest == b"d":
                    hashlib.sha256(buffer).digest()
                connection.sendall(back)


def receive(connection: ssl.SSLSocket, buffer: memoryview) -> None:
    """Fill the buffer."""
    received = 0
    while received < len(buffer):
        count = connection.recv_into(buffer[received:])
        if count == 0:
            raise EOFError("the other end of the baseline is gone")
        received += count


class Raw:
    """The sender's half of the baseline."""

    def __init__(self, port: int, data: memoryview, rows_back: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname, context.verify_mode = (
            False,
            ssl.CERT_NONE,
        )  # the same machine, and nobody's data
        self._socket = context.wrap_socket(socket.create_connection(("127.0.0.1", port)))
        self._data = data
        self._back = memoryview(bytearray(rows_back * 8))

    def run(self, items: int, *, digest: bool = False) -> float:
        """MiB of latents a second, with their digests at the receiver or without."""
        started = time.perf_counter()
        for _ in range(items):
            self._socket.sendall(b"d" if digest else b"-")
            for start in range(0, len(self._data), PIECE):
                self._socket.sendall(self._data[start : start + PIECE])
            receive(self._socket, self._back)
        return items * LATENT_BYTES / MEBIBYTE / (time.perf_counter() - started)

    def close(self) -> None:
        self._socket.close()
