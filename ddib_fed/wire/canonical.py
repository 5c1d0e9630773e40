"""Canonical JSON (RFC 8785, JSON Canonicalization Scheme) of what both parties hash, and checks of its fields.

Only objects, arrays, printable ASCII strings, booleans, integers below 2^53 and finite doubles occur: a second
implementation cannot write any of them differently by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785

from ddib_fed.errors import MessageInvalid

MAX_CLASSES = 1_000_000
DIGEST_BYTES = 32
MAX_SAFE_INTEGER = 2**53 - 1
"""Largest integer that every JSON implementation keeps exactly."""

Value = Mapping[str, "Value"] | Sequence["Value"] | str | bool | int | float


def canonical_json(value: Value) -> bytes:
    """The canonical text of a value, as ASCII bytes.

    Raises:
        ValueError: A string is not printable ASCII, an integer is over 2^53 - 1, a number is not finite.
        TypeError: Something that is not a `Value`.
    """
    return rfc8785.dumps(_narrowed(value))


def _narrowed(value: Value) -> Any:
    """The value in the types that the library writes; ambiguous values are refused."""
    if isinstance(value, str):
        if not (value.isascii() and value.isprintable()):
            raise ValueError("only printable ASCII is hashed")
        return value
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_narrowed(key): _narrowed(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_narrowed(item) for item in value]
    raise TypeError(f"{type(value).__name__} does not occur in what is hashed")


def require(ok: bool, field: str, detail: str) -> None:
    """For domain types, which check what they demand of their fields where they are made."""
    if not ok:
        raise MessageInvalid(f"{field}: {detail}", facts={"field": field})


def require_number(value: float, low: float, high: float, field: str) -> None:
    # Written so that NaN fails.
    require(low <= value <= high, field, f"must be from {low:g} to {high:g}")
