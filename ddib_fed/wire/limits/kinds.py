"""The kinds of limit that a field of a message can have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ddib_fed.errors import DdibError, MessageInvalid


@dataclass(frozen=True, slots=True)
class Number:
    """A number from `low` to `high`; NaN is outside."""

    low: float
    high: float
    error: type[DdibError] = MessageInvalid

    def problem(self, value: Any) -> str:
        return "" if self.low <= value <= self.high else f"must be from {self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Text:
    """A text of at most `longest` characters; where there is a pattern, the whole of it."""

    longest: int
    pattern: str = ""
    error: type[DdibError] = MessageInvalid

    def problem(self, value: str) -> str:
        """The problem with a value; empty if there is none."""
        if len(value) > self.longest:
            return f"must be at most {self.longest} characters"
        return "" if not self.pattern or re.fullmatch(self.pattern, value) else f"must be {self.pattern}"


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes of `least` to `most` in number."""

    least: int
    most: int
    error: type[DdibError] = MessageInvalid

    def problem(self, value: bytes) -> str:
        return "" if self.least <= len(value) <= self.most else f"must be {self.least} to {self.most} bytes"


@dataclass(frozen=True, slots=True)
class Choice:
    """An enum that is set; the reader decides about numbers of a later release."""

    error: type[DdibError] = MessageInvalid

    def problem(self, value: int) -> str:
        return "" if value else "must be set"


@dataclass(frozen=True, slots=True)
class Inner:
    """A message inside a message, whose own fields are checked too."""

    required: bool = False
    error: type[DdibError] = MessageInvalid


@dataclass(frozen=True, slots=True)
class Many:
    """From `least` to `most` values, each within `each`; of a map the values."""

    each: Number | Text | Choice | Inner
    most: int
    least: int = 0
    error: type[DdibError] = MessageInvalid


@dataclass(frozen=True, slots=True)
class Anything:
    """Every value of the type is allowed, or `by` checks it."""

    by: str = ""


Checked = Number | Text | Bytes | Choice | Inner | Many
Limit = Checked | Anything
