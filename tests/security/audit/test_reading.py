"""Lines of an audit log that somebody asks for: which they are, how they are followed, and what an export holds."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ddib_fed.errors import ChunkCorrupt
from ddib_fed.security.audit_reading import LineFilter, entries, export, follow, lines_of, parse_since, verify
from tests.audit_rows import append, cut, edit, opened

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Six acts, one a minute from noon."""
    times = iter(NOON + timedelta(minutes=n) for n in range(100))
    made = tmp_path / "node.sqlite"
    with opened(made, clock=lambda: next(times)) as log:
        log.write("node_started", peers=["south.example"])
        log.write(
            "job_accepted", job="a1b2", client="spiffe://north.example/client/alice", target="south.example"
        )
        log.write("latent_sent", job="a1b2", item=0, peer="south.example")
        log.write("job_finished", job="a1b2", reason="")
        log.write("refused", reason="PEER_UNKNOWN", identity="spiffe://west.example/node/node-1", times=1)
        log.write("latent_received", peer="spiffe://west.example/node/node-1", request="c3d4")
    return made


def acts(path: Path, wanted: LineFilter) -> list[str]:
    return [entry.record["act"] for entry in entries(path) if entry in wanted]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (LineFilter(job="a1"), ["job_accepted", "latent_sent", "job_finished"]),
        (LineFilter(job="c3d4"), ["latent_received"]),
        (LineFilter(peer="west.example"), ["refused", "latent_received"]),
        (LineFilter(peer="west"), []),
        (LineFilter(since=NOON + timedelta(minutes=4)), ["refused", "latent_received"]),
        (LineFilter(peer="south.example", since=NOON + timedelta(minutes=2)), ["latent_sent"]),
    ],
)
def test_lines_are_asked_for(path: Path, wanted: LineFilter, found: list[str]) -> None:
    """By job, peer and time; all that are given must hold."""
    assert acts(path, wanted) == found


def test_what_is_no_line_is_never_left_out(path: Path) -> None:
    """A broken line could have been any."""
    edit(path, "INSERT INTO audit (line) VALUES ('rubbish')")
    assert [entry.line for entry in entries(path) if entry in LineFilter(job="a1b2")] == [2, 3, 4, 7]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """Whatever somebody put there."""
    file = tmp_path / "node.sqlite"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(ChunkCorrupt, match="cannot be read"):
        verify(file)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90m", NOON - timedelta(minutes=90)),
        ("7d", NOON - timedelta(days=7)),
        ("2026-11-26", NOON.replace(hour=0)),
        ("2026-11-26T13:30+02:00", NOON - timedelta(minutes=30)),
    ],
)
def test_a_time_is_a_length_or_a_date(text: str, moment: datetime) -> None:
    """Of UTC, unless it says otherwise."""
    assert parse_since(text, now=NOON) == moment


def test_lines_are_followed_as_they_are_written(path: Path) -> None:
    """From where the reader was."""
    lines = follow(path, after=5, pause=lambda _seconds: append(path, "reload"))
    assert [next(lines).record["act"] for _ in range(3)] == ["latent_received", "reload", "reload"]


@pytest.mark.parametrize("how", ["cut", "replaced", "removed"])
def test_a_log_that_somebody_changes_is_not_followed(path: Path, how: str) -> None:
    """The reader would miss lines without knowing."""

    def meanwhile(_seconds: float) -> None:
        if how == "cut":
            cut(path, 2)
            return
        content = path.read_bytes()
        path.rename(path.with_name("away"))
        if how == "replaced":
            path.write_bytes(content)

    with pytest.raises(ChunkCorrupt, match="was cut, replaced or removed"):
        next(follow(path, after=6, pause=meanwhile))


def exported(path: Path, wanted: LineFilter) -> list[dict[str, str]]:
    content, _ = export(lines_of(path), wanted, table=True)
    return list(csv.DictReader(content.decode().splitlines()))


def test_a_table_has_a_column_for_each_name(path: Path) -> None:
    """Lists are words; what was not written is empty."""
    rows = exported(path, LineFilter())
    assert [row["act"] for row in rows] == [entry.record["act"] for entry in entries(path)]
    assert rows[0]["peers"] == "south.example"
    assert (rows[2]["item"], rows[3]["item"]) == ("0", "")


def test_no_text_of_a_peer_is_a_formula(path: Path) -> None:
    """Spreadsheets compute what begins with = + - @."""
    for text in ('=HYPERLINK("http://west.example")', "+1", "-1", "@sum", "\t=1"):
        append(path, "refused", detail=text)
    rows = [row for row in exported(path, LineFilter()) if row["act"] == "refused"]
    assert [row["detail"][0] for row in rows[1:]] == ["'"] * 5
