"""What a running node writes of whom it trusts."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from ddib_fed.node.admin import Watch
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
    observed = Watch(log, south.store, south.pki)
    observed.started()
    path = south.store.file
    resumed = path.read_bytes()
    path.write_bytes(resumed.replace(b'"suspended": {}', b'"suspended": {"north.example": "audit"}'))
    observed.look()
    observed.started()
    path.write_bytes(resumed)
    observed.look()
    observed.look()
    observed.started()
    records = audit_rows.records(log.store.path)
    changes = [record["changes"] for record in records if "changes" in record]
    assert changes == [["added suspended north.example"], ["removed suspended north.example"]]
    free, held, again = (record for record in records if record["act"] == "node_started")
    assert (free["suspended"], held["suspended"]) == ([], ["north.example"])
    assert held["trust"] != free["trust"] == again["trust"]
