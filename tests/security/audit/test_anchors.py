"""What a peer noted of a log shows what was done to that log while its node was down."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ddib_fed.errors import InputError
from ddib_fed.protocol import latent as wire
from ddib_fed.security.audit import EMPTY, Head, anchor_of, anchor_values, digest, encoded
from ddib_fed.security.audit_reading import (
    AnchorFile,
    held_of,
    read_anchors,
    thinned,
    verify,
)
from ddib_fed.security.identity import Identity
from tests.audit_rows import append, cut, opened, put, records

NORTH = Identity("north.example", "node", "node-1")
SOUTH = Identity("south.example", "node", "node-1")


class Clock:
    """An hour later at each look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def north(tmp_path: Path) -> Path:
    return tmp_path / "north.sqlite"


@pytest.fixture
def south(tmp_path: Path) -> Path:
    return tmp_path / "south.sqlite"


def exchange(north: Path, south: Path, calls: int, clock: Clock | None = None) -> None:
    """North sends latents, and both write what the other says of its log."""
    clock = clock or Clock()
    with opened(north, clock=clock) as source, opened(south, clock=clock) as target:
        for item in range(calls):
            head = source.write("latent_sent", peer=SOUTH.institution, item=item)
            told = anchor_values(anchor_of(head))
            answer = target.write("latent_received", peer=NORTH.uri, item=item, **told)
            source.write("receipt", peer=SOUTH.institution, **anchor_values(anchor_of(answer)))
            clock.now += timedelta(minutes=1)


def anchors_of(holder: Path, about: Identity, by: Identity) -> AnchorFile:
    held, contradiction = held_of(holder, about.institution)
    assert contradiction == ""
    return AnchorFile(of=about.uri, noted_by=by.uri, anchors=thinned(held))


def cut_and_gone_on(path: Path) -> None:
    """A restart after the cut: the log verifies, and grows past where it was."""
    cut(path, 9)
    with opened(path) as log:
        for _ in range(30):
            log.write("latent_sent")
        assert log.problem is None


def rewritten(path: Path) -> None:
    """Every line anew, a client's name exchanged."""
    head, made = EMPTY, []
    for record in records(path):
        values = {key: value for key, value in record.items() if key not in {"n", "time", "act", "previous"}}
        made.append(encoded(head, record["time"], record["act"], values | {"client": "somebody else"}))
        head = Head(head.n + 1, digest(made[-1]))
    put(path, made)


def started_anew(path: Path) -> None:
    put(path, [])
    append(path, "node_started")


ATTACKS = {
    "cut": (lambda path: cut(path, 9), "its end was cut off"),
    "rolled back, and gone on": (cut_and_gone_on, "the log was rewritten"),
    "rewritten": (rewritten, "the log was rewritten"),
    "started anew": (started_anew, "the log was rewritten"),
}


@pytest.mark.parametrize(("attack", "what"), ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("whose", ["source", "target"])
def test_what_was_done_while_the_node_was_down_shows_against_the_peers_anchors(
    north: Path, south: Path, attack, what: str, whose: str
) -> None:
    """The chain alone is whole; the peer's own log has the lines that are missing, whichever node was attacked."""
    exchange(north, south, 12)
    own, holder, about, by = (
        (north, south, NORTH, SOUTH) if whose == "source" else (south, north, SOUTH, NORTH)
    )
    held = anchors_of(holder, about, by)
    assert verify(own, anchors=held.by_line()).anchors == len(held.anchors) == 12
    attack(own)
    assert verify(own).ok, "the chain does not show it"
    found = verify(own, anchors=held.by_line())
    assert not found.ok
    assert what in found.problem
    assert by.uri in found.problem


def test_a_peer_that_rewrites_its_log_contradicts_itself_here(north: Path, south: Path) -> None:
    """The same number of lines, with another digest than it said before."""
    exchange(north, south, 6)
    put(south, [])
    exchange(north, south, 6)
    assert "was one thing on" in held_of(north, "south.example")[1]


def test_a_peer_whose_log_goes_back_contradicts_itself_here(north: Path) -> None:
    """By more than calls side by side explain."""
    clock = Clock()

    def hears(count: int) -> str:
        with opened(north, clock=clock) as log:
            log.write("receipt", peer="south.example", **anchor_values(wire.Anchor(count, f"{count:064x}")))
        return held_of(north, "south.example")[1]

    assert hears(50) == ""
    clock.now += timedelta(seconds=2)
    assert hears(48) == "", "an answer of another call that came later"
    clock.now += timedelta(hours=2)
    assert "it had 50 lines on 2026-01-01 00:00 and 49 on" in hears(49)


def test_a_file_survives_the_way_and_is_for_one_node(tmp_path: Path, north: Path, south: Path) -> None:
    """The other node of the institution has a log of its own."""
    exchange(north, south, 300)
    made = anchors_of(south, NORTH, SOUTH)
    file = tmp_path / "for-north.json"
    file.write_bytes(made.to_bytes())
    assert read_anchors(file, of=NORTH) == made
    with pytest.raises(InputError, match="about the log of"):
        read_anchors(file, of=Identity("north.example", "node", "node-2"))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format":"2"}', b'{"of":"x","noted_by":"y","anchors":[{"lines":0}]}']
)
def test_what_is_no_file_of_anchors_is_refused(tmp_path: Path, content: bytes) -> None:
    """With the command that writes one."""
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match="no file of anchors"):
        read_anchors(file, of=NORTH)
