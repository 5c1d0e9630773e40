"""What tests do with an audit log beside its node: read it, write to it, and change it as somebody with `sqlite3`."""

import errno
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ddib_fed.security.audit import AuditLog, Head, Value, lines_of
from ddib_fed.store import NodeStore


def lines(path: Path) -> list[str]:
    return list(lines_of(path)) if path.exists() else []


def records(path: Path, *acts: str) -> list[dict]:
    """The lines of these acts, or all."""
    return [each for each in map(json.loads, lines(path)) if not acts or each.get("act") in acts]


@contextmanager
def opened(path: Path, **options) -> Iterator[AuditLog]:
    """The log, beside whoever has it open."""
    with closing(NodeStore(path, shared=True)) as store:
        yield AuditLog(store, **options)


def append(path: Path, act: str, **values: Value) -> Head:
    with opened(path) as log:
        return log.write(act, **values)


def edit(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement, values)


def put(path: Path, made: list[str]) -> None:
    """These lines and no others."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM audit")
        db.executemany("INSERT INTO audit (line) VALUES (?)", [(line,) for line in made])


def cut(path: Path, kept: int) -> None:
    """Without the lines after the first so many."""
    put(path, lines(path)[:kept])


def full_disk(patched: pytest.MonkeyPatch, store: type[NodeStore] | NodeStore = NodeStore) -> None:
    """Nothing can be committed to the database of this store, or of any."""

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    patched.setattr(store, "_commit", full)
