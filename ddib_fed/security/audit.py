"""The audit log: rows of the node's database, each a JSON line with the digest of the line before it.

It records identities, actions, digests and peers, never the content of a picture, latent or file. A line of what
changes a row is in the same transaction as the row; any other is on the disk when `write` returns, before the act.
Before the lines of a transaction the end of the log is compared with what this process saw last: a log that was cut or
rewritten meanwhile is reported, and the chain goes on from the line in memory, so that `verify` finds the place.

The ends of a peer's log that lie in the own one (anchors) are a file for that peer: a log that was cut, rolled back or
rewritten after its end went to a peer lacks a line that the peer noted.
"""

import errno
import hashlib
import json
import logging
import math
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field, ValidationError

from ddib_fed.errors import ChunkCorrupt, ConfigError, DiskFull, InputError
from ddib_fed.files import parse_json, problem_text, read_small
from ddib_fed.record import Frozen
from ddib_fed.security.identity import Identity
from ddib_fed.store import NodeStore, Transaction
from ddib_fed.v1.common_pb2 import AuditHead

log = logging.getLogger(__name__)

FIRST: Final = "0" * 64
MAX_VALUE: Final = 256
"""Characters of one text; longer ones are cut, so that nothing large can hide in the log."""
CHECKED: Final = 1_000
ALTERED: Final = "log_altered"
NEWEST: Final = "SELECT number, line FROM audit ORDER BY number DESC LIMIT "
RECEIPT: Final = "receipt"
PAGE: Final = 1000
"""Rows that are read before any is given on: an open query would keep the node's WAL from being reset."""
MAX_ANCHORS: Final = 256
"""The newest anchors vouch for every earlier line, since the lines are a chain."""
ORDER_SLACK: Final = timedelta(hours=1)
"""Calls that run side by side bring a peer's ends slightly out of order; by more than this the peer's log went back."""
_OWN: Final = frozenset({"n", "time", "act", "previous"})
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

Scalar = str | int | float | bool | None
Value = Scalar | Sequence[str | int]


class Head(NamedTuple):
    """The end of a log: number of its last line, from 0, and that line's SHA-256, hex; -1 and zeros without lines."""

    n: int
    sha256: str


EMPTY: Final = Head(-1, FIRST)


def checked(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values of a line, long texts cut; raise TypeError for anything but scalars and lists of them."""
    cleaned: dict[str, Value] = {}
    for key, value in values.items():
        if key in _OWN:
            raise ValueError(f"{key!r} is the log's own")
        if isinstance(value, str):
            cleaned[key] = value[:MAX_VALUE]
        elif isinstance(value, float) and not math.isfinite(value):
            cleaned[key] = str(value)
        elif value is None or isinstance(value, bool | int | float):
            cleaned[key] = value
        elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
            cleaned[key] = [item if isinstance(item, int) else str(item)[:MAX_VALUE] for item in value]
        else:
            raise TypeError(f"{key} is a {type(value).__name__}: the audit log holds no content")
    return cleaned


def encoded(head: Head, time: str, act: str, values: Mapping[str, Value]) -> str:
    fields: dict[str, Value] = {"n": head.n + 1, "time": time, "act": act, "previous": head.sha256}
    return json.dumps({**fields, **values}, ensure_ascii=True, separators=(",", ":"))


def digest(line: str) -> str:
    return hashlib.sha256(line.encode("utf-8", "surrogatepass")).hexdigest()


def parsed(line: str) -> dict[str, Any] | None:
    """Return the object of a line; None if it is no JSON object."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def follows(line: str, head: Head) -> str:
    """Return why a line does not follow `head`; empty if it does."""
    record = parsed(line)
    if record is None:
        return "it is not JSON"
    if record.get("act") == ALTERED:
        what = str(record.get("what"))[:MAX_VALUE]
        return f"the running node found here that the log {what}, and noted it"
    if record.get("n") != head.n + 1:
        return f"it is not number {head.n + 1}"
    return "" if record.get("previous") == head.sha256 else "it does not follow the line before it"


def _head(line: str) -> Head:
    n = (parsed(line) or {}).get("n")
    return Head(n if isinstance(n, int) else -1, digest(line))


class AuditLog:
    """The audit log in a node's database; safe to use from any thread."""

    def __init__(
        self, store: NodeStore, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.store = store
        self._clock = clock
        self._altered: str | None = None
        self._seen = self._begin()

    def _begin(self) -> tuple[int, Head]:
        """Return the end of the log at the first look, and check its last lines against one another."""
        rows = self.store.read(NEWEST + str(CHECKED + 1))[::-1]
        seen, head = (0, EMPTY), EMPTY
        for place, row in enumerate(rows):
            if (place or len(rows) <= CHECKED) and (problem := follows(row["line"], head)):
                self._altered = (
                    f"the audit log in {self.store.path} is broken near its end, after line {head.n + 1}: {problem}; "
                    "ddib audit verify shows where; keep a copy, and begin a new one: drain the node, move the "
                    "database away and restart"
                )
            head = _head(row["line"])
            seen = row["number"], head
        return seen

    @property
    def problem(self) -> str | None:
        """The log's problem, with the remedy: it was altered, or cannot be written at present."""
        return self._altered or self.store.problem

    @property
    def head(self) -> Head:
        """The end of the log as it is on the disk."""
        rows = self.store.read(NEWEST + "1")
        return _head(rows[0]["line"]) if rows else EMPTY

    def append(self, transaction: Transaction, act: str, **values: Value) -> Head:
        """Add a line to a transaction; return the head of the log with it."""
        return self.append_each(transaction, act, [values])

    def append_each(self, transaction: Transaction, act: str, each: Sequence[Mapping[str, Value]]) -> Head:
        """Add a line for each of several acts of one kind to a transaction; return the head of the log with them."""
        head = self._look(transaction)
        for values in each:
            head = self._add(transaction, head, act, checked(values))
        return head

    def write(self, act: str, **values: Value) -> Head:
        """Write a line to the disk; raise OSError if it cannot be written: the caller must not act."""
        return self.write_each(act, [values])

    def write_each(self, act: str, each: Sequence[Mapping[str, Value]]) -> Head:
        """Write a line for each of several acts of one kind, all or none; raise OSError as `write`."""
        return self._result(lambda transaction: self.append_each(transaction, act, each))

    def look(self) -> str | None:
        """Compare the end of the log with the last line written or read; return the problem, if any."""

        def compare(transaction: Transaction) -> Head:
            if self.store.problem:  # a write shows whether the disk is well again
                transaction.execute("INSERT OR REPLACE INTO node_state VALUES ('written', 1.0)")
            return self._look(transaction)

        try:
            self._result(compare)
        except OSError as error:
            return self.problem or str(error)
        return self.problem

    def _result(self, function: Callable[[Transaction], Head]) -> Head:
        try:
            return self.store.write(function).result()
        except DiskFull as error:
            raise OSError(errno.ENOSPC, error.detail, str(self.store.path)) from error

    def _add(self, transaction: Transaction, head: Head, act: str, record: Mapping[str, Value]) -> Head:
        line = encoded(head, self._clock().isoformat(), act, record)
        number = transaction.execute("INSERT INTO audit (line) VALUES (?)", (line,)).lastrowid or 0
        end = Head(head.n + 1, digest(line))
        transaction.afterwards.append(lambda: setattr(self, "_seen", (number, end)))
        return end

    def _look(self, transaction: Transaction) -> Head:
        """Return the end of the log; note in the log how it was altered since the last look."""
        if "audit" in transaction.shared:  # an earlier write of the same transaction has looked
            rows = transaction.read(NEWEST + "1")
            return _head(rows[0]["line"]) if rows else EMPTY
        transaction.shared.add("audit")
        number, head = self._seen
        rows = transaction.read("SELECT number, line FROM audit WHERE number >= ? ORDER BY number", (number,))
        what = ""
        if number and not rows:
            what = "was cut"
        elif number and (rows[0]["number"], digest(rows[0]["line"])) != (number, head.sha256):
            what = "was rewritten"
        end = head
        for row in rows[1:] if number else rows:  # of commands
            if not what and follows(row["line"], end):
                what = "has lines that do not follow the others"
            end = _head(row["line"])
            self._seen = (row["number"], end) if not what else self._seen
        return end if not what else self._report(transaction, head, what)

    def _report(self, transaction: Transaction, head: Head, what: str) -> Head:
        """Go on from the line in memory; report the altered log in itself and to the operator."""
        self._altered = (
            f"the audit log in {self.store.path} {what} while the node ran: it should end with line {head.n + 1}, "
            f"SHA-256 {head.sha256}; keep a copy, find out who can write to it, compare it with a peer's anchors "
            "(ddib audit verify --anchors FILE), and begin a new one: drain the node, move the database away, restart"
        )
        log.error("%s", self._altered)
        return self._add(transaction, head, ALTERED, {"what": what, "lines": head.n + 1})


def note(path: Path, act: str, **values: Value) -> None:
    """Add a line for an operator's command, before the command acts; ConfigError if it cannot be written."""
    try:
        with closing(NodeStore(path, shared=True)) as store:
            AuditLog(store).write(act, **values)
    except (OSError, DiskFull) as error:
        reason = error.detail if isinstance(error, DiskFull) else error.strerror or error
        raise ConfigError(
            f"the audit log in {path} cannot be written, so nothing was done: {reason}",
            hint="run this as the node's own user; df shows whether the disk is full",
        ) from error


@dataclass(slots=True)
class Exchanged:
    """What one call exchanged, without headers and framing, and the end of the peer's audit log that came with it."""

    sent_items: int = 0
    sent_bytes: int = 0
    received_items: int = 0
    received_bytes: int = 0
    anchor: AuditHead | None = None

    def sent(self, size_bytes: int) -> None:
        self.sent_items += 1
        self.sent_bytes += size_bytes

    def received(self, size_bytes: int) -> None:
        self.received_items += 1
        self.received_bytes += size_bytes

    def values(self) -> dict[str, str | int]:
        names = ("sent_items", "sent_bytes", "received_items", "received_bytes")
        return {name: getattr(self, name) for name in names} | anchor_values(self.anchor)


def anchor_values(anchor: AuditHead | None) -> dict[str, str | int]:
    """Return an anchor of a peer as values of a line; none for a peer that sent none."""
    return {} if anchor is None else {"peer_lines": anchor.lines, "peer_head": anchor.sha256.hex()}


def anchor_of(head: Head) -> AuditHead:
    """Return the end of this log as it is sent to a peer; the log must have a line."""
    return AuditHead(lines=head.n + 1, sha256=bytes.fromhex(head.sha256))


# Reading. It changes nothing, and what is not a line of the log is shown as such


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One line of the log: its number from 1, its digest, and its object, which is empty for what is no line."""

    line: int
    sha256: str
    record: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """The values of the act, without the log's own."""
        return {key: value for key, value in self.record.items() if key not in _OWN}

    def is_asked_for(self, *, peer: str, since: datetime | None) -> bool:
        """Return whether the line is of a peer, and not older; an empty value matches any."""
        if not self.record:
            return True
        peers = (str(self.record.get(key, "")) for key in ("peer", "target", "identity"))
        of_peer = not peer or any(institution_of(name) == peer for name in peers)
        return of_peer and (since is None or self._time() >= since)

    def _time(self) -> datetime:
        try:
            time = datetime.fromisoformat(str(self.record.get("time")))
        except ValueError:
            return datetime.max.replace(tzinfo=UTC)  # rather shown than hidden
        return time if time.tzinfo else time.replace(tzinfo=UTC)


def institution_of(peer: str) -> str:
    """Return the institution of a peer that a line names by its URI or by its institution."""
    return peer.removeprefix("spiffe://").partition("/")[0]


def parse_since(text: str, *, now: datetime | None = None) -> datetime:
    """Return the moment of an age (``30m``, ``2h``, ``7d``), or of a date or time of ISO 8601, by default UTC."""
    try:
        if match := re.fullmatch(r"([0-9]{1,6})([smhdw])", text):
            return (now or datetime.now(UTC)) - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:  # the calendar begins in the year 1
        raise InputError(
            f"{text[:40]!a} is no time", hint="how long ago, as 30m, 2h or 7d, or a date as 2026-11-26T14:00"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def lines_of(path: Path, text: str = "") -> Iterator[str]:
    """Yield the lines of a log, or only lines that contain `text`; raise FileNotFoundError without a log."""
    if not path.exists():
        raise FileNotFoundError(path)
    query = "SELECT number, line FROM audit WHERE number > ? AND (? = '' OR instr(line, ?)) ORDER BY number LIMIT ?"
    seen = 0
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.text_factory = lambda found: found.decode("utf-8", "replace")
            while rows := db.execute(query, (seen, text, text, PAGE)).fetchall():
                for seen, line in rows:  # noqa: B007 - the next page begins after the last one
                    yield line
    except sqlite3.DatabaseError as error:
        raise ChunkCorrupt(f"{path} cannot be read: {error}", hint="ddib-source-node check") from error


def entries(path: Path) -> Iterator[AuditLine]:
    """Yield the parsed lines of a log; raise as `lines_of`."""
    for number, line in enumerate(lines_of(path), 1):
        yield AuditLine(number, digest(line), parsed(line) or {})


@dataclass(frozen=True, slots=True)
class Verified:
    lines: int
    head: str
    broken_line: int | None = None
    problem: str = ""
    anchors: int = 0

    @property
    def ok(self) -> bool:
        return not self.problem


Noted = Mapping[int, tuple[str, str]]
"""By number of line from 0: its digest, and who noted it."""


def verify(lines: Iterable[str], *, noted: str | None = None, anchors: Noted | None = None) -> Verified:
    """Read a whole log and follow its chain.

    A chain detects lines that were changed, removed or inserted, not that the end was cut off or all of it rewritten:
    for that compare `head` with a copy kept elsewhere, or use the anchors that peers hold.
    """
    head, anchors = EMPTY, anchors or {}
    seen = noted is None or noted == FIRST
    matched, differs = 0, ""
    for line in lines:
        if problem := follows(line, head):
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


class NotedHead(Frozen):
    """One line of the peer's log: its number from 1, its SHA-256, and when it was noted here."""

    lines: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    noted: datetime


class AnchorFile(Frozen):
    format: Literal["ddib-fed audit anchors 1"] = "ddib-fed audit anchors 1"
    of: str
    noted_by: str
    anchors: tuple[NotedHead, ...]

    def by_line(self) -> Noted:
        return {
            head.lines - 1: (head.sha256, f"{self.noted_by} noted on {head.noted:%Y-%m-%d at %H:%M} UTC")
            for head in self.anchors
        }


def read_anchors(path: Path, *, of: Identity) -> AnchorFile:
    """Return the anchors that a peer's operator sent; raise InputError for another file, or for another node's log."""
    try:
        content = AnchorFile.model_validate_json(read_small(path, pipe=True))
    except ValidationError as error:
        raise InputError(
            f"{path} is no file of anchors: {problem_text(error)}",
            hint="the peer's operator writes one: ddib audit show --peer INSTITUTION --anchors > FILE",
        ) from error
    if content.of != of.uri:
        raise InputError(f"{path} is about the log of {content.of!a}, this node is {of}")
    return content


def held_of(path: Path, institution: str) -> tuple[tuple[NotedHead, ...], str]:
    """Return the anchors of one peer's log in the own log, and the first contradiction between two; empty for none."""
    heads: dict[int, NotedHead] = {}
    furthest, contradictions, form = None, list[str](), "%Y-%m-%d %H:%M"
    for line in lines_of(path, '"peer_head"'):
        record = parsed(line) or {}
        if institution_of(str(record.get("peer"))) != institution:
            continue
        try:
            noted = NotedHead(lines=record["peer_lines"], sha256=record["peer_head"], noted=record["time"])
        except (KeyError, ValidationError):  # a changed line, which `verify` finds
            continue
        known = heads.setdefault(noted.lines, noted)
        if known.sha256 != noted.sha256:
            times = f"{known.noted:{form}} and another on {noted.noted:{form}} UTC"
            contradictions.append(f"its line {noted.lines} was one thing on {times}")
        if furthest is None or noted.lines > furthest.lines:
            furthest = noted
        elif noted.lines < furthest.lines and noted.noted - furthest.noted > ORDER_SLACK:
            then = f"{noted.lines} on {noted.noted:{form}} UTC"
            contradictions.append(f"it had {furthest.lines} lines on {furthest.noted:{form}} and {then}")
    newest = sorted(heads.values(), key=lambda each: each.lines)[-MAX_ANCHORS:]
    return tuple(newest), next(iter(contradictions), "")
