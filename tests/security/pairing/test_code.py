"""The code that is read out: short, and one wrong digit is found before it is used up."""

from __future__ import annotations

import pytest

from ddib_fed.errors import UsageError
from ddib_fed.security.pairing import new_code, parse_code


def test_every_new_code_is_read_as_it_was_shown() -> None:
    """Nine digits in groups; however they are typed."""
    codes = [new_code() for _ in range(200)]
    assert len(set(codes)) > 190
    for code in codes:
        assert parse_code(code) == code
        assert parse_code(f" {code.replace('-', ' ')} ") == parse_code(code.replace("-", "")) == code


def test_every_single_wrong_digit_is_found() -> None:
    """At each of the nine places, each of the nine other digits."""
    digits = new_code().replace("-", "")
    wrong = [
        digits[:place] + other + digits[place + 1 :]
        for place in range(9)
        for other in "0123456789"
        if other != digits[place]
    ]
    assert len(wrong) == 81
    for each in wrong:
        with pytest.raises(UsageError, match="is wrong"):
            parse_code(each)


@pytest.mark.parametrize("text", ["", "482-173", "482-173-0633", "48217306x", "٤٨٢١٧٣٠٦٣"])
def test_what_is_no_code_is_refused_with_what_shows_one(text: str) -> None:
    """Digits of other alphabets are none."""
    with pytest.raises(UsageError, match="is no code") as caught:
        parse_code(text)
    assert "ddib pair --listen" in caught.value.hint
