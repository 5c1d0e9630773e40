"""Writes files that only their owner may read, each as a whole or not at all.

The rule: a reader sees the old bytes or the new ones, never a part; and nothing is overwritten unless asked.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ddib_fed.errors import AlreadyExists, FileMissing, InputError

# A PEM chain, a peer file or a request is a few KiB.
MAX_SMALL_FILE_BYTES = 64 << 10


def private_folder(folder: Path) -> Path:
    """Create `folder` and its missing parents with mode 0700; others lose their rights to one that exists."""
    for parent in reversed(folder.parents):
        if not parent.exists():
            parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def write_private(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a file of mode 0600, durably and as a whole.

    Args:
        path: Where; its folder must exist.
        data: The whole content.
        overwrite: Whether a file that is there already is replaced.

    Raises:
        AlreadyExists: There is one, and `overwrite` is false.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _place(Path(temporary), path, overwrite=overwrite)
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_folder(path.parent)


def _place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
        return
    try:
        path.hardlink_to(temporary)
    except FileExistsError as exc:
        raise AlreadyExists(
            f"{path} exists and is not overwritten",
            hint=f"move {path} away first if it is meant to be replaced",
        ) from exc


def sync_folder(folder: Path) -> None:
    """Make names that came into a folder, or went from it, durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_small(path: Path, *, hint: str = "") -> bytes:
    """The whole of a file of at most `MAX_SMALL_FILE_BYTES`.

    Raises:
        FileMissing: There is no such file.
        InputError: It is larger, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SMALL_FILE_BYTES + 1)
    except FileNotFoundError as exc:
        raise FileMissing(f"there is no {path}", hint=hint) from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}", hint=hint) from exc
    if len(data) > MAX_SMALL_FILE_BYTES:
        raise InputError(f"{path} is larger than {MAX_SMALL_FILE_BYTES} bytes", hint=hint)
    return data
