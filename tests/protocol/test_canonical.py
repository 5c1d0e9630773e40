"""The canonical JSON, against the examples of RFC 8785 and against reading back."""

import math

import pytest

from ddib_fed.files import canonical_json


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
