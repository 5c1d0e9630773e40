"""What the wire is measured against: the same bytes over a TLS 1.3 socket of the standard library, to a process."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import ssl
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

MEBIBYTE = float(1 << 20)
PIECE = 1 << 20
KEEP, DROP = b"k", b"d"


class Raw:
    """A process that takes files, and the connection to it; `leaf` are a certificate and its key."""

    def __init__(self, leaf: tuple[Path, Path], folder: Path, most: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(leaf, folder, most, theirs), daemon=True)
        self._process.start()
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.minimum_version = ssl.TLSVersion.TLSv1_3
        # The same machine, and nobody's data.
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        self._socket = client.wrap_socket(socket.create_connection(("127.0.0.1", ours.recv())))

    def send(self, files: Sequence[bytes], *, keep: bool) -> float:
        """Return the MiB a second; with `keep` the other end hashes each file and writes it to the disk."""
        started = time.perf_counter()
        for file in files:
            self._socket.sendall((KEEP if keep else DROP) + len(file).to_bytes(8, "big"))
            data = memoryview(file)
            for start in range(0, len(data), PIECE):
                self._socket.sendall(data[start : start + PIECE])
            receive(self._socket, memoryview(bytearray(1)))
        return sum(map(len, files)) / MEBIBYTE / (time.perf_counter() - started)

    def close(self) -> None:
        self._socket.close()
        self._process.join(10)


def _serve(leaf: tuple[Path, Path], folder: Path, most: int, port: Connection[int, int]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(*leaf)
    buffer = memoryview(bytearray(most))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port.send(listening.getsockname()[1])
        with context.wrap_socket(listening.accept()[0], server_side=True) as connection:
            while kind := connection.recv(1):
                size = memoryview(bytearray(8))
                receive(connection, size)
                data = buffer[: int.from_bytes(size, "big")]
                receive(connection, data)
                if kind == KEEP:
                    hashlib.sha256(data).digest()
                    with (folder / "raw").open("wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                connection.sendall(b".")


def receive(connection: ssl.SSLSocket, buffer: memoryview) -> None:
    """Fill the buffer."""
    received = 0
    while received < len(buffer):
        count = connection.recv_into(buffer[received:])
        if count == 0:
            raise EOFError("the other end of the baseline is gone")
        received += count
