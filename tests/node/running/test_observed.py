"""What a running node writes of whom it trusts."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from ddib_fed.node.watch import Observed
from ddib_fed.security.audit import AuditLog
from ddib_fed.store import NodeStore
from tests import audit_rows
from tests.node.institutions import Institution


@pytest.fixture
def open_log(tmp_path: Path):
    with closing(NodeStore(tmp_path / "node.sqlite")) as store:
        yield lambda: AuditLog(store)


def test_a_peer_that_is_suspended_or_resumed_by_hand_is_written_down(tmp_path: Path, open_log) -> None:
    """Who can write to the state folder resumes a peer; the digest of the start shows it as well."""
    north, south = (Institution(f"{name}.example", tmp_path / name) for name in ("north", "south"))
    south.admit(north)
    log = open_log()
    observed = Observed(log, south.store, south.pki)
    free = observed.summary()
    path = south.store.file
    resumed = path.read_bytes()
    path.write_bytes(resumed.replace(b'"suspended": {}', b'"suspended": {"north.example": "audit"}'))
    observed.look()
    held = observed.summary()
    path.write_bytes(resumed)
    observed.look()
    observed.look()
    changes = [record["changes"] for record in audit_rows.records(log.store.path)]
    assert changes == [["added suspended north.example"], ["removed suspended north.example"]]
    assert (free["suspended"], held["suspended"]) == ([], ["north.example"])
    assert held["trust"] != free["trust"] == observed.summary()["trust"]
