"""The code that one operator reads to the other: eight random digits and a check digit.

The check digit (ISO 7064, MOD 11,10) finds every single wrong digit before anything is sent, so that a slip of the
keyboard does not use up a code.
"""

from __future__ import annotations

import re
import secrets
from typing import Final

from ddib_fed.errors import UsageError

DIGITS: Final = 8
"""Random digits. One guess is right with a chance of 1 in 10**8, and a code allows one guess at each side."""


def new_code() -> str:
    """A code, e.g. ``482-173-063``."""
    digits = f"{secrets.randbelow(10**DIGITS):0{DIGITS}}"
    return _grouped(digits + _check_digit(digits))


def parse_code(text: str) -> str:
    """A code as it was typed, in the form of `new_code`; spaces, dots and dashes between the digits do not matter.

    Raises:
        UsageError: It is no code, or a digit is wrong.
    """
    digits = re.sub(r"[ .-]", "", text)
    if not re.fullmatch(rf"[0-9]{{{DIGITS + 1}}}", digits):
        raise UsageError(
            f"{text[:40]!a} is no code: it has {DIGITS + 1} digits, e.g. 482-173-063",
            hint="`ddib pair --listen` shows one, on the other side",
        )
    if _check_digit(digits[:DIGITS]) != digits[DIGITS]:
        raise UsageError(
            f"a digit of {_grouped(digits)} is wrong; nothing was sent, and the code is still good",
            hint="ask the other operator to read it again",
        )
    return _grouped(digits)


def _grouped(digits: str) -> str:
    return "-".join(digits[start : start + 3] for start in range(0, len(digits), 3))


def _check_digit(digits: str) -> str:
    product = 10
    for digit in digits:
        product = ((product + int(digit)) % 10 or 10) * 2 % 11
    return str((11 - product) % 10)
