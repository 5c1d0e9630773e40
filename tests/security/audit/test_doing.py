"""Acts that are written down before they are done, and lists that are longer than a line holds."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from ddib_fed.security.audit import MAX_VALUES, AuditLog
from ddib_fed.security.audit_reading import verify


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "audit.jsonl"


@pytest.fixture
def log(path: Path) -> AuditLog:
    return AuditLog(path)


def records(path: Path) -> list[dict]:
    assert verify(path).ok
    return [json.loads(line) for line in path.read_text().splitlines()]


def acts(path: Path) -> list[str]:
    return [record["act"] for record in records(path)]


@pytest.mark.parametrize("count", [0, 1, MAX_VALUES, MAX_VALUES + 1, 1_000])
def test_nothing_of_a_list_is_left_out(log: AuditLog, path: Path, count: int) -> None:
    """A long one goes on in further lines, which say what the first says, and which part they are."""
    log.write("items_delivered", job="ab", items=list(range(count)), other=["x"])
    found = records(path)
    assert [item for record in found for item in record["items"]] == list(range(count))
    assert all(len(record["items"]) <= MAX_VALUES and record["job"] == "ab" for record in found)
    if len(found) > 1:
        parts = [(record["part"], record["parts"]) for record in found]
        assert parts == [(number + 1, len(found)) for number in range(len(found))]
    assert [record["other"] for record in found if record["other"]] == [["x"]]


def test_an_act_is_on_the_disk_before_it_is_done(log: AuditLog, path: Path) -> None:
    """And has one line if it is done."""
    with log.doing("items_delivered", [{"item": 1}, {"item": 2}]):
        assert acts(path) == ["items_delivered"] * 2
    log.write("next")
    assert acts(path) == ["items_delivered", "items_delivered", "next"]


def test_an_act_that_fails_is_taken_back(log: AuditLog, path: Path) -> None:
    """By a line that repeats what it said; the failure goes on."""
    with pytest.raises(ZeroDivisionError), log.doing("job_deleted", [{"job": "ab"}]):
        _ = 1 / 0
    done, back = records(path)
    assert (done["act"], done["job"]) == ("job_deleted", "ab")
    assert (back["act"], back["what"], back["job"]) == ("not_done", "job_deleted", "ab")


class Disk:
    """Refuses a call of `os`, as often as the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.failures, real = 0, getattr(os, name)

        def method(*arguments):
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments)

        monkeypatch.setattr(os, name, method)


def test_what_cannot_be_taken_back_now_is_before_the_next_line(
    log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails the act and its correction; whichever line or look is next has it, once."""
    disk = Disk(monkeypatch, "write")

    def fail(job: str) -> None:
        with log.doing("job_deleted", [{"job": job}]):
            disk.failures = 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail("ab")
    assert acts(path) == ["job_deleted"]
    assert "cannot be written" in (log.problem or "")
    log.write("next")
    log.write("next")
    assert acts(path) == ["job_deleted", "not_done", "next", "next"]
    assert log.problem is None
    with pytest.raises(ZeroDivisionError):
        fail("cd")
    log.look()
    log.look()
    assert acts(path)[4:] == ["job_deleted", "not_done"]


def test_an_act_whose_line_did_not_reach_the_disk_is_not_done_and_taken_back(
    log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is in the file all the same, and others read it there."""
    disk = Disk(monkeypatch, "fsync")
    disk.failures = 1
    with pytest.raises(OSError, match="Input/output"):
        log.doing("job_deleted", [{"job": "ab"}])
    log.write("next")
    assert acts(path) == ["job_deleted", "not_done", "next"]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_what_was_done_has_its_line_once_it_can_be_written(
    log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Once, before the next line; one that is in the file without having reached the disk is not repeated."""
    disk = Disk(monkeypatch, call)
    disk.failures = 1
    with pytest.raises(OSError, match="Input/output"):
        log.done("job_accepted", job="ab")
    log.write("next")
    found = [(record["act"], record.get("late")) for record in records(path)]
    assert found == [("job_accepted", True if call == "write" else None), ("next", None)]
