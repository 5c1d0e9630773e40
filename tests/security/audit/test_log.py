"""The audit log: what goes in, what tampering shows, and what a running node says of it."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError
from ddib_fed.security.audit import EMPTY, FIRST, MAX_VALUE, AuditLog, Head, digest, encoded, note
from ddib_fed.security.audit_reading import verify
from ddib_fed.store import NodeStore, Transaction
from tests import audit_rows
from tests.audit_rows import append, cut, edit, lines, put, records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "node.sqlite"


@pytest.fixture
def log(path: Path) -> Iterator[AuditLog]:
    with closing(NodeStore(path)) as store:
        yield AuditLog(store, clock=lambda: datetime(2026, 1, 2, tzinfo=UTC))


def test_a_line_says_what_when_and_with_whom(log, path) -> None:
    """And carries its number and the digest of the line before it."""
    log.write("latent_sent", peer="south.example", latent="ab" * 32, item=3, items=[1, 2], ok=True, why=None)
    (record,) = records(path)
    assert record == {
        "n": 0,
        "time": "2026-01-02T00:00:00+00:00",
        "act": "latent_sent",
        "previous": FIRST,
        "peer": "south.example",
        "latent": "ab" * 32,
        "item": 3,
        "items": [1, 2],
        "ok": True,
        "why": None,
    }
    head = log.write("next")
    assert (records(path)[1]["previous"], log.head) == (digest(lines(path)[0]), head)


@pytest.mark.parametrize("value", [b"pixels", {"a": 1}, object(), memoryview(b"x")])
def test_no_content_can_be_logged(log, value) -> None:
    """Bytes and structures are refused."""
    with pytest.raises(TypeError):
        log.write("act", value=value)


def test_long_text_is_cut(log, path) -> None:
    """A newline in a value is no new line; nothing of a list is left out."""
    log.write("act", text="a\nb" * 1_000, number=math.inf, changes=["1" * 300, *map(str, range(100))])
    (record,) = records(path)
    assert (len(record["text"]), record["number"]) == (MAX_VALUE, "inf")
    assert record["changes"] == ["1" * MAX_VALUE, *map(str, range(100))]


def test_threads_and_commands_share_one_chain(log, path) -> None:
    """Each act has its line."""
    threads = [threading.Thread(target=log.write, args=("act",), kwargs={"thread": n}) for n in range(16)]
    for thread in threads:
        thread.start()
    append(path, "command")
    for thread in threads:
        thread.join()
    log.write("node")
    assert (verify(path).ok, verify(path).lines, log.problem) == (True, 18, None)


def chain(head: Head, acts: list[str]) -> list[str]:
    """Lines that follow `head`, as somebody makes who knows the format."""
    made = []
    for act in acts:
        made.append(encoded(head, "2026-01-01T00:00:00+00:00", act, {}))
        head = Head(head.n + 1, digest(made[-1]))
    return made


CHANGES = {
    "changed": (lambda all_: [all_[0], all_[1].replace('"b"', '"c"'), *all_[2:]], 3),
    "dropped": (lambda all_: [all_[0], *all_[2:]], 2),
    "exchanged": (lambda all_: [all_[1], all_[0], *all_[2:]], 1),
    "repeated": (lambda all_: [*all_[:2], all_[1], *all_[2:]], 3),
    "foreign": (lambda all_: [*all_[:2], "{}", *all_[2:]], 3),
    "no JSON": (lambda all_: [*all_[:2], "no json", *all_[2:]], 3),
}


@pytest.mark.parametrize(("change", "line"), CHANGES.values(), ids=CHANGES)
def test_a_changed_log_shows_where(path, change, line) -> None:
    for name in "abcd":
        append(path, "act", who=name)
    put(path, change(lines(path)))
    found = verify(path)
    assert (found.ok, found.broken_line) == (False, line)
    assert found.problem


def test_a_cut_end_shows_against_a_noted_head(path) -> None:
    """The chain alone cannot tell; the head noted elsewhere can."""
    append(path, "a")
    append(path, "b")
    noted = verify(path).head
    assert verify(path, noted=noted).ok
    cut(path, 1)
    assert verify(path).ok
    assert not verify(path, noted=noted).ok


# What somebody with access to the file can do while the node runs

ATTACKS = {
    "cut": (lambda path: cut(path, 6), "was cut"),
    "emptied": (lambda path: cut(path, 0), "was cut"),
    "cut, and grown again": (
        lambda path: put(path, [*(kept := lines(path)[:6]), *chain(Head(5, digest(kept[-1])), ["act"] * 12)]),
        "was rewritten",
    ),
    "rewritten": (lambda path: put(path, chain(EMPTY, ["latent_sent"] * 40)), "was rewritten"),
    "grown by foreign lines": (
        lambda path: edit(path, "INSERT INTO audit (line) VALUES ('{}')"),
        "has lines that do not follow the others",
    ),
}


@pytest.mark.parametrize(("attack", "what"), ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("writes", [True, False])
def test_a_running_node_notices_an_altered_log(log: AuditLog, path: Path, attack, what: str, writes) -> None:
    """At its next line or its periodic check, with the remedy; the chain goes on from the line in memory."""
    for item in range(10):
        log.write("latent_sent", item=item)
    assert log.look() is None
    held = log.head
    attack(path)
    if writes:
        log.write("latent_sent", item=10)
    assert what in (log.look() or "")
    noted = len(lines(path))
    assert what in (log.look() or "")
    assert len(lines(path)) == noted
    assert held.sha256 in (log.problem or "")
    found = verify(path)
    assert not found.ok
    altered = records(path, "log_altered")
    assert [(each["n"], each["previous"]) for each in altered] == [(held.n + 1, held.sha256)]
    if writes:
        assert json.loads(lines(path)[-1])["n"] == held.n + 2


def test_a_broken_log_is_a_problem_from_the_start(path: Path) -> None:
    """A restart alone does not make it good."""
    for item in range(10):
        append(path, "latent_sent", item=item)
    edit(path, "DELETE FROM audit WHERE number = 7")
    with closing(NodeStore(path)) as store:
        restarted = AuditLog(store)
        restarted.write("node_started")
        assert "broken near its end, after line 6" in (restarted.problem or "")


def test_a_command_does_not_act_without_its_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that nothing was done."""
    audit_rows.full_disk(monkeypatch)
    with pytest.raises(ConfigError, match="nothing was done"):
        note(path, "peer_added")


def test_what_a_command_could_not_do_is_taken_back(path: Path) -> None:
    """With the act and its values."""
    with pytest.raises(RuntimeError), note(path, "peer_removed", peer="south.example"):
        raise RuntimeError("the folder cannot be written")
    with note(path, "peer_removed", peer="west.example"):
        pass
    found = [(each["act"], each["peer"], each.get("what")) for each in records(path)]
    assert found == [
        ("peer_removed", "south.example", None),
        ("not_done", "south.example", "peer_removed"),
        ("peer_removed", "west.example", None),
    ]


def test_a_log_that_cannot_be_written_is_a_problem_until_it_can(log: AuditLog, monkeypatch) -> None:
    """For the node's state; the caller must not act."""
    with monkeypatch.context() as patched:
        audit_rows.full_disk(patched)
        with pytest.raises(OSError, match="full"):
            log.write("latent_sent", item=10)
    assert "cannot be written" in (log.problem or "")
    log.write("latent_sent", item=11)
    assert log.problem is None


def test_a_full_disk_is_no_tampering(log: AuditLog, path: Path) -> None:
    """Of one transaction: a line, a write that fails, another line, and then the disk; no line of it is there."""
    log.write("latent_sent", item=1)
    entered, go = threading.Event(), threading.Event()

    def hold(_: Transaction) -> None:
        entered.set()
        assert go.wait(20)

    def broken(_: Transaction) -> None:
        raise ValueError("wrong")

    def to_a_full_disk(transaction: Transaction) -> None:
        log.append(transaction, "latent_sent", item=3)
        transaction.written.append(str(path.parent / "missing" / "file"))

    held = log.store.write(hold)
    assert entered.wait(20)
    writes = [
        log.store.write(lambda transaction: log.append(transaction, "latent_sent", item=2)),
        log.store.write(broken),
        log.store.write(to_a_full_disk),
    ]
    go.set()
    held.result(20)
    assert all(write.exception(20) for write in writes)
    assert "cannot be written" in (log.problem or "")
    assert log.look() is None  # a look shows that the disk is well again
    log.write("latent_sent", item=4)
    assert log.look() is None
    assert [each["item"] for each in records(path)] == [1, 4]
