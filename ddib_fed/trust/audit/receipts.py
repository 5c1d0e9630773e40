"""What two nodes exchanged in one call, as a line of each one's audit log, with the end of the other's log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ddib_fed.trust.audit.lines import Head
from ddib_fed.wire.latent import Anchor

RECEIPT: Final = "receipt"
"""The act of such a line."""


@dataclass(slots=True)
class Exchanged:
    """What one call exchanged: latents and files without headers and framing, in bytes.

    Attributes:
        sent_items: What went to the peer: latents from a source, translations from a target.
        sent_bytes: Theirs; a latent that a round trip returns belongs to its translation.
        received_items: What came from the peer.
        received_bytes: Theirs.
        anchor: The end of the peer's audit log, as it came with the last of them; None for none.
    """

    sent_items: int = 0
    sent_bytes: int = 0
    received_items: int = 0
    received_bytes: int = 0
    anchor: Anchor | None = None

    def sent(self, size_bytes: int) -> None:
        """One more has gone."""
        self.sent_items += 1
        self.sent_bytes += size_bytes

    def received(self, size_bytes: int) -> None:
        """One more has come."""
        self.received_items += 1
        self.received_bytes += size_bytes

    def values(self) -> dict[str, str | int]:
        """Of the line of the audit log."""
        return {
            "sent_items": self.sent_items,
            "sent_bytes": self.sent_bytes,
            "received_items": self.received_items,
            "received_bytes": self.received_bytes,
            **anchor_values(self.anchor),
        }


def anchor_values(anchor: Anchor | None) -> dict[str, str | int]:
    """An anchor of a peer as values of a line; none for a peer that sent none."""
    return {} if anchor is None else {"peer_lines": anchor.lines, "peer_head": anchor.sha256}


def anchor_of(head: Head) -> Anchor:
    """The end of this log as it is sent to a peer; the log must have a line."""
    return Anchor(head.n + 1, head.sha256)
