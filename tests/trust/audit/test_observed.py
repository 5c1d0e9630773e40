"""What a running node writes of whom it trusts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ddib_fed.trust.audit.lines import MAX_VALUE
from ddib_fed.trust.audit.log import AuditLog
from ddib_fed.trust.audit.observed import Observed
from tests.node.institutions import Institution


def test_no_fingerprint_of_a_change_is_cut(tmp_path: Path) -> None:
    """A peer in the middle of a roll-over has two roots: each is a value of its own."""
    name = "department-of-radiology.university-hospital.example"
    old, new = (Institution(name, tmp_path / folder) for folder in ("old", "new"))
    south = Institution("south.example", tmp_path / "south")
    peer = replace(old.peer(), roots=(old.root, new.root))
    log = tmp_path / "audit.jsonl"
    observed = Observed(AuditLog(log), store := south.store, south.pki)
    (tmp_path / "south" / "peers").mkdir(exist_ok=True)
    (tmp_path / "south" / "peers" / f"{name}.json").write_bytes(peer.to_bytes())
    store.reload()
    observed.look()
    (line,) = map(json.loads, log.read_text().splitlines())
    entry, *roots = line["changes"]
    assert entry == f"now peer {name}: {peer.identity} at {peer.address}"
    assert roots == [f"root {text} of {name}" for text in peer.fingerprints]
    assert all(len(change) < MAX_VALUE for change in line["changes"])
