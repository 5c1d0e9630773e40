"""The audit log: what goes in, what a crash leaves, what tampering shows."""

import json
import math
import os
import resource
import threading
from datetime import UTC, datetime

import pytest

from ddib_fed.security.audit import FIRST, MAX_VALUE, AuditLog
from ddib_fed.security.audit_reading import verify


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "audit.jsonl"


@pytest.fixture
def log(path):
    return AuditLog(path, clock=lambda: datetime(2026, 1, 2, tzinfo=UTC))


def records(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_what_when_and_with_whom(log, path):
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


def test_the_file_is_private(log, path):
    """Mode 0600 in a folder of mode 0700."""
    log.write("started")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_whole_log_is_verified(log, path):
    """Every line, and the digest to note elsewhere."""
    for n in range(5):
        log.write("act", number=n)
    found = verify(path)
    assert (found.ok, found.lines, found.torn_bytes) == (True, 5, 0)
    assert len(found.head) == 64


def test_two_writers_share_one_chain(log, path):
    """The command line may write while the node runs."""
    other = AuditLog(path)
    for _ in range(3):
        log.write("node")
        other.write("command")
    assert (verify(path).ok, verify(path).lines) == (True, 6)


def test_threads_share_one_chain(log, path):
    """Each act has its line, none is torn."""
    threads = [threading.Thread(target=log.write, args=("act",), kwargs={"n_thread": n}) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (verify(path).ok, verify(path).lines) == (True, 16)


def test_a_torn_last_line_is_repaired_by_the_next_write(log, path):
    """And the repair is an act of its own."""
    log.write("started")
    with path.open("ab") as file:
        file.write(b'{"n":1,"ti')
    AuditLog(path).write("started")
    assert [r["act"] for r in records(path)] == ["started", "log_repaired", "started"]
    assert records(path)[1]["torn_bytes"] == 10
    assert verify(path).ok


def tampered(path, change) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[0], lines[1].replace(b"b", b"c"), *lines[2:]], 3),
        (lambda lines: [lines[0], *lines[2:]], 2),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3),
        (lambda lines: [*lines[:2], b"{}\n", *lines[2:]], 3),
        (lambda lines: [*lines[:2], b"[]\n", *lines[2:]], 3),
        (lambda lines: [*lines[:2], b"no json\n", *lines[2:]], 3),
    ],
)
def test_a_changed_log_shows_where(log, path, change, line):
    """Changed, dropped, exchanged, repeated and foreign lines."""
    for name in "abcd":
        log.write("act", who=name)
    tampered(path, change)
    found = verify(path)
    assert (found.ok, found.broken_line) == (False, line)
    assert found.problem


def test_a_cut_end_shows_against_a_noted_head(log, path):
    """The chain alone cannot tell; the head noted elsewhere can."""
    log.write("a")
    log.write("b")
    noted = verify(path).head
    tampered(path, lambda lines: lines[:1])
    assert verify(path).ok
    assert verify(path).head != noted


@pytest.mark.parametrize("value", [b"pixels", bytearray(3), {"a": 1}, object(), memoryview(b"x")])
def test_no_content_can_be_logged(log, value):
    """Bytes and structures are refused."""
    with pytest.raises(TypeError):
        log.write("act", value=value)


def test_long_text_is_cut_and_lines_stay_lines(log, path):
    """A newline in a value is no new line."""
    log.write("act", text="a\nb" * 1_000, number=math.inf)
    (record,) = records(path)
    assert (len(record["text"]), record["number"]) == (MAX_VALUE, "inf")


def test_an_act_is_on_the_disk_when_write_returns(log, path, monkeypatch):
    """The whole line is in the file when the file is synced, and nothing is written after that."""
    synced = []
    fsync = os.fsync

    def note(file):
        synced.append(path.read_bytes())
        fsync(file)

    monkeypatch.setattr(os, "fsync", note)
    for act in ("first", "second"):
        log.write(act)
        assert synced[-1] == path.read_bytes()
    assert len(synced) == 2


def test_a_disk_that_takes_half_a_line_is_an_error_and_is_repaired(log, path):
    """The act is not done; the next line begins anew."""
    log.write("first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError, match="only 10 of"):
            log.write("second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write("third")
    assert [record["act"] for record in records(path)] == ["first", "log_repaired", "third"]
    assert verify(path).ok
