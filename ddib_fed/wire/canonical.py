"""Turns plain values into the one JSON text that both parties hash (RFC 8785, JSON Canonicalization Scheme).

What two implementations could write differently is refused rather than guessed at: only objects,
arrays, ASCII strings, integers below 2^53 and finite doubles occur.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal

MAX_SAFE_INTEGER = 2**53 - 1
"""Largest integer that every JSON implementation keeps exactly."""

Value = Mapping[str, "Value"] | Sequence["Value"] | str | int | float


def canonical_json(value: Value) -> bytes:
    """The canonical text of a value, as ASCII bytes.

    Raises:
        ValueError: A string is not printable ASCII, an integer is over 2^53 - 1, a number is not finite.
        TypeError: Something that is not a `Value`.
    """
    return _text(value).encode("ascii")


def _text(value: Value) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        raise TypeError("booleans do not occur in what is hashed")
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return _double(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_string(key)}:{_text(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return "[" + ",".join(map(_text, value)) + "]"
    raise TypeError(f"{type(value).__name__} cannot be written as canonical JSON")


def _string(value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise ValueError("only printable ASCII is hashed")
    return json.dumps(value)


def _integer(value: int) -> str:
    if abs(value) > MAX_SAFE_INTEGER:
        raise ValueError(f"{value} is over 2^53 - 1")
    return str(value)


def _double(value: float) -> str:
    """ECMAScript's Number::toString, as RFC 8785 prescribes: the shortest digits that read back the same."""
    if not math.isfinite(value):
        raise ValueError("a number that is not finite has no JSON form")
    if value == 0:
        return "0"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text, n = "".join(map(str, digits)), len(digits) + exponent
    return ("-" if sign else "") + _place_point(text, n)


def _place_point(digits: str, n: int) -> str:
    """Write 0.DIGITS times 10^n as ECMAScript does."""
    k = len(digits)
    if k <= n <= 21:
        return digits + "0" * (n - k)
    if 0 < n <= 21:
        return f"{digits[:n]}.{digits[n:]}"
    if -6 < n <= 0:
        return "0." + "0" * -n + digits
    mantissa = digits if k == 1 else f"{digits[0]}.{digits[1:]}"
    return f"{mantissa}e{'+' if n > 0 else '-'}{abs(n - 1)}"
