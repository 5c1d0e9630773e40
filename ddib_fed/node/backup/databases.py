"""Copies and checks of SQLite databases."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from ddib_fed.errors import ChunkCorrupt, InputError

_HEADER: Final = b"SQLite format 3\x00"
_WAIT_S: Final = 30.0


def is_database(path: Path) -> bool:
    """Whether a file is an SQLite database."""
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER


def copy_database(source: Path, target: Path) -> None:
    """A copy of a database as it is at one moment, whoever writes to it meanwhile.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with (
            closing(sqlite3.connect(source, timeout=_WAIT_S)) as live,
            closing(sqlite3.connect(target)) as copy,
        ):
            live.backup(copy)
    except sqlite3.Error as error:
        raise InputError(f"{source} cannot be copied: {error}") from error


def check_database(path: Path) -> None:
    """Return if a database is whole; it is not changed.

    Raises:
        ChunkCorrupt: It is not.
    """
    try:
        # Immutable: a database in WAL mode would otherwise get files beside it.
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as database:
            answer = database.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        raise ChunkCorrupt(f"{path.name} in the backup cannot be read: {error}") from error
    if answer != "ok":
        raise ChunkCorrupt(f"{path.name} in the backup is damaged: {str(answer)[:80]}")
