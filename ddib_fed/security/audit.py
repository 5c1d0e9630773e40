"""The audit log: rows of the node's database, each a JSON line with the digest of the line before it.

It records identities, actions, digests and peers, never the content of a picture, latent or file. A line of what
changes a row is in the same transaction as the row; any other is on the disk when `write` returns, before the act.
Before the lines of a transaction the end of the log is compared with what this process saw last: a log that was cut or
rewritten meanwhile is reported, and the chain goes on from the line in memory, so that `verify` finds the place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from ddib_fed.errors import ConfigError, DdibError, DiskFull
from ddib_fed.files import parse_json
from ddib_fed.protocol.latent import Anchor
from ddib_fed.store import NodeStore, Transaction

log = logging.getLogger(__name__)

FIRST: Final = "0" * 64
"""The previous digest in the first line."""
MAX_VALUE: Final = 256
"""Characters of one text; longer ones are cut, so that nothing large can hide in the log."""
CHECKED: Final = 1_000
"""Lines at the end of the log that a start compares with one another."""
ALTERED: Final = "log_altered"
"""The act of a line that a node writes where it found the log changed behind its back."""
NOT_DONE: Final = "not_done"
"""The act of a line that takes an earlier one back: a command wrote down what it then could not do."""
NEWEST: Final = "SELECT number, line FROM audit ORDER BY number DESC LIMIT "

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")
_RESERVED = frozenset({"n", "time", "act", "previous"})

Scalar = str | int | float | bool | None
Value = Scalar | Sequence[str | int]


class Head(NamedTuple):
    """The end of a log: number of its last line, from 0, and that line's SHA-256, hex; -1 and zeros without lines."""

    n: int
    sha256: str


EMPTY: Final = Head(-1, FIRST)


# A line


def checked(act: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values of an act's line, long texts cut.

    Raises:
        ValueError: The act or a key is not a plain lower-case name, or a key is reserved for the log.
        TypeError: A value is neither a scalar nor a list of strings or integers.
    """
    if not _NAME.match(act):
        raise ValueError(f"{act!r} is no name of an act")
    return {key: _checked(key, value) for key, value in values.items()}


def _checked(key: str, value: Value) -> Value:
    if not _NAME.match(key) or key in _RESERVED:
        raise ValueError(f"{key!r} is no name for a value")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value[:MAX_VALUE]
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [each if isinstance(each, int) else str(each)[:MAX_VALUE] for each in value]
    raise TypeError(f"{key} is a {type(value).__name__}: the audit log holds no content")


def encoded(head: Head, time: str, act: str, values: Mapping[str, Value]) -> str:
    own: dict[str, Value] = {"n": head.n + 1, "time": time, "act": act, "previous": head.sha256}
    return json.dumps({**own, **values}, ensure_ascii=True, separators=(",", ":"))


def digest(line: str) -> str:
    return hashlib.sha256(line.encode("utf-8", "surrogatepass")).hexdigest()


def parsed(line: str) -> dict[str, Any] | None:
    """The object of a line; None if it is no JSON object."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def follows(line: str, head: Head) -> str:
    """Why a line does not follow `head`; empty if it does."""
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


# The log


class AuditLog:
    """The audit log in a node's database; safe to use from any thread."""

    def __init__(
        self, store: NodeStore, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.store = store
        self._clock = clock
        self._altered: str | None = None
        self._seen = self._begin()
        """Number and head of the last row that this process read or brought to the disk."""

    def _begin(self) -> tuple[int, Head]:
        """The end of the log at the first look, where only the log itself can be asked."""
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
        """What is wrong with the log, with the remedy, for the node's health; None if nothing is.

        A log that was altered stays a problem for as long as this process runs; one that cannot be written is a problem
        until something is written.
        """
        return self._altered or self.store.problem

    @property
    def head(self) -> Head:
        """The end of the log as it is on the disk."""
        rows = self.store.read(NEWEST + "1")
        return _head(rows[0]["line"]) if rows else EMPTY

    def append(self, transaction: Transaction, act: str, **values: Value) -> Head:
        """Add a line to a transaction; the head of the log with it."""
        return self._append(transaction, act, [checked(act, values)])

    def write(self, act: str, **values: Value) -> Head:
        """Add a line; on the disk when this returns.

        Raises:
            ValueError, TypeError: As `checked`.
            OSError: The line could not be written; the caller must not perform the act.
        """
        return self.write_each(act, [values])

    def write_each(self, act: str, each: Sequence[Mapping[str, Value]]) -> Head:
        """As `write`, a line for each of several acts of one kind, all of them or none."""
        records = [checked(act, values) for values in each]
        return self._result(lambda transaction: self._append(transaction, act, records))

    def look(self) -> str | None:
        """Compare the end of the log with what was last written or read."""

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

    def _append(self, transaction: Transaction, act: str, records: Sequence[Mapping[str, Value]]) -> Head:
        head = self._look(transaction)
        for record in records:
            head = self._add(transaction, head, act, record)
        return head

    def _add(self, transaction: Transaction, head: Head, act: str, record: Mapping[str, Value]) -> Head:
        line = encoded(head, self._clock().isoformat(), act, record)
        number = transaction.execute("INSERT INTO audit (line) VALUES (?)", (line,)).lastrowid or 0
        found = Head(head.n + 1, digest(line))
        transaction.afterwards.append(lambda: setattr(self, "_seen", (number, found)))
        return found

    def _look(self, transaction: Transaction) -> Head:
        """The end of the log; notes in it how it was altered since the last look."""
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
        """Go on from the line in memory, whatever the log holds now, and say so in the log and to the operator."""
        self._altered = (
            f"the audit log in {self.store.path} {what} while the node ran: it should end with line {head.n + 1}, "
            f"SHA-256 {head.sha256}; keep a copy, find out who can write to it, compare it with a peer's anchors "
            "(ddib audit verify --anchors FILE), and begin a new one: drain the node, move the database away, restart"
        )
        log.error("%s", self._altered)
        return self._add(transaction, head, ALTERED, {"what": what, "lines": head.n + 1})


def note(path: Path, act: str, **values: Value) -> AbstractContextManager[object]:
    """Add a line for an operator's command, before the command does what the line says.

    What fails inside the context that is returned gets a line `not_done`.

    Raises:
        ConfigError: It cannot be written; the command must not act.
    """

    def write(name: str, **content: Value) -> None:
        with closing(NodeStore(path, shared=True)) as store:
            AuditLog(store).write(name, **content)

    def take_back(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(OSError, DdibError):
                write(NOT_DONE, what=act, **values)

    try:
        write(act, **values)
    except (OSError, DiskFull) as error:
        said = error.detail if isinstance(error, DiskFull) else error.strerror or error
        raise ConfigError(
            f"the audit log in {path} cannot be written, so nothing was done: {said}",
            hint="run this as the node's own user; df shows whether the disk is full",
        ) from error
    undo = ExitStack()
    undo.push(take_back)
    return undo


# What two nodes exchanged

RECEIPT: Final = "receipt"
"""The act of the line that each of two nodes writes of one call, with the end of the other's log."""


@dataclass(slots=True)
class Exchanged:
    """What one call exchanged, without headers and framing, and the end of the peer's audit log that came with it.

    A source sends latents, a target translations; a latent that a round trip returns belongs to its translation.
    """

    sent_items: int = 0
    sent_bytes: int = 0
    received_items: int = 0
    received_bytes: int = 0
    anchor: Anchor | None = None

    def sent(self, size_bytes: int) -> None:
        self.sent_items += 1
        self.sent_bytes += size_bytes

    def received(self, size_bytes: int) -> None:
        self.received_items += 1
        self.received_bytes += size_bytes

    def values(self) -> dict[str, str | int]:
        """Of the line of the audit log."""
        return {
            "sent_items": self.sent_items,
            "sent_bytes": self.sent_bytes,
            "received_items": self.received_items,
            "received_bytes": self.received_bytes,
            **anchor_values(self.anchor),
        }


def anchor_values(anchor: Anchor | None) -> dict[str, str | int]:
    """An anchor of a peer as values of a line; none for a peer that sent none."""
    return {} if anchor is None else {"peer_lines": anchor.lines, "peer_head": anchor.sha256}


def anchor_of(head: Head) -> Anchor:
    """The end of this log as it is sent to a peer; the log must have a line."""
    return Anchor(head.n + 1, head.sha256)
