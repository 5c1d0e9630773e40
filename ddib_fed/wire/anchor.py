"""The end of a node's audit log as the two nodes of a contract tell it to each other.

Whoever receives one writes it into its own log: neither node can then cut, roll back or rewrite its log up to that line
without the other being able to show it.
"""

from __future__ import annotations

from typing import NamedTuple

from ddib_fed.errors import UnknownFields
from ddib_fed.v1 import common_pb2, decoding_pb2
from ddib_fed.wire.mapping import from_message, to_message
from ddib_fed.wire.version import TRUST, Version


class Anchor(NamedTuple):
    """The end of a log: how many lines it has, and SHA-256 of the last, hex."""

    lines: int
    sha256: str


def anchor_to_pb(anchor: Anchor | None, version: Version) -> common_pb2.AuditHead | None:
    """The message; None for no anchor, and for a peer whose version has none."""
    if anchor is None or version < TRUST:
        return None
    return to_message(anchor, common_pb2.AuditHead)


def anchor_from_pb(
    header: decoding_pb2.LatentHeader | decoding_pb2.DecodedHeader, version: Version
) -> Anchor | None:
    """The anchor in a header; None if it has none.

    Raises:
        UnknownFields: It has one, and the contract's version knows none.
    """
    if not header.HasField("audit"):
        return None
    if version < TRUST:
        raise UnknownFields(f"protocol {version} knows no ends of audit logs")
    return from_message(header.audit, Anchor)
