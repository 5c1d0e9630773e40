"""Reads the lines of an audit log that somebody asks for, and exports them with the head of the chain they come from.

Reading changes nothing, and what is not a line of the log is shown as such: whether the chain is whole is for
`verification.verify`, which an export runs first.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from ddib_fed.errors import ChunkCorrupt, InputError
from ddib_fed.trust.audit.lines import digest, parsed

POLL_S: Final = 0.25
FIRST_COLUMNS: Final = ("n", "time", "act", "sha256")
_OWN: Final = frozenset({"n", "time", "act", "previous"})
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_JOBS: Final = ("job", "request")
_PEERS: Final = ("peer", "target", "identity")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log.

    Attributes:
        line: Number in the file, from 1.
        sha256: Of the line with its newline, hex; the next line names it.
        record: Its values; empty if it is no JSON object.
    """

    line: int
    sha256: str
    record: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """What the act wrote, without the log's own values."""
        return {key: value for key, value in self.record.items() if key not in _OWN}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines; an empty value asks for any.

    Attributes:
        acts: Names, or patterns such as ``job_*``.
        job: The beginning of a job's id, or at a target of the request's.
        peer: An institution: of a peer, a target or an identity.
        since: Not before this time.
    """

    acts: tuple[str, ...] = ()
    job: str = ""
    peer: str = ""
    since: datetime | None = None

    def __contains__(self, entry: Entry) -> bool:
        record = entry.record
        if not record:
            return True
        if self.acts and not any(fnmatchcase(str(record.get("act")), each) for each in self.acts):
            return False
        if self.job and not any(str(record.get(key, "")).startswith(self.job) for key in _JOBS):
            return False
        if self.peer and not any(_is_of(record.get(key), self.peer) for key in _PEERS):
            return False
        return self.since is None or _time(record) >= self.since


def _is_of(value: object, institution: str) -> bool:
    text = str(value or "")
    return text == institution or text.startswith(f"spiffe://{institution}/")


def _time(record: dict[str, Any]) -> datetime:
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


def entries(path: Path) -> Iterator[Entry]:
    """The whole lines of a log.

    Raises:
        FileNotFoundError: There is none.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield _entry(number, line)


def _entry(number: int, line: bytes) -> Entry:
    return Entry(number, digest(line), parsed(line) or {})


def follow(path: Path, after: int, *, pause: Callable[[float], object] = time.sleep) -> Iterator[Entry]:
    """The whole lines after line `after`, and those that come, for ever.

    Args:
        path: The log.
        after: Number of a line, from 1; 0 for all.
        pause: Waits for so many seconds.

    Raises:
        FileNotFoundError: There is none.
        ChunkCorrupt: The log was cut or replaced.
    """
    with path.open("rb") as file:
        number, held = 0, b""
        while True:
            held += file.readline()
            if held.endswith(b"\n"):
                number += 1
                if number > after:
                    yield _entry(number, held)
                held = b""
                continue
            _require_same(path, file)
            pause(POLL_S)


def _require_same(path: Path, file: io.BufferedReader) -> None:
    """The file that is followed is still the log, and no shorter than what was read."""
    try:
        there, here = path.stat(), os.fstat(file.fileno())
    except FileNotFoundError:
        same = False
    else:
        same = (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) and here.st_size >= file.tell()
    if not same:
        raise ChunkCorrupt(f"{path} was cut, replaced or removed", hint="ddib audit verify; ddib status")


def as_json_lines(found: Iterable[Entry]) -> Iterator[bytes]:
    for entry in found:
        yield json.dumps({**entry.record, "sha256": entry.sha256}, ensure_ascii=True).encode() + b"\n"


def as_csv(found: Sequence[Entry]) -> Iterator[bytes]:
    """A header and a row for each line; a column for each name, lists separated by spaces."""
    names = dict.fromkeys(name for entry in found for name in entry.values)
    columns = (*FIRST_COLUMNS, *names, "previous")
    yield _row(columns)
    for entry in found:
        record = {**entry.record, "sha256": entry.sha256}
        yield _row([_cell(record.get(name)) for name in columns])


def _row(cells: Sequence[str]) -> bytes:
    written = io.StringIO()
    csv.writer(written, lineterminator="\r\n").writerow(cells)
    return written.getvalue().encode("utf-8", "replace")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


@dataclass(frozen=True, slots=True)
class Export:
    """What was exported.

    Attributes:
        content: Of the file.
        exported: Lines in it.
        lines: Of the whole log, when its chain was followed.
        head: Digest of its last line then.
    """

    content: bytes
    exported: int
    lines: int
    head: str

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.content).hexdigest()


def export(path: Path, wanted: Wanted, *, lines: int, head: str, table: bool) -> Export:
    """The lines that are asked for, out of a log whose chain was followed to `head`.

    Args:
        path: The log.
        wanted: Which lines.
        lines: How many lines were verified; later ones are left out.
        head: Digest of the last of them.
        table: CSV instead of JSON lines.

    Raises:
        FileNotFoundError: There is no log.
        ChunkCorrupt: It is another log by now.
    """
    kept, last = [], None
    for entry in entries(path):
        if entry.line > lines:
            break
        last = entry
        if entry in wanted:
            kept.append(entry)
    if lines and (last is None or (last.line, last.sha256) != (lines, head)):
        raise ChunkCorrupt(f"{path} changed while it was read", hint="ddib audit verify")
    content = b"".join(as_csv(kept) if table else as_json_lines(kept))
    return Export(content, len(kept), lines, head)
