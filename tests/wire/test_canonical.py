"""The canonical JSON, against the examples of RFC 8785 and against reading back."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.files import canonical_json

# Appendix B of RFC 8785: IEEE 754 bits and the text.
RFC_8785_NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]


@pytest.mark.parametrize(("bits", "text"), RFC_8785_NUMBERS)
def test_numbers_are_written_as_rfc_8785_says(bits, text):
    """Appendix B of the RFC."""
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number).decode() == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_reads_back_the_same(number):
    """The shortest digits are still all digits that matter."""
    assert float(canonical_json(number)) == number


def test_keys_are_sorted_and_nothing_is_spaced():
    """One text whatever the order in which fields were set."""
    assert canonical_json({"b": [1, 2.5, "x"], "a": {}}) == b'{"a":{},"b":[1,2.5,"x"]}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**53, -(2**53), "é", "a\nb", {"é": 1}])
def test_what_implementations_could_write_differently_is_refused(value):
    """Not finite, over 2^53 - 1, or not printable ASCII."""
    with pytest.raises(ValueError, match=r"representable|safe integer|ASCII"):
        canonical_json(value)


@pytest.mark.parametrize("value", [None, b"bytes", object(), [None], {"a": None}])
def test_other_types_are_refused(value):
    """They have no place in a contract."""
    with pytest.raises(TypeError):
        canonical_json(value)
