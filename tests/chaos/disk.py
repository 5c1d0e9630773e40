"""A disk that fails in a running node: everything that the node writes meets the error that a test names in a file."""

import builtins
import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

from tests.e2e import impatience

FILE = "DDIB_TESTS_DISK"
"""Names the file that holds the error's name, e.g. ENOSPC; the disk is well while it is not there."""
STATE = "DDIB_TESTS_DISK_STATE"
"""Names the folder whose files meet it."""
PLANTED = "tests.chaos.disk:plant"

SQLITE = {"ENOSPC": sqlite3.SQLITE_FULL, "EIO": sqlite3.SQLITE_IOERR, "EROFS": sqlite3.SQLITE_READONLY}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def failing() -> str | None:
    """The name of the error that writes meet now."""
    try:
        return Path(os.environ[FILE]).read_text() or None
    except FileNotFoundError:
        return None


def _check(where: object = None) -> None:
    name = failing()
    if name is not None and (where is None or os.fspath(str(where)).startswith(os.environ[STATE])):
        code = getattr(errno, name)
        raise OSError(code, os.strerror(code), str(where or ""))


class Connection(sqlite3.Connection):
    """Refuses to write while the disk fails."""

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        name = failing()
        if name is not None and statement.partition(" ")[0] in {"INSERT", "UPDATE", "DELETE", "COMMIT"}:
            error = sqlite3.OperationalError(f"planted {name}")
            error.sqlite_errorcode = SQLITE[name]
            raise error
        return super().execute(statement, *values)


def plant() -> None:
    """In a node's process, before it starts, which is impatient too."""
    impatience.plant()
    _wrap_os()
    connect = sqlite3.connect

    def connecting(*arguments: Any, **named: Any) -> sqlite3.Connection:
        return connect(*arguments, **named, factory=Connection)

    sqlite3.connect = connecting


def _wrap_os() -> None:
    opened, written, synced, renamed, made = os.open, os.write, os.fsync, os.replace, os.mkdir
    plain = builtins.open

    def open_file(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & WRITES:
            _check(path)
        return opened(path, flags, *rest, **named)

    def fsync(descriptor: int) -> None:
        _check(Path(f"/proc/self/fd/{descriptor}").readlink())
        synced(descriptor)

    def write(descriptor: int, data: Any) -> int:
        _check(Path(f"/proc/self/fd/{descriptor}").readlink())
        return written(descriptor, data)

    def replace(source: Any, target: Any, **named: Any) -> None:
        _check(target)
        renamed(source, target, **named)

    def mkdir(path: Any, *rest: Any, **named: Any) -> None:
        _check(path)
        made(path, *rest, **named)

    def open_plain(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if set(mode) & set("wax+") and not isinstance(file, int):
            _check(file)
        return plain(file, mode, *rest, **named)

    os.open, os.fsync, os.write, os.replace, os.mkdir = open_file, fsync, write, replace, mkdir
    builtins.open = open_plain
