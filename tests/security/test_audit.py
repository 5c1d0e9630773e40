"""The audit log: what goes in, what tampering shows, what a running node says of it, and what a peer noted of it."""

import json
import math
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ddib_fed.errors import InputError
from ddib_fed.security import audit
from ddib_fed.security.identity import Identity
from ddib_fed.store import NodeStore, Transaction
from ddib_fed.v1.common_pb2 import AuditHead
from tests.audit_rows import append, cut, edit, lines, opened, put, records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "node.sqlite"


def verify(path: Path, *, noted: str | None = None, anchors: audit.Noted | None = None) -> audit.Verified:
    return audit.verify(audit.lines_of(path), noted=noted, anchors=anchors)


@pytest.fixture
def log(path: Path) -> Iterator[audit.AuditLog]:
    with closing(NodeStore(path)) as store:
        yield audit.AuditLog(store, clock=lambda: datetime(2026, 1, 2, tzinfo=UTC))


def test_a_line_says_what_when_and_with_whom(log, path) -> None:
    log.write("latent_sent", peer="south.example", latent="ab" * 32, item=3, items=[1, 2], ok=True, why=None)
    (record,) = records(path)
    assert record == {
        "n": 0,
        "time": "2026-01-02T00:00:00+00:00",
        "act": "latent_sent",
        "previous": audit.FIRST,
        "peer": "south.example",
        "latent": "ab" * 32,
        "item": 3,
        "items": [1, 2],
        "ok": True,
        "why": None,
    }
    head = log.write("next")
    assert (records(path)[1]["previous"], log.head) == (audit.digest(lines(path)[0]), head)


def test_no_content_can_be_logged_and_long_text_is_cut(log, path) -> None:
    """Bytes and structures are refused; a newline in a value is no new line; nothing of a list is left out."""
    for content in (b"pixels", {"a": 1}):
        with pytest.raises(TypeError):
            log.write("act", value=content)
    log.write("act", text="a\nb" * 1_000, number=math.inf, changes=["1" * 300, *map(str, range(100))])
    (record,) = records(path)
    assert (len(record["text"]), record["number"]) == (audit.MAX_VALUE, "inf")
    assert record["changes"] == ["1" * audit.MAX_VALUE, *map(str, range(100))]


def test_threads_and_commands_share_one_chain(log, path) -> None:
    threads = [threading.Thread(target=log.write, args=("act",), kwargs={"thread": n}) for n in range(16)]
    for thread in threads:
        thread.start()
    append(path, "command")
    for thread in threads:
        thread.join()
    log.write("node")
    assert (verify(path).ok, verify(path).lines, log.problem) == (True, 18, None)


def chain(head: audit.Head, acts: list[str]) -> list[str]:
    """Lines that follow `head`, as somebody makes who knows the format."""
    made = []
    for act in acts:
        made.append(audit.encoded(head, "2026-01-01T00:00:00+00:00", act, {}))
        head = audit.Head(head.n + 1, audit.digest(made[-1]))
    return made


CHANGES = {
    "changed": (lambda all_: [all_[0], all_[1].replace('"b"', '"c"'), *all_[2:]], 3),
    "dropped": (lambda all_: [all_[0], *all_[2:]], 2),
    "exchanged": (lambda all_: [all_[1], all_[0], *all_[2:]], 1),
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


# What somebody with access to the file can do while the node runs

ATTACKS = {
    "cut": (lambda path: cut(path, 6), "was cut"),
    "cut, and grown again": (
        lambda path: put(
            path, [*(kept := lines(path)[:6]), *chain(audit.Head(5, audit.digest(kept[-1])), ["act"] * 12)]
        ),
        "was rewritten",
    ),
    "rewritten": (lambda path: put(path, chain(audit.EMPTY, ["latent_sent"] * 40)), "was rewritten"),
    "grown by foreign lines": (
        lambda path: edit(path, "INSERT INTO audit (line) VALUES ('{}')"),
        "has lines that do not follow the others",
    ),
}


@pytest.mark.parametrize(("attack", "what"), ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("writes", [True, False])
def test_a_running_node_notices_an_altered_log(log, path, attack, what, writes):
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
    for item in range(10):
        append(path, "latent_sent", item=item)
    edit(path, "DELETE FROM audit WHERE number = 7")
    with closing(NodeStore(path)) as store:
        restarted = audit.AuditLog(store)
        restarted.write("node_started")
        assert "broken near its end, after line 6" in (restarted.problem or "")


def test_a_full_disk_is_no_tampering(log: audit.AuditLog, path: Path) -> None:
    """No line of a transaction that failed is there, and the chain goes on from the line before it."""
    log.write("latent_sent", item=1)

    def to_a_full_disk(transaction: Transaction) -> None:
        log.append(transaction, "latent_sent", item=2)
        transaction.written.append(str(path.parent / "missing" / "file"))

    assert log.store.write(to_a_full_disk).exception(20)
    assert "cannot be written" in (log.problem or "")
    assert log.look() is None  # a look shows that the disk is well again
    log.write("latent_sent", item=4)
    assert log.look() is None
    assert [each["item"] for each in records(path)] == [1, 4]
    assert verify(path).ok


# Reading

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture
def read(path: Path) -> Path:
    """Six acts, one a minute from noon."""
    times = iter(NOON + timedelta(minutes=n) for n in range(100))
    alice, west = "spiffe://north.example/client/alice", "spiffe://west.example/node/node-1"
    with opened(path, clock=lambda: next(times)) as log:
        log.write("node_started", peers=["south.example"])
        log.write("job_accepted", job="a1b2", client=alice, target="south.example")
        log.write("latent_sent", job="a1b2", item=0, peer="south.example")
        log.write("job_finished", job="a1b2", reason="")
        log.write("refused", reason="PEER_UNKNOWN", identity=west, times=1)
        log.write("latent_received", peer=west, request="c3d4")
    return path


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"peer": "west"}, []),
        ({"since": NOON + timedelta(minutes=4)}, [5, 6]),
        ({"peer": "south.example", "since": NOON + timedelta(minutes=2)}, [3]),
    ],
)
def test_lines_are_asked_for_and_what_is_no_line_is_never_left_out(read, asked, found):
    """By peer and time; all that are given must hold. A broken line could have been any."""
    edit(read, "INSERT INTO audit (line) VALUES ('rubbish')")
    wanted = {"peer": "", "since": None} | asked
    assert [entry.line for entry in audit.entries(read) if entry.is_asked_for(**wanted)] == [*found, 7]


# What a peer noted of a log shows what was done to that log while its node was down

NORTH = Identity("north.example", "node", "node-1")
SOUTH = Identity("south.example", "node", "node-1")


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "north.sqlite", tmp_path / "south.sqlite"


def exchange(north: Path, south: Path, calls: int) -> None:
    """North sends latents, and both write what the other says of its log."""
    with opened(north) as source, opened(south) as target:
        for item in range(calls):
            head = source.write("latent_sent", peer=SOUTH.institution, item=item)
            told = audit.anchor_values(audit.anchor_of(head))
            answer = target.write("latent_received", peer=NORTH.uri, item=item, **told)
            source.write("receipt", peer=SOUTH.institution, **audit.anchor_values(audit.anchor_of(answer)))


def anchors_of(holder: Path, about: Identity, by: Identity) -> audit.AnchorFile:
    held, contradiction = audit.held_of(holder, about.institution)
    assert contradiction == ""
    return audit.AnchorFile(of=about.uri, noted_by=by.uri, anchors=held)


def cut_and_gone_on(path: Path) -> None:
    """A restart after the cut: the log verifies, and grows past where it was."""
    cut(path, 9)
    with opened(path) as log:
        for _ in range(30):
            log.write("latent_sent")
        assert log.problem is None


OFFLINE = {
    "rolled back, and gone on": (cut_and_gone_on, "the log was rewritten"),
    "started anew": (lambda path: put(path, chain(audit.EMPTY, ["node_started"])), "the log was rewritten"),
}


@pytest.mark.parametrize(("attack", "what"), OFFLINE.values(), ids=OFFLINE)
@pytest.mark.parametrize("whose", ["source", "target"])
def test_what_was_done_while_the_node_was_down_shows_against_the_peers_anchors(logs, attack, what, whose):
    """The chain alone is whole; the peer's own log has the lines that are missing, whichever node was attacked."""
    exchange(*logs, 12)
    own, holder = logs if whose == "source" else logs[::-1]
    about, by = (NORTH, SOUTH) if whose == "source" else (SOUTH, NORTH)
    held = anchors_of(holder, about, by)
    assert verify(own, anchors=held.by_line()).anchors == len(held.anchors) == 12
    attack(own)
    assert verify(own).ok, "the chain does not show it"
    found = verify(own, anchors=held.by_line())
    assert not found.ok
    assert what in found.problem
    assert by.uri in found.problem


def test_a_peer_that_rewrites_its_log_contradicts_itself_here(logs: tuple[Path, Path]) -> None:
    north, south = logs
    exchange(north, south, 6)
    put(south, [])
    exchange(north, south, 6)
    assert "was one thing on" in audit.held_of(north, "south.example")[1]


def test_a_peer_whose_log_goes_back_contradicts_itself_here(path: Path) -> None:
    now = NOON

    def hears(count: int) -> str:
        with opened(path, clock=lambda: now) as log:
            log.write(
                "receipt",
                peer="south.example",
                **audit.anchor_values(AuditHead(lines=count, sha256=count.to_bytes(32, "big"))),
            )
        return audit.held_of(path, "south.example")[1]

    assert hears(50) == ""
    now += timedelta(seconds=2)
    assert hears(48) == "", "an answer of another call that came later"
    now += timedelta(hours=2)
    assert "it had 50 lines on 2026-11-26 12:00 and 49 on" in hears(49)


def test_a_file_of_anchors_is_for_one_node_and_has_the_newest(tmp_path, logs, monkeypatch):
    monkeypatch.setattr(audit, "MAX_ANCHORS", 6)
    exchange(*logs, 10)
    made = anchors_of(logs[1], NORTH, SOUTH)
    assert (len(made.anchors), made.anchors[-1].lines) == (6, 19)
    file = tmp_path / "for-north.json"
    file.write_text(made.model_dump_json())
    assert audit.read_anchors(file, of=NORTH) == made
    with pytest.raises(InputError, match="about the log of"):
        audit.read_anchors(file, of=Identity("north.example", "node", "node-2"))
    for wrong in (b"", b"[]", b'{"format":"2"}', b'{"of":"x","noted_by":"y","anchors":[{"lines":0}]}'):
        file.write_bytes(wrong)
        with pytest.raises(InputError, match="no file of anchors"):
            audit.read_anchors(file, of=NORTH)
