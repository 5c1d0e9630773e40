"""Wires that are slow or break, and a file system that is small."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def wire(port: int, *, per_second: int = 0, most: int = 0, silent: bool = False) -> Iterator[int]:
    """Forward a port at so many bytes a second, or until so many, perhaps without a word to the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def forward() -> None:
        near, _ = server.accept()
        far = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=copy, args=(far, near, 0, 0), daemon=True).start()
        copy(near, far, per_second, most)
        near.shutdown(socket.SHUT_RDWR)
        if not silent:
            far.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=forward, daemon=True).start()
    with server:
        yield server.getsockname()[1]


def copy(source: socket.socket, sink: socket.socket, per_second: int, most: int) -> None:
    """Copy what comes until it ends, or until so many bytes."""
    passed = 0
    with contextlib.suppress(OSError):
        while part := source.recv(max(per_second // 4, 1) if per_second else 4096):
            sink.sendall(part)
            passed += len(part)
            if most and passed > most:
                return
            if per_second:
                time.sleep(0.25)


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """Mount a file system of this size in memory, as root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path, mebibytes: int) -> None:
    """Write a file of this size, or as much of it as the disk takes."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for _ in range(mebibytes):
            file.write(bytes(1 << 20))
