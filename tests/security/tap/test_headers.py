"""Which headers the tap lets pass, and how long."""

from __future__ import annotations

import base64

import pytest

from tests.protocol.surface import METADATA
from tests.security.tap.search import Traffic


@pytest.mark.parametrize(
    ("name", "value", "passes"),
    [
        ("grpc-status", b"0", True),
        ("ddib-time", b"1" * METADATA["ddib-time"].most, True),
        ("ddib-time", b"1" * (METADATA["ddib-time"].most + 1), False),
        ("ddib-error-bin", base64.b64encode(bytes(METADATA["ddib-error-bin"].most)), True),
        ("ddib-error-bin", base64.b64encode(bytes(METADATA["ddib-error-bin"].most + 3)), False),
        ("traceparent", b"00", False),
        ("ddib-trace", b"1", False),
        ("trace", b"1", False),
    ],
)
def test_a_header_is_ours_and_as_long_as_is_promised(name: str, value: bytes, passes: bool) -> None:
    """Nobody shares traces in a run over the tap, so none of their keys may cross."""
    traffic = Traffic([])
    traffic._check_header("a call", name, value)
    assert (traffic.headers == []) == passes
