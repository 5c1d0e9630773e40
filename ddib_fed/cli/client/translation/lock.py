"""One command at a time writes results to a folder; a second one is refused, and told the first one's process."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddib_fed.cli.client.delivery import durable_folder
from ddib_fed.errors import StateConflict

LOCK = ".ddib-translate.lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Inside, this process alone writes results to a folder, which is made if it is missing."""
    made = not out.exists()
    durable_folder(out)
    descriptor = _take(out / LOCK)
    try:
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with suppress(OSError):
                out.rmdir()


def _take(path: Path) -> int:
    """The open and locked file at a path, with this process in it."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise StateConflict(
                f"another command is writing to {path.parent} ({owner or 'it has just begun'})",
                hint="wait for it to end, or choose another --out folder",
                hop="client",
            ) from None
        except OSError:  # a file system without locks: a second run there is not noticed
            return descriptor
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its owner has removed it meanwhile
    with suppress(OSError):  # a full disk: only the message to others lacks the owner
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
