"""Turns the figures of a run into a file of JSON.

A file appears whole or not at all, and survives a power cut once written (fsync, then rename).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file atomically: to a temporary name beside it, synced, then renamed over it.

    Args:
        path: Where.
        content: The whole of it.
        private: Mode 0600, whatever the umask and the file before it, for weights and what they are made from.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600 if private else 0o666), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as indented JSON, atomically; NaN and infinity are refused, since JSON has neither.

    Raises:
        ValueError: A figure is not finite or is no JSON value.
    """
    text = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file of JSON; None when there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
