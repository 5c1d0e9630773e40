"""The audit log: an append-only file whose lines are chained by digest.

It records identities, actions, digests and peers, never the content of a picture, latent or file. An act is
on the disk when `write` returns.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ddib_fed.files import check_private_file, parse_json

FIRST = "0" * 64
"""The previous digest in the first line."""

MAX_VALUE = 256
"""Characters of one value; longer ones are cut, so that nothing large can hide in the log."""

MAX_VALUES = 32
"""Values of one list."""

MAX_LINE = 1 << 20

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")
_RESERVED = frozenset({"n", "time", "act", "previous"})

Scalar = str | int | float | bool | None
Value = Scalar | Sequence[str | int]


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of reading a whole log.

    Attributes:
        lines: Valid whole lines, from the first.
        head: Digest of the last of them; a copy kept elsewhere detects a truncated log.
        torn_bytes: Bytes after the last whole line: a write that a crash interrupted.
        broken_line: Number (from 1) of the first line that breaks the chain, or None.
        problem: What is wrong with it, or with the log as a whole.
    """

    lines: int
    head: str
    torn_bytes: int = 0
    broken_line: int | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the chain of whole lines is unbroken; a torn end is a crash, not tampering."""
        return not self.problem


class AuditLog:
    """An audit log; several threads and processes may write to one.

    Args:
        path: The file; created with mode 0600 if it is missing.
        clock: Now, in UTC.

    Raises:
        ConfigError: It is not a file, or cannot be read and written.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.check(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._size = -1
        self._next = 0
        self._head = FIRST

    @staticmethod
    def check(path: Path) -> None:
        """Check that a log could be written there; creates nothing.

        Raises:
            ConfigError: It is not a file, or cannot be read and written.
        """
        check_private_file(path)

    def write(self, act: str, **values: Value) -> None:
        """Add a line; on the disk when this returns.

        Args:
            act: What happened, e.g. ``latent_sent``.
            values: With whom and what: identities, peers, digests in hex, reasons, numbers.

        Raises:
            ValueError: The act or a key is not a plain lower-case name, or a key is reserved for the log.
            TypeError: A value is neither a scalar nor a list of strings or integers.
            OSError: The line could not be written; the caller must not perform the act.
        """
        self.write_each(act, [values])

    def write_each(self, act: str, each: Sequence[Mapping[str, Value]]) -> None:
        """As `write`, a line for each of several acts of one kind; all are on the disk when this returns."""
        records = [{key: _checked(key, value) for key, value in values.items()} for values in each]
        if not _NAME.match(act):
            raise ValueError(f"{act!r} is no name of an act")
        with self._lock, self._open() as file:
            repaired = self._catch_up(file)
            if repaired:
                self._append(file, "log_repaired", {"torn_bytes": repaired})
            for record in records:
                self._append(file, act, record)
            os.fsync(file)

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The file, locked against other processes."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _append(self, file: int, act: str, values: dict[str, Value]) -> None:
        own: dict[str, Value] = {"n": self._next, "time": self._clock().isoformat(), "act": act}
        line = _line({**own, "previous": self._head, **values})
        written = os.write(file, line)
        if written != len(line):
            said = f"only {written} of {len(line)} bytes of a line were written"
            raise OSError(errno.ENOSPC, said, str(self._path))
        self._size += written
        self._next += 1
        self._head = _digest(line)

    def _catch_up(self, file: int) -> int:
        """Find the end of the log after a start or another process's write; cut a torn line and return its length."""
        size = os.fstat(file).st_size
        if size == self._size:
            return 0
        tail = os.pread(file, MAX_LINE, max(0, size - MAX_LINE))
        whole, newline, torn = tail.rpartition(b"\n")
        last = whole.rpartition(b"\n")[2] + newline
        if torn:
            os.ftruncate(file, size - len(torn))
        self._size = size - len(torn)
        self._head = _digest(last) if newline else FIRST
        self._next = _number(last) + 1 if newline else 0
        return len(torn)


def verify(path: Path, *, noted: str | None = None) -> Verified:
    """Read a whole log and follow its chain; it is not changed.

    Args:
        path: The log.
        noted: A `head` of earlier, hex: one of the lines must have it as its digest, or the log was cut or replaced.

    A chain detects lines that were changed, removed or inserted. It cannot detect that the end was cut off,
    or that the whole file was rewritten: compare `head` with a copy kept elsewhere.

    Raises:
        FileNotFoundError: There is no log.
    """
    head, count, torn = FIRST, 0, 0
    seen = noted is None or noted == head
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                torn = len(line)
                break
            problem = _problem(line, count, head)
            if problem:
                return Verified(count, head, broken_line=count + 1, problem=problem)
            head, count = _digest(line), count + 1
            seen = seen or noted == head
    return Verified(count, head, torn, problem="" if seen else "no line of it has the head that was noted")


def _problem(line: bytes, number: int, previous: str) -> str:
    try:
        record = parse_json(line)
    except ValueError:
        return "it is not JSON"
    if not isinstance(record, dict) or record.get("n") != number:
        return f"it is not number {number}"
    return "" if record.get("previous") == previous else "it does not follow the line before it"


def _number(line: bytes) -> int:
    """The line's own number; a line that somebody broke does not stop the node: `verify` finds it."""
    try:
        return int(parse_json(line)["n"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return -1


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
        return [v if isinstance(v, int) else str(v)[:MAX_VALUE] for v in value[:MAX_VALUES]]
    raise TypeError(f"{key} is a {type(value).__name__}: the audit log holds no content")


def _line(record: dict[str, Value]) -> bytes:
    return json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
