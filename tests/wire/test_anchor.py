"""Ends of audit logs on the wire: only between nodes whose contract is of 1.5 or later."""

from __future__ import annotations

import pytest

from ddib_fed.errors import MessageInvalid, UnknownFields
from ddib_fed.v1 import common_pb2, decoding_pb2
from ddib_fed.wire.anchor import Anchor, anchor_from_pb, anchor_to_pb
from ddib_fed.wire.limits import fields
from ddib_fed.wire.version import SPOKEN, TRUST, Version

ANCHOR = Anchor(7, "ab" * 32)
OLDER = [version for version in SPOKEN if version < TRUST]


@pytest.mark.parametrize("header", [decoding_pb2.LatentHeader, decoding_pb2.DecodedHeader])
def test_an_anchor_survives_the_wire(header) -> None:
    """In both headers that can hold one; one without is none."""
    assert anchor_from_pb(header(audit=anchor_to_pb(ANCHOR, TRUST)), TRUST) == ANCHOR
    assert anchor_from_pb(header(audit=anchor_to_pb(None, TRUST)), TRUST) is None


@pytest.mark.parametrize("version", OLDER)
def test_an_older_peer_is_sent_none(version: Version) -> None:
    """It would refuse the message."""
    assert anchor_to_pb(ANCHOR, version) is None


@pytest.mark.parametrize("version", OLDER)
def test_an_anchor_under_an_older_contract_is_refused(version: Version) -> None:
    """As every field that the agreed version does not know."""
    with pytest.raises(UnknownFields):
        anchor_from_pb(decoding_pb2.LatentHeader(audit=anchor_to_pb(ANCHOR, TRUST)), version)


@pytest.mark.parametrize(
    ("lines", "sha256"), [(0, bytes(32)), ((1 << 53) + 1, bytes(32)), (1, bytes(31)), (1, b"")]
)
def test_an_anchor_has_its_limits(lines: int, sha256: bytes) -> None:
    """A log with an end has a line, and a digest has 32 bytes."""
    with pytest.raises(MessageInvalid):
        fields.check(decoding_pb2.DecodedHeader(audit=common_pb2.AuditHead(lines=lines, sha256=sha256)))
