"""The database and the spool over restarts: swept, locked, versioned, private."""

import sqlite3

import pytest

from ddib_fed.errors import (
    ConfigError,
)
from source_node.jobs.database import MIGRATIONS
from source_node.jobs.store import (
    JobStore,
)
from tests.source_node.jobs.job_examples import (
    files,
    running,
    submit,
)


def test_a_start_sweeps_what_a_kill_left(store, open_store, tmp_path):
    """Files without a row; never one with a row."""
    job = running(store)
    (tmp_path / "spool" / job.job_id / "0.translation").write_bytes(b"torn")
    leftover = tmp_path / "spool" / f".{'a' * 32}"
    leftover.mkdir()
    (leftover / "0.input").write_bytes(b"x")
    again = open_store()
    assert again.swept_files == 2
    assert files(tmp_path) == {"0.input"}


def test_boots_are_counted(store, open_store):
    """Sequences of events build on it."""
    assert [store.boot, open_store().boot, open_store().boot] == [1, 2, 3]


def test_two_nodes_do_not_share_a_store(store, tmp_path):
    """The second gets an error with the reason."""
    with pytest.raises(ConfigError, match="another node is running"):
        JobStore(tmp_path / "jobs.sqlite", tmp_path / "spool")


def test_the_database_is_private_and_durable(store, tmp_path):
    """Mode 0600 for all its files; WAL, FULL, foreign keys."""
    submit(store)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("jobs.sqlite*")} == {0o600}
    found = [
        store._db.read(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "foreign_keys")
    ]
    assert found == ["wal", 2, 1]


def edit(tmp_path, statement: str) -> None:
    connection = sqlite3.connect(tmp_path / "jobs.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_newer_schema_is_refused(store, open_store, tmp_path):
    """It is not guessed at."""
    store.close()
    edit(tmp_path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(ConfigError, match="newer release"):
        open_store()
    edit(tmp_path, f"PRAGMA user_version = {len(MIGRATIONS)}")
    open_store()


def test_ranges_of_rows_one_behind_the_other_go_with_their_schema(store, open_store, tmp_path):
    """A range is every n-th row now: what an earlier release made of an item would be put in other places."""
    job = submit(store).job_id
    store.close()
    columns = "job_id, item, part, media_type, size_bytes, sha256"
    for part in ("encoded", "encoded.0", "encoded.12"):
        edit(tmp_path, f"INSERT INTO parts ({columns}) VALUES ('{job}', 0, '{part}', 0, 1, x'00')")
    edit(tmp_path, f"PRAGMA user_version = {len(MIGRATIONS) - 1}")
    again = open_store()
    assert not again.ranges(job, 0)
    assert "encoded" in {str(part) for part in again.parts(job, 0)}


def test_a_damaged_database_is_refused_by_name(store, open_store, tmp_path):
    """Not opened as if it were empty."""
    store.close()
    for path in tmp_path.glob("jobs.sqlite-*"):
        path.unlink()
    (tmp_path / "jobs.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        open_store()
    (tmp_path / "jobs.sqlite").unlink()


def test_a_transaction_that_fails_changes_nothing(store):
    """All of it or none."""

    def insert_twice() -> None:
        with store._db.transaction() as db:
            for value in (1, 2):
                db.execute("INSERT INTO node_state VALUES ('x', ?)", (value,))

    with pytest.raises(sqlite3.IntegrityError):
        insert_twice()
    assert store._db.read("SELECT * FROM node_state WHERE key = 'x'") == []
