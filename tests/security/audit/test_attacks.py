"""What somebody with access to the file can do to a log while its node runs, and what the node and `verify` say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ddib_fed.security.audit import EMPTY, AuditLog, Head, digest, encoded, note
from ddib_fed.security.audit_reading import verify


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def log(path: Path) -> AuditLog:
    """Of a running node: ten lines."""
    made = AuditLog(path)
    for item in range(10):
        made.write("latent_sent", item=item)
    return made


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def chain(head: Head, acts: list[str]) -> bytes:
    """Lines that follow `head`, as somebody makes who knows the format."""
    made = b""
    for act in acts:
        line = encoded(head, "2026-01-01T00:00:00+00:00", act, {})
        head = Head(head.n + 1, digest(line))
        made += line
    return made


def cut_at_a_line(path: Path) -> None:
    path.write_bytes(b"".join(lines(path)[:6]))


def cut_inside_a_line(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def removed(path: Path) -> None:
    path.unlink()


def cut_and_grown(path: Path) -> None:
    kept = b"".join(lines(path)[:6])
    head = Head(5, verify_bytes(path, kept))
    path.write_bytes(kept + chain(head, ["job_accepted"] * 12))


def rewritten(path: Path) -> None:
    path.write_bytes(chain(EMPTY, ["latent_sent"] * 40))


def replaced_by_an_older_copy(path: Path) -> None:
    older = path.with_suffix(".old")
    older.write_bytes(b"".join(lines(path)[:8]))
    older.replace(path)


def replaced_by_a_copy(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


def verify_bytes(path: Path, data: bytes) -> str:
    aside = path.with_suffix(".aside")
    aside.write_bytes(data)
    return verify(aside).head


ATTACKS = {
    "cut": (cut_at_a_line, "was cut"),
    "cut in a line": (cut_inside_a_line, "was cut"),
    "emptied": (emptied, "was cut"),
    "removed": (removed, "was replaced by another file"),
    "cut, and grown again": (cut_and_grown, "was rewritten"),
    "rewritten": (rewritten, "was rewritten"),
    "rolled back": (replaced_by_an_older_copy, "was replaced by another file"),
    "replaced by its copy": (replaced_by_a_copy, "was replaced by another file"),
}


@pytest.mark.parametrize(("attack", "what"), ATTACKS.values(), ids=ATTACKS)
def test_the_next_line_shows_what_was_done_to_the_log(log: AuditLog, path: Path, attack, what: str) -> None:
    """The node says so with the remedy, and goes on from the line in memory: the chain is broken at that place."""
    held = log.head
    attack(path)
    log.write("latent_sent", item=10)
    assert log.problem is not None
    assert what in log.problem
    assert held.sha256 in log.problem
    assert "ddib audit verify" in log.problem
    found = verify(path)
    assert not found.ok
    assert what in found.problem or "JSON" in found.problem
    last, act = map(json.loads, lines(path)[-2:])
    assert (last["act"], last["n"], last["previous"]) == ("log_altered", held.n + 1, held.sha256)
    assert (act["act"], act["n"]) == ("latent_sent", held.n + 2)


@pytest.mark.parametrize(("attack", "what"), ATTACKS.values(), ids=ATTACKS)
def test_a_node_that_writes_nothing_notices_as_well(log: AuditLog, path: Path, attack, what: str) -> None:
    """At its periodic check, once: what it notes does not look like an attack to the next check."""
    assert log.look() is None
    size = path.stat().st_size
    attack(path)
    assert what in (log.look() or "")
    noted = path.stat().st_size
    assert what in (log.look() or "")
    assert path.stat().st_size == noted != size


def test_what_was_cut_while_the_node_ran_no_longer_verifies(log: AuditLog, path: Path) -> None:
    """Cut, and written to again: the chain of such a log was whole before, and nobody noticed."""
    cut_at_a_line(path)
    log.write("latent_sent", item=10)
    found = verify(path)
    assert (found.ok, found.broken_line) == (False, 7)


def test_a_broken_log_is_a_problem_from_the_start(log: AuditLog, path: Path) -> None:
    """A restart alone does not make it good; moving the file away does."""
    cut_at_a_line(path)
    log.write("latent_sent", item=10)
    restarted = AuditLog(path)
    restarted.write("node_started")
    assert "broken near its end, after line 6" in (restarted.problem or "")
    path.rename(path.with_suffix(".kept"))
    fresh = AuditLog(path)
    fresh.write("node_started")
    assert fresh.problem is None
    assert verify(path).ok


def test_a_command_does_not_act_without_its_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that nothing was done."""
    from ddib_fed.errors import ConfigError

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="nothing was done: No space left"):
        note(path, "peer_added")


def test_a_log_that_cannot_be_written_is_a_problem_until_it_can(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the node's state."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.write("latent_sent", item=10)
    assert "No space left" in (log.problem or "")
    log.write("latent_sent", item=11)
    assert log.problem is None
