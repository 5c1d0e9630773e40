"""The audit log: an append-only file of JSON lines that are chained by digest.

It records identities, actions, digests and peers, never the content of a picture, latent or file. An act is
on the disk when `write` returns. What is written before it is done, and then is not done, is taken back by a line
`not_done` (see `AuditLog.doing`). Before each line the end of the file is compared with what this process wrote or read
last: a log that was cut, replaced or rewritten meanwhile is reported, and the chain goes on from the line in memory, so
that `verify` finds the place.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from ddib_fed.errors import ConfigError
from ddib_fed.files import check_private_file, parse_json
from ddib_fed.protocol.latent import Anchor

log = logging.getLogger(__name__)

MAX_CATCH_UP: Final = 64 << 20
"""Bytes that other processes may have added since the last look; commands add a few lines."""

FIRST: Final = "0" * 64
"""The previous digest in the first line."""

MAX_VALUE: Final = 256
"""Characters of one value; longer ones are cut, so that nothing large can hide in the log. Those of a list go on in the
next value of the list."""

MAX_VALUES: Final = 32
"""Values of a list in one line; a longer list goes on in further lines."""

GOES_ON: Final = "..."
"""Begins a value of a list that continues the value before it."""

MAX_LINE: Final = 1 << 20

ALTERED: Final = "log_altered"
"""The act of a line that a node writes where it found the log changed behind its back."""

NOT_DONE: Final = "not_done"
"""The act of a line that takes an earlier one back: what had been written down was not done."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")
_RESERVED = frozenset({"n", "time", "act", "previous", "part", "parts"})

Scalar = str | int | float | bool | None
Value = Scalar | Sequence[str | int]


class Head(NamedTuple):
    """The end of a log: number of its last line, from 0, and that line's SHA-256, hex; -1 and zeros without lines."""

    n: int
    sha256: str


EMPTY: Final = Head(-1, FIRST)


def checked_act(act: str) -> str:
    """The name of an act."""
    if not _NAME.match(act):
        raise ValueError(f"{act!r} is no name of an act")
    return act


def checked(values: Mapping[str, Value]) -> list[dict[str, Value]]:
    """The values of an act's line, long texts cut; those of several lines where a list is longer than one holds."""
    whole = {key: _checked(key, value) for key, value in values.items()}
    parts = max([1, *(-(-len(value) // MAX_VALUES) for value in whole.values() if isinstance(value, list))])
    if parts == 1:
        return [whole]
    return [_part(whole, number, parts) for number in range(1, parts + 1)]


def _part(whole: Mapping[str, Value], number: int, parts: int) -> dict[str, Value]:
    end = number * MAX_VALUES
    pieces = {
        key: value[end - MAX_VALUES : end] if isinstance(value, list) else value
        for key, value in whole.items()
    }
    return {**pieces, "part": number, "parts": parts}


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
        return [piece for v in value for piece in ([v] if isinstance(v, int) else _pieces(str(v)))]
    raise TypeError(f"{key} is a {type(value).__name__}: the audit log holds no content")


def _pieces(text: str) -> list[str]:
    step = MAX_VALUE - len(GOES_ON)
    rest = (text[start : start + step] for start in range(MAX_VALUE, len(text), step))
    return [text[:MAX_VALUE], *(GOES_ON + piece for piece in rest)]


def encoded(head: Head, time: str, act: str, values: Mapping[str, Value]) -> bytes:
    own: dict[str, Value] = {"n": head.n + 1, "time": time, "act": act, "previous": head.sha256}
    return json.dumps({**own, **values}, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None if it is no JSON object."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def number(line: bytes) -> int:
    found = (parsed(line) or {}).get("n")
    return found if isinstance(found, int) else -1


def follows(line: bytes, head: Head) -> str:
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


@dataclass(frozen=True, slots=True)
class _End:
    """Where the log ended when this process last wrote or read it."""

    file: tuple[int, int]
    size: int
    head: Head
    line: int


class AuditLog:
    """An audit log; several threads and processes may write to one.

    Raises:
        ConfigError: It is not a file, or cannot be read and written.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.check(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._end: _End | None = None
        self._release: Callable[[], object] = lambda: None
        self._altered: str | None = None
        self._unwritten: str | None = None
        self._owed: deque[tuple[str, dict[str, Value]]] = deque()
        """Acts and values of lines that could not be written yet."""

    @staticmethod
    def check(path: Path) -> None:
        """Check that a log could be written there; creates nothing.

        Raises:
            ConfigError: It is not a file, or cannot be read and written.
        """
        check_private_file(path)

    @property
    def problem(self) -> str | None:
        """What is wrong with the log, with the remedy, for the node's health; None if nothing is.

        A log that was altered stays a problem for as long as this process runs; one that cannot be written is a problem
        until a line is written.
        """
        return self._altered or self._unwritten

    @property
    def head(self) -> Head:
        """The end of the log as this process last wrote or read it; the file is read if it has not yet.

        Raises:
            OSError: The file cannot be read.
        """
        end = self._end
        if end is None:
            with self._lock, self._open() as file:
                end = self._look(file)
        return end.head

    def write(self, act: str, **values: Value) -> Head:
        """Add a line; on the disk when this returns.

        Raises:
            ValueError: The act or a key is not a plain lower-case name, or a key is reserved for the log.
            TypeError: A value is neither a scalar nor a list of strings or integers.
            OSError: The line could not be written; the caller must not perform the act.
        """
        return self.write_each(act, [values])

    def write_each(self, act: str, each: Sequence[Mapping[str, Value]]) -> Head:
        """As `write`, a line for each of several acts of one kind; all are on the disk when this returns."""
        return self._write(act, [record for values in each for record in checked(values)])

    def doing(self, act: str, each: Sequence[Mapping[str, Value]]) -> AbstractContextManager[object]:
        """As `write_each`, of acts that are about to be done: `with log.doing(...):` and there they are done.

        What fails there was not done: the log gets as many lines `not_done`, with `what` for the act and its values. If
        it cannot be written then, they come before its next line. A kill leaves them to whoever compares the log with
        what was done.
        """
        records = [record for values in each for record in checked(values)]
        self._write(act, records, failed=lambda written: self._owe(act, records[:written]))
        undo = ExitStack()
        undo.push(lambda kind, _error, _trace: self._take_back(act, records) if kind else None)
        return undo

    def done(self, act: str, **values: Value) -> None:
        """As `write`, of what has been done: what cannot be written now comes before the next line, marked `late`.

        Raises:
            OSError: It could not be written now.
        """
        records = checked(values)

        def owe(written: int) -> None:
            self._owed.extend((act, {**record, "late": True}) for record in records[written:])

        self._write(act, records, failed=owe)

    def _write(
        self,
        act: str,
        records: Sequence[dict[str, Value]],
        *,
        failed: Callable[[int], object] = lambda _written: None,
    ) -> Head:
        """Add lines; `failed` is called with how many are in the file, if they did not all reach the disk."""
        checked_act(act)
        written = 0
        try:
            with self._lock, self._open() as file:
                self._look(file)
                self._correct(file)
                for record in records:
                    self._append(file, act, record)
                    written += 1
                os.fsync(file)
                head = self._known.head
        except OSError as error:
            failed(written)
            self._unwritten = f"the audit log {self._path} cannot be written: {error.strerror or error}"
            raise
        self._unwritten = None
        return head

    def _owe(self, act: str, records: Sequence[dict[str, Value]]) -> None:
        self._owed.extend((NOT_DONE, {"what": act, **record}) for record in records)

    def _take_back(self, act: str, records: Sequence[dict[str, Value]]) -> None:
        self._owe(act, records)
        self.look()

    def _correct(self, file: int) -> bool:
        owed = bool(self._owed)
        while self._owed:
            self._append(file, *self._owed[0])
            self._owed.popleft()
        return owed

    def look(self) -> str | None:
        """Compare the end of the file with what was last written or read, and write what is owed."""
        try:
            with self._lock, self._open() as file:
                before = self._end
                changed = self._look(file) is not before
                if self._correct(file) or changed:
                    os.fsync(file)
            self._unwritten = None
        except OSError as error:
            self._unwritten = f"the audit log {self._path} cannot be written: {error.strerror or error}"
        return self.problem

    @property
    def _known(self) -> _End:
        assert self._end is not None  # every caller has looked
        return self._end

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The file, locked against other processes."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            # Closing alone would leave the lock to the descriptor that `_hold` keeps.
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    def _append(self, file: int, act: str, values: Mapping[str, Value]) -> None:
        end = self._known
        line = encoded(end.head, self._clock().isoformat(), act, values)
        written = os.write(file, line)
        if written != len(line):
            said = f"only {written} of {len(line)} bytes of a line were written"
            raise OSError(errno.ENOSPC, said, str(self._path))
        self._end = _End(end.file, end.size + written, Head(end.head.n + 1, digest(line)), written)

    def _look(self, file: int) -> _End:
        """Find the end of the log; notes in it what a crash or somebody else did to it since the last look."""
        status = os.fstat(file)
        where, size = (status.st_dev, status.st_ino), status.st_size
        if self._end is None:
            self._hold(file)
            self._begin(file, where, size)
        elif what := self._alteration(file, where, size):
            self._hold(file)
            self._report(file, where, what)
        return self._known

    def _hold(self, file: int) -> None:
        self._release()
        self._release = weakref.finalize(self, os.close, os.dup(file))

    def _begin(self, file: int, where: tuple[int, int], size: int) -> None:
        """The end of the log at the first look, where only the file itself can be asked."""
        whole, newline, torn = os.pread(file, MAX_LINE, max(0, size - MAX_LINE)).rpartition(b"\n")
        if torn:
            os.ftruncate(file, size - len(torn))
        lines = [line + b"\n" for line in whole.split(b"\n")] if newline else []
        known, head = size <= MAX_LINE, EMPTY
        if not known and len(lines) > 1:
            del lines[0]  # a part of a line
        for place, line in enumerate(lines):
            if (known or place) and (problem := follows(line, head)):
                self._altered = (
                    f"the audit log {self._path} is broken near its end, after line {head.n + 1}: {problem}; "
                    "ddib audit verify shows where; keep the file, move it away and restart the node"
                )
            head = Head(number(line), digest(line))
        self._end = _End(where, size - len(torn), head, len(lines[-1]) if lines else 0)
        if torn:
            self._append(file, "log_repaired", {"torn_bytes": len(torn)})

    def _alteration(self, file: int, where: tuple[int, int], size: int) -> str:
        """What was done to the log since the last look, other than lines that follow it; empty for nothing."""
        end = self._known
        if where != end.file:
            return "was replaced by another file"
        if size < end.size:
            return "was cut"
        last = os.pread(file, end.line, end.size - end.line)
        if end.line and digest(last) != end.head.sha256:
            return "was rewritten"
        return self._catch_up(file, size) if size > end.size else ""

    def _catch_up(self, file: int, size: int) -> str:
        """Take over the lines that other processes added; what is wrong with them."""
        end = self._known
        if size - end.size > MAX_CATCH_UP:
            return f"grew by {size - end.size} bytes that no command writes"
        whole, _, torn = os.pread(file, size - end.size, end.size).rpartition(b"\n")
        for line in whole.split(b"\n") if whole else ():
            if follows(line, end.head):
                return "has lines that do not follow the others"
            length = len(line) + 1
            end = _End(end.file, end.size + length, Head(end.head.n + 1, digest(line + b"\n")), length)
        self._end = end
        if torn:
            os.ftruncate(file, end.size)
            self._append(file, "log_repaired", {"torn_bytes": len(torn)})
        return ""

    def _report(self, file: int, where: tuple[int, int], what: str) -> None:
        """Go on from the line in memory, whatever the file holds now, and say so in the log and to the operator."""
        end = self._known
        found = size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            size += os.write(file, b"\n")  # a torn line must not swallow ours
        self._altered = (
            f"the audit log {self._path} {what} while the node ran: it should end with line {end.head.n + 1}, "
            f"SHA-256 {end.head.sha256}; keep the file, find out who can write to it, compare it with a peer's anchors "
            "(ddib audit verify --anchor FILE), then move it away and restart the node"
        )
        log.error("%s", self._altered)
        self._end = _End(where, size, end.head, 0)
        values: dict[str, Value] = {
            "what": what,
            "lines": end.head.n + 1,
            "bytes_expected": end.size,
            "bytes_found": found,
        }
        self._append(file, ALTERED, values)


def note(path: Path, act: str, **values: Value) -> AbstractContextManager[object]:
    """Add a line for an operator's command, before the command does what the line says.

    What fails inside the context that is returned gets a line `not_done`.

    Raises:
        ConfigError: It cannot be written; the command must not act.
    """
    try:
        return AuditLog(path).doing(act, [values])
    except OSError as error:
        raise ConfigError(
            f"the audit log {path} cannot be written, so nothing was done: {error.strerror or error}",
            hint="run this as the node's own user; df shows whether the disk is full",
        ) from error


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
