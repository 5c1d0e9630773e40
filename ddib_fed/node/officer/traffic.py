"""An audit log in figures: how much crossed to and from each peer, what was refused, what was noted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddib_fed.trust.audit.log import ALTERED, RECEIPT, parsed


@dataclass(slots=True)
class Traffic:
    """What crossed between the node and one peer, by its receipts; bytes are of latents and files, without framing."""

    sent_items: int = 0
    sent_bytes: int = 0
    received_items: int = 0
    received_bytes: int = 0
    latents_sent: int = 0
    latents_received: int = 0
    calls: int = 0
    last: str = ""
    peer_lines: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one receipt."""
        for name in ("sent_items", "sent_bytes", "received_items", "received_bytes"):
            value = record.get(name)
            setattr(self, name, getattr(self, name) + (value if isinstance(value, int) else 0))
        self.calls += 1
        self.last = str(record.get("time", ""))
        lines = record.get("peer_lines")
        self.peer_lines = max(self.peer_lines, lines if isinstance(lines, int) else 0)


@dataclass(slots=True)
class Logged:
    """A whole audit log in figures."""

    since: str = ""
    peers: dict[str, Traffic] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    acts: Counter[str] = field(default_factory=Counter)
    policy: str = ""
    altered: int = 0


def logged(path: Path) -> Logged:
    """Read a log; lines that cannot be read are skipped, `verify` names them. Empty where there is no log."""
    found = Logged()
    if not path.exists():
        return found
    with path.open("rb") as file:
        for line in file:
            record = parsed(line)
            if record is not None:
                _count(found, record)
    return found


def _count(found: Logged, record: Mapping[str, Any]) -> None:
    act = str(record.get("act"))
    found.since = found.since or str(record.get("time", ""))
    found.acts[act] += 1
    if act != RECEIPT:  # it names that of its call, which may have been replaced before the call ended
        found.policy = str(record.get("policy", found.policy))
    peer = str(record.get("peer")).removeprefix("spiffe://").partition("/")[0]
    if act == RECEIPT:
        found.peers.setdefault(peer, Traffic()).add(record)
    elif act == "latent_sent":
        found.peers.setdefault(peer, Traffic()).latents_sent += 1
    elif act == "latent_received":
        found.peers.setdefault(peer, Traffic()).latents_received += 1
    elif act == "refused":
        times = record.get("times", 1)
        found.refused[str(record.get("reason"))] += times if isinstance(times, int) else 1
    elif act == ALTERED:
        found.altered += 1
