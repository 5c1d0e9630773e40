"""The database and the spool over restarts: swept, locked, versioned, private."""

import sqlite3

import pytest

from ddib_fed.errors import (
    ConfigError,
)
from source_node.database import SCHEMA
from source_node.store import JobStore
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


@pytest.mark.parametrize("other", [SCHEMA - 1, SCHEMA + 1])
def test_another_schema_is_refused(store, open_store, tmp_path, other):
    """It is not guessed at."""
    store.close()
    edit(tmp_path, f"PRAGMA user_version = {other}")
    with pytest.raises(ConfigError, match="another release"):
        open_store()
    edit(tmp_path, f"PRAGMA user_version = {SCHEMA}")
    open_store()


def test_a_damaged_database_is_refused_by_name(store, open_store, tmp_path):
    """Not opened as if it were empty."""
    store.close()
    for path in tmp_path.glob("jobs.sqlite-*"):
        path.unlink()
    (tmp_path / "jobs.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        open_store()
    (tmp_path / "jobs.sqlite").unlink()
