"""Copies and checks of SQLite databases."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from ddib_fed.errors import ChunkCorrupt, InputError

HEADER: Final = b"SQLite format 3\x00"
"""The first bytes of a database."""
_WAIT_S: Final = 30.0
# Bytes that say whether a database is in WAL mode, and what they are without.
_JOURNAL, _NO_WAL = slice(18, 20), b"\x01\x01"


def is_database(path: Path) -> bool:
    """Whether a file is an SQLite database."""
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER


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
            _require_whole(database, path.name)
    except sqlite3.Error as error:
        raise ChunkCorrupt(f"{path.name} in the backup cannot be read: {error}") from error


def check_content(name: str, content: bytes) -> None:
    """As `check_database`, of a database in memory.

    Args:
        name: Its file's, for the error.
        content: All of it.

    Raises:
        ChunkCorrupt: It is not whole.
    """
    plain = bytearray(content)
    plain[_JOURNAL] = _NO_WAL  # there is no WAL in memory, and SQLite would look for one
    try:
        with closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(bytes(plain))
            _require_whole(database, name)
    except sqlite3.Error as error:
        raise ChunkCorrupt(f"{name} in the backup cannot be read: {error}") from error


def _require_whole(database: sqlite3.Connection, name: str) -> None:
    answer = database.execute("PRAGMA integrity_check").fetchone()[0]
    if answer != "ok":
        raise ChunkCorrupt(f"{name} in the backup is damaged: {str(answer)[:80]}")
