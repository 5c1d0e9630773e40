"""The node's database: private, of one process, and each write on the disk as a whole or not at all."""

import errno
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError, DiskFull
from ddib_fed.store import SCHEMA, TOGETHER, NodeStore, Transaction
from tests import audit_rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "node.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[NodeStore]:
    with closing(NodeStore(path)) as made:
        yield made


def put(key: str):
    def write(db: Transaction) -> str:
        db.execute("INSERT INTO node_state (key, value) VALUES (?, 1)", (key,))
        return key

    return write


def keys(store: NodeStore) -> list[str]:
    return [row["key"] for row in store.read("SELECT key FROM node_state ORDER BY key")]


def test_the_database_is_private_and_durable(store: NodeStore, path: Path) -> None:
    """Mode 0600 for all its files in a folder of 0700; WAL, FULL, foreign keys."""
    store.write(put("a")).result(60)
    assert {file.stat().st_mode & 0o777 for file in path.parent.glob("node.sqlite*")} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    names = ("journal_mode", "synchronous", "foreign_keys")
    assert [store._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in names] == ["wal", 2, 1]


@contextmanager
def waiting_writes(store: NodeStore) -> Iterator[None]:
    """Inside, writes wait for one that is held."""
    entered, go = threading.Event(), threading.Event()

    def hold(_: Transaction) -> None:
        entered.set()
        assert go.wait(60)

    held = store.write(hold)
    assert entered.wait(60)
    yield
    go.set()
    held.result(60)


def test_writes_that_wait_are_one_commit_and_each_fails_alone(store: NodeStore) -> None:
    def broken(db: Transaction) -> None:
        put("broken")(db)
        raise ValueError("wrong")

    with waiting_writes(store):
        before = store.commits
        futures = [store.write(put(key)) for key in "abc"]
        failed = store.write(broken)
        futures.append(store.write(put("d")))
    assert [future.result(60) for future in futures] == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="wrong"):
        failed.result(60)
    assert (keys(store), store.commits) == (["a", "b", "c", "d"], before + 1)


@pytest.mark.parametrize("end", ["flush", "another", "close"])
def test_patient_writes_go_together_with_what_does_not_wait(store: NodeStore, monkeypatch, end: str) -> None:
    monkeypatch.setattr("ddib_fed.store.PATIENCE_S", 60.0)
    patient = [store.write(put(f"{n:02}"), patient=True) for n in range(TOGETHER - 1)]
    assert not wait(patient, timeout=0.1).done
    {"flush": store.flush, "another": lambda: store.write(put("x")), "close": store.close}[end]()
    assert [future.result(60) for future in patient] == [f"{n:02}" for n in range(TOGETHER - 1)]
    assert store.commits == 1


def test_a_file_is_on_the_disk_with_its_row_or_goes(store: NodeStore, path: Path) -> None:
    """`afterwards` is called once the rows are there, `undo` if they are not."""
    called: list[tuple[str, list[str]]] = []

    def write(db: Transaction, fails: bool) -> None:
        file = path.with_name("file")
        file.write_bytes(b"x")
        db.written.append(str(file))
        db.afterwards.append(lambda: called.append(("afterwards", keys(store))))
        db.undo.append(lambda: called.append(("undo", keys(store))))
        put(f"{fails}")(db)
        if fails:
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - the only one
        store.write(lambda db: write(db, True)).result(60)
    store.write(lambda db: write(db, False)).result(60)
    assert called == [("undo", []), ("afterwards", ["False"])]


class FailingConnection:
    """A connection whose statements of one kind meet an error of SQLite's."""

    def __init__(self, real: sqlite3.Connection, code: int, word: str) -> None:
        self._real, self._code, self._word = real, code, word

    def __getattr__(self, name: str):
        return getattr(self._real, name)

    def execute(self, statement: str, *values):
        if statement.startswith(self._word):
            error = sqlite3.OperationalError("planted")
            error.sqlite_errorcode = self._code
            raise error
        return self._real.execute(statement, *values)


# The extended codes that SQLite gives: a failed sync, and a database moved away.
@pytest.mark.parametrize(
    ("code", "number"),
    [(sqlite3.SQLITE_IOERR | 4 << 8, errno.EIO), (sqlite3.SQLITE_READONLY | 4 << 8, errno.EROFS)],
)
@pytest.mark.parametrize("word", ["INSERT", "COMMIT"])
def test_a_disk_that_fails_is_an_os_error(store: NodeStore, code: int, number: int, word: str) -> None:
    real = store._writer
    store._writer = FailingConnection(real, code, word)  # type: ignore[assignment]
    with pytest.raises(OSError, match="database failed") as failed:
        store.write(put("x")).result(60)
    assert failed.value.errno == number
    store._writer = real
    store.write(put("y")).result(60)
    assert (keys(store), store.problem) == (["y"], None)


@pytest.mark.parametrize(
    ("code", "left"), [(sqlite3.SQLITE_IOERR | 4 << 8, []), (sqlite3.SQLITE_FULL, ["undone"])]
)
def test_files_stay_where_a_failed_commit_may_be_on_the_disk(store, code, left):
    """Their rows would name files that are gone; of a full disk it is certain that nothing was committed."""
    undone: list[str] = []

    def write(db: Transaction) -> None:
        db.undo.append(lambda: undone.append("undone"))
        put("x")(db)

    real = store._writer
    store._writer = FailingConnection(real, code, "COMMIT")  # type: ignore[assignment]
    with pytest.raises((OSError, DiskFull)):
        store.write(write).result(60)
    store._writer = real
    assert undone == left


def test_a_full_disk_and_our_own_bugs_are_told_apart(store: NodeStore) -> None:
    """The first passes, and is a problem until something is written; a statement that is wrong is not."""
    real = store._writer
    store._writer = FailingConnection(real, sqlite3.SQLITE_FULL, "COMMIT")  # type: ignore[assignment]
    with pytest.raises(DiskFull):
        store.write(put("x")).result(60)
    assert "cannot be written" in (store.problem or "")
    store._writer = real
    with pytest.raises(sqlite3.OperationalError):
        store.write(lambda db: db.execute("INSERT INTO nowhere VALUES (1)")).result(60)
    store.write(put("y")).result(60)
    assert store.problem is None


def test_a_database_that_was_replaced_is_not_written_any_more(store: NodeStore, path: Path) -> None:
    """What is written there would be lost at the next start; the operator is told."""
    store.write(put("a")).result(60)
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    with pytest.raises(OSError, match="replaced or removed"):
        store.write(put("b")).result(60)
    assert "replaced or removed" in (store.problem or "")


def test_a_command_writes_beside_the_node_and_no_other_node_does(store: NodeStore, path: Path) -> None:
    with pytest.raises(ConfigError, match="another node is running"):
        NodeStore(path)
    with closing(NodeStore(path, shared=True)) as command:
        command.write(put("command")).result(60)
    store.write(put("node")).result(60)
    assert keys(store) == ["command", "node"]


def test_another_schema_and_a_damaged_database_are_refused_by_name(path: Path) -> None:
    NodeStore(path).close()
    audit_rows.edit(path, f"PRAGMA user_version = {SCHEMA + 1}")
    with pytest.raises(ConfigError, match="another release"):
        NodeStore(path)
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        NodeStore(path)
