"""Creates model folders (mode 0700) and the files in them (mode 0600).

Weights can give away what they were trained on, so that a folder of them has mode 0700 and a file 0600,
whatever the umask. Reading asks for nothing: bundles that ship with the package can be read by everybody.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


def model_folder(path: Path) -> Path:
    """Make a folder for weights, of mode 0700; others lose their rights to one that is there. Parents are as usual."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    with suppress(PermissionError):  # somebody else's folder; the files in it are private all the same
        path.chmod(0o700)
    return path


def write_file(path: Path, data: bytes) -> None:
    """Write a file of mode 0600, and flush it to the disk."""
    with path.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move_into_place(staging: Path, path: Path) -> None:
    """Rename the finished folder; a bundle in its place is moved aside first and removed last."""
    if path.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
        path.rename(aside / path.name)
        staging.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        staging.rename(path)
    sync_folder(path.parent)


def copy_folder(source: Path, path: Path) -> None:
    """Copy a folder of weights, e.g. one that ships with the package; the copy is private, wherever it came from.

    Raises:
        FileExistsError: There is something already.
    """
    path.mkdir(mode=0o700, parents=True)
    for file in sorted(source.iterdir()):
        write_file(path / file.name, file.read_bytes())
    sync_folder(path)
