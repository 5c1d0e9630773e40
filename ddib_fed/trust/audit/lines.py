"""One line of the audit log: what it may hold, how it is written, and how it follows the line before it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ddib_fed.files import parse_json

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
