"""What a running node writes of whom it trusts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ddib_fed.node.watch import Observed
from ddib_fed.security.audit import MAX_VALUE, AuditLog
from tests.node.institutions import Institution


def test_no_fingerprint_of_a_change_is_cut(tmp_path: Path) -> None:
    """A peer in the middle of a roll-over has two roots: each is a value of its own."""
    name = "department-of-radiology.university-hospital.example"
    old, new = (Institution(name, tmp_path / folder) for folder in ("old", "new"))
    south = Institution("south.example", tmp_path / "south")
    peer = replace(old.peer(), roots=(old.root, new.root))
    log = tmp_path / "audit.jsonl"
    observed = Observed(AuditLog(log), south.store, south.pki)
    south.store.add(peer, fingerprints=peer.fingerprints)
    observed.look()
    (line,) = map(json.loads, log.read_text().splitlines())
    entry, *roots = line["changes"]
    assert entry == f"added peer {name}: {peer.identity} at {peer.address}"
    assert roots == [f"root {text} of {name}" for text in peer.fingerprints]
    assert all(len(change) < MAX_VALUE for change in line["changes"])


def test_a_peer_that_is_suspended_or_resumed_by_hand_is_written_down(tmp_path: Path) -> None:
    """Who can write to the state folder resumes a peer; the digest of the start shows it as well."""
    north, south = (Institution(f"{name}.example", tmp_path / name) for name in ("north", "south"))
    south.admit(north)
    log = tmp_path / "audit.jsonl"
    observed = Observed(AuditLog(log), south.store, south.pki)
    free = observed.summary()
    path = south.store.file
    resumed = path.read_bytes()
    path.write_bytes(resumed.replace(b'"suspended": {}', b'"suspended": {"north.example": "audit"}'))
    observed.look()
    held = observed.summary()
    path.write_bytes(resumed)
    observed.look()
    observed.look()
    changes = [json.loads(line)["changes"] for line in log.read_text().splitlines()]
    assert changes == [["suspended peer north.example"], ["resumed peer north.example"]]
    assert (free["suspended"], held["suspended"]) == ([], ["north.example"])
    assert held["trust"] != free["trust"] == observed.summary()["trust"]
