"""Reads an audit log: selected lines, its chain against what was noted elsewhere, and peers' ends.

Reading changes nothing, and what is not a line of the log is shown as such. The ends of a peer's log that lie in the
own one (anchors) are a file for that peer: a log that was cut, rolled back or rewritten after its end went to a peer
lacks a line that the peer noted.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed.errors import ChunkCorrupt, InputError
from ddib_fed.files import read_small
from ddib_fed.security.audit import EMPTY, FIRST, Head, digest, follows, parsed
from ddib_fed.security.identity import Identity

POLL_S: Final = 0.25
PAGE: Final = 1000
"""Rows that are read before any is given on: an open query would keep the node's WAL from being reset."""
FIRST_COLUMNS: Final = ("n", "time", "act", "sha256")
_OWN: Final = frozenset({"n", "time", "act", "previous"})
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_JOBS: Final = ("job", "request")
_PEERS: Final = ("peer", "target", "identity")
FORMAT: Final = "ddib-fed audit anchors 1"
MAX_ANCHORS: Final = 256
"""Of a file: the newest half, and of the others evenly spaced ones. A line between two of them is vouched for by the
later one, since the lines are a chain."""
ORDER_SLACK: Final = timedelta(hours=1)
"""Calls that run side by side bring a peer's ends slightly out of order; by more than this the peer's log went back."""


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One line of the log."""

    line: int
    sha256: str
    record: dict[str, Any]

    @classmethod
    def read(cls, number: int, line: str) -> AuditLine:
        return cls(number, digest(line), parsed(line) or {})

    @property
    def values(self) -> dict[str, Any]:
        """What the act wrote, without the log's own values."""
        return {key: value for key, value in self.record.items() if key not in _OWN}


@dataclass(frozen=True, slots=True)
class LineFilter:
    """Which lines; an empty value asks for any."""

    job: str = ""
    peer: str = ""
    since: datetime | None = None

    def __contains__(self, entry: AuditLine) -> bool:
        record = entry.record
        if not record:
            return True
        if self.job and not any(str(record.get(key, "")).startswith(self.job) for key in _JOBS):
            return False
        if self.peer and not any(_is_of(record.get(key), self.peer) for key in _PEERS):
            return False
        return self.since is None or _time(record) >= self.since


def _is_of(value: object, institution: str) -> bool:
    text = str(value or "")
    return text == institution or text.startswith(f"spiffe://{institution}/")


def _time(record: Mapping[str, Any]) -> datetime:
    try:
        found = datetime.fromisoformat(str(record.get("time")))
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)  # rather shown than hidden
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def parse_since(text: str, *, now: datetime | None = None) -> datetime:
    """A moment: how long ago (``30m``, ``2h``, ``7d``), or a date or time of ISO 8601, UTC unless it says otherwise.

    Raises:
        InputError: It is neither, or before the year 1.
    """
    try:
        if match := re.fullmatch(r"([0-9]{1,6})([smhdw])", text):
            return (now or datetime.now(UTC)) - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:  # the calendar begins in the year 1
        raise InputError(
            f"{text[:40]!a} is no time", hint="how long ago, as 30m, 2h or 7d, or a date as 2026-11-26T14:00"
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, to be read while the node may run."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.text_factory = lambda text: text.decode("utf-8", "replace")
            yield db
    except sqlite3.DatabaseError as error:
        raise ChunkCorrupt(f"{path} cannot be read: {error}", hint="ddib-source-node check") from error


def lines_of(path: Path, text: str = "") -> Iterator[str]:
    """The lines of a log, or those that have a text in them.

    Raises:
        FileNotFoundError: There is no log.
        ChunkCorrupt: The database cannot be read.
    """
    query = "SELECT number, line FROM audit WHERE number > ? AND (? = '' OR instr(line, ?)) ORDER BY number LIMIT ?"
    seen = 0
    with _opened(path) as db:
        while rows := db.execute(query, (seen, text, text, PAGE)).fetchall():
            for seen, line in rows:  # noqa: B007 - the next page begins after the last one
                yield line


def entries(path: Path) -> Iterator[AuditLine]:
    """The lines of a log, read; raises as `lines_of`."""
    for number, line in enumerate(lines_of(path), 1):
        yield AuditLine.read(number, line)


def follow(path: Path, after: int, *, pause: Callable[[float], object] = time.sleep) -> Iterator[AuditLine]:
    """The lines after line `after`, and those that come, for ever.

    Raises:
        FileNotFoundError: There is no log.
        ChunkCorrupt: The log was cut or rewritten, or the database was replaced.
    """
    with _opened(path) as db:
        file, count, seen, sha256 = path.stat().st_ino, 0, 0, ""
        while True:
            query = "SELECT number, line FROM audit WHERE number >= ? ORDER BY number LIMIT ?"
            rows = iter(read := db.execute(query, (seen, PAGE)).fetchall())
            first = next(rows, None) if seen else None
            same = path.exists() and path.stat().st_ino == file
            if not same or (seen and (first is None or (first[0], digest(first[1])) != (seen, sha256))):
                raise ChunkCorrupt(
                    f"{path} was cut, replaced or removed", hint="ddib audit verify; ddib status"
                )
            for seen, line in rows:  # noqa: B007 - the last one is compared at the next look
                count, sha256 = count + 1, digest(line)
                if count > after:
                    yield AuditLine.read(count, line)
            if len(read) < 2:
                pause(POLL_S)


def export(lines: Iterable[str], wanted: LineFilter, *, table: bool) -> tuple[bytes, int]:
    """Those lines of a log that are asked for, as a file, and how many; each with its digest in `sha256`.

    A table is CSV: a header and a row for each line; a column for each name, lists separated by spaces.
    """
    every = (AuditLine.read(number, line) for number, line in enumerate(lines, 1))
    found = [entry for entry in every if entry in wanted]
    objects = [{**entry.record, "sha256": entry.sha256} for entry in found]
    if not table:
        return b"".join(json.dumps(each).encode() + b"\n" for each in objects), len(found)
    columns = [*FIRST_COLUMNS, *dict.fromkeys(name for entry in found for name in entry.values), "previous"]
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\r\n")
    rows.writerow(columns)
    rows.writerows([_cell(each.get(name)) for name in columns] for each in objects)
    return written.getvalue().encode("utf-8", "replace"), len(found)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


# The chain


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of reading a whole log."""

    lines: int
    head: str
    broken_line: int | None = None
    problem: str = ""
    anchors: int = 0

    @property
    def ok(self) -> bool:
        return not self.problem


def verify(
    path: Path, *, noted: str | None = None, anchors: Mapping[int, tuple[str, str]] | None = None
) -> Verified:
    """Read a whole log and follow its chain; it is not changed.

    A chain detects lines that were changed, removed or inserted. It cannot detect that the end was cut off,
    or that the whole log was rewritten: for that compare `head` with a copy kept elsewhere, or use the anchors that
    peers hold.

    Raises:
        FileNotFoundError: There is no log.
        ChunkCorrupt: The database cannot be read.
    """
    return verify_lines(lines_of(path), noted, anchors or {})


def verify_lines(lines: Iterable[str], noted: str | None, anchors: Mapping[int, tuple[str, str]]) -> Verified:
    """As `verify`, of the lines of a log."""
    head = EMPTY
    seen = noted is None or noted == FIRST
    matched, differs = 0, ""
    for line in lines:
        problem = follows(line, head)
        if problem:
            return Verified(head.n + 1, head.sha256, broken_line=head.n + 2, problem=problem, anchors=matched)
        head = Head(head.n + 1, digest(line))
        seen = seen or noted == head.sha256
        wanted = anchors.get(head.n)
        if wanted is not None and wanted[0] == head.sha256:
            matched += 1
        elif wanted is not None and not differs:
            differs = f"line {head.n + 1} is not the one that {wanted[1]}: the log was rewritten"
    if not seen:
        differs = "no line of it has the head that was noted"
    last = max(anchors, default=-1)
    if last > head.n and not differs:
        differs = f"it has {head.n + 1} lines, and line {last + 1} is one that {anchors[last][1]}: its end was cut off"
    return Verified(head.n + 1, head.sha256, problem=differs, anchors=matched)


# Anchors


class NotedHead(BaseModel):
    """One line of the peer's log: its number from 1, its SHA-256, and when it was noted here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lines: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    noted: datetime


class AnchorFile(BaseModel):
    """What one node noted of another's audit log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["ddib-fed audit anchors 1"] = FORMAT
    of: str
    noted_by: str
    anchors: tuple[NotedHead, ...]

    def to_bytes(self) -> bytes:
        """As a file."""
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()

    def by_line(self) -> dict[int, tuple[str, str]]:
        """For `verify`: digest and who noted it, by number of line from 0."""
        return {
            each.lines - 1: (each.sha256, f"{self.noted_by} noted on {each.noted:%Y-%m-%d at %H:%M} UTC")
            for each in self.anchors
        }


def read_anchors(path: Path, *, of: Identity) -> AnchorFile:
    """A file of anchors that a peer's operator sent.

    Raises:
        InputError: It is no such file, or about another node's log.
        FileMissing: There is none.
    """
    try:
        found = AnchorFile.model_validate_json(read_small(path, pipe=True))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{path} is no file of anchors: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            hint="the peer's operator writes one: ddib audit show --peer INSTITUTION --anchors --out FILE",
        ) from error
    if found.of != of.uri:
        raise InputError(f"{path} is about the log of {found.of!a}, this node is {of}")
    return found


def held_of(log: Path, institution: str) -> tuple[tuple[NotedHead, ...], str]:
    """The anchors of one peer's log that lie in the own log, and how they contradict each other; empty for not.

    Raises:
        FileNotFoundError: There is no log.
    """
    anchors = tuple(_noted(log, institution))
    return anchors, _contradiction(anchors)


def thinned(anchors: Sequence[NotedHead]) -> tuple[NotedHead, ...]:
    """At most `MAX_ANCHORS`, by number of line, the newest among them."""
    ordered = sorted({each.lines: each for each in anchors}.values(), key=lambda each: each.lines)
    newest = MAX_ANCHORS // 2
    older = ordered[:-newest]
    step = -(-len(older) // newest) or 1
    return (*older[::step], *ordered[-newest:])


def _noted(log: Path, institution: str) -> Iterator[NotedHead]:
    for line in lines_of(log, '"peer_head"'):
        record = parsed(line) or {}
        if str(record.get("peer")).removeprefix("spiffe://").partition("/")[0] != institution:
            continue
        try:
            yield NotedHead(lines=record["peer_lines"], sha256=record["peer_head"], noted=record["time"])
        except (KeyError, ValidationError):  # a changed line, which `verify` finds
            continue


def _contradiction(anchors: Sequence[NotedHead]) -> str:
    digests: dict[int, NotedHead] = {}
    furthest: NotedHead | None = None
    for each in anchors:
        known = digests.setdefault(each.lines, each)
        if known.sha256 != each.sha256:
            return (
                f"its line {each.lines} was one thing on {known.noted:%Y-%m-%d %H:%M} and another on "
                f"{each.noted:%Y-%m-%d %H:%M} UTC"
            )
        if furthest is not None and each.lines < furthest.lines and each.noted - furthest.noted > ORDER_SLACK:
            return (
                f"it had {furthest.lines} lines on {furthest.noted:%Y-%m-%d %H:%M} and {each.lines} on "
                f"{each.noted:%Y-%m-%d %H:%M} UTC"
            )
        if furthest is None or each.lines > furthest.lines:
            furthest = each
    return ""
