"""Peers that are suspended: a file `INSTITUTION.suspended` beside the peer's own, durable until the peer is resumed.

The file's presence suspends; its content only says since when and why. So a damaged file suspends too.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ddib_fed.errors import InputError
from ddib_fed.files import sync_folder, write_file
from ddib_fed.terminal import escape

SUFFIX: Final = ".suspended"
FORMAT_VERSION: Final = 1
MAX_REASON: Final = 200
UNREADABLE: Final = "since an unknown time: its file cannot be read"


def mark(folder: Path, institution: str) -> Path:
    return folder / f"{institution}{SUFFIX}"


def suspend(folder: Path, institution: str, *, reason: str = "", now: datetime | None = None) -> bool:
    """Suspend a peer; durable when this returns."""
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise InputError(f"a reason is one printable line of at most {MAX_REASON} characters")
    path = mark(folder, institution)
    if path.exists():
        return False
    since = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    content = {"format_version": FORMAT_VERSION, "since": since, "reason": reason}
    write_file(path, (json.dumps(content) + "\n").encode(), private=True)
    return True


def resume(folder: Path, institution: str) -> bool:
    """Lift a suspension; durable when this returns."""
    path = mark(folder, institution)
    if not path.exists():
        return False
    path.unlink()
    sync_folder(folder)
    return True


def describe(content: bytes | str) -> str:
    """Since when and why a peer is suspended, one line."""
    try:
        found = json.loads(content)
        since, reason = str(found["since"])[:40], str(found["reason"])[:MAX_REASON]
    except (ValueError, TypeError, KeyError, RecursionError):
        return UNREADABLE
    return escape(f"since {since}: {reason}" if reason else f"since {since}")
