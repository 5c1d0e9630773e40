"""What a running node writes to its audit log by itself, and how it says that the log was altered."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ddib_fed.node.admin import AdminClient
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.config import NodeConfig
from ddib_fed.security import pki
from ddib_fed.security.audit import lines_of, verify
from ddib_fed.security.identity import Identity
from tests import audit_rows
from tests.node.running.test_daemon import Running, ready
from tests.node.tiny_nodes import make_institution


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return ready(tmp_path / "south", "south.example", "target")


@pytest.fixture
def running(config: NodeConfig):
    node = Running(config).serving()
    yield node
    node.end()


def records(config: NodeConfig) -> list[dict]:
    return audit_rows.records(config.paths.store)


def of_act(config: NodeConfig, act: str) -> list[dict]:
    return [record for record in records(config) if record["act"] == act]


def test_start_and_stop_have_their_lines(config: NodeConfig) -> None:
    """With the release, the model, and whom the node trusts."""
    for _ in range(2):
        node = Running(config).serving()
        model = node.daemon.node.running_engine.model.bundle.digest
        node.end()
    found = records(config)
    assert [record["act"] for record in found] == ["node_started", "node_stopped"] * 2
    assert (found[0]["model"], found[0]["roles"], found[0]["peers"]) == (model, ["target"], [])
    assert found[1]["by"] == "drain"
    assert found[0]["trust"] == found[2]["trust"]
    assert verify(lines_of(config.paths.store)).ok


def test_files_that_somebody_changed_by_hand_are_written_down(
    config: NodeConfig, running: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer admitted, suspended, resumed and removed without a command, a withdrawal, another certificate."""
    caplog.set_level(logging.INFO, logger="ddib_fed.node.admin")
    north = make_institution(tmp_path / "north", "north.example")
    look = running.daemon._look
    store = peer_store(config)
    store.add(north.peer(), fingerprints=north.peer().fingerprints)
    look()
    free = store.file.read_bytes()
    store.file.write_bytes(free.replace(b'"suspended": {}', b'"suspended": {"north.example": "audit"}'))
    look()
    store.file.write_bytes(free)
    look()
    store.remove("north.example")
    look()
    store.withdraw(Identity("south.example", "client", "bob"))
    look()
    renewed = pki.issue_to_folder(pki.load_authority(config.paths.pki), config.paths.pki, "node", "node-1")
    look()
    look()
    changes = [change for record in of_act(config, "trust_changed") for change in record["changes"]]
    fingerprint = pki.fingerprint(north.root)
    assert changes == [
        "added peer north.example: spiffe://north.example/node/node-1 at 127.0.0.1:7443",
        f"added root {fingerprint} of north.example",
        "added suspended north.example",
        "removed suspended north.example",
        "removed peer north.example: spiffe://north.example/node/node-1 at 127.0.0.1:7443",
        f"removed root {fingerprint} of north.example",
        "added withdrawn spiffe://south.example/client/bob",
    ]
    logged = [record.getMessage() for record in caplog.records if record.name.endswith("admin")]
    assert logged == changes
    (changed,) = of_act(config, "certificate_changed")
    leaf = pki.parse_certificates(renewed.cert_chain_pem, "leaf")[0]
    assert changed["certificate"] == pki.fingerprint(leaf)


def test_a_log_that_is_cut_while_the_node_runs_makes_it_degraded(
    config: NodeConfig, running: Running
) -> None:
    """Within the time of its check, without a call; with what to do; and the log no longer verifies."""
    AdminClient(config).reload()
    running.daemon._look()
    path = config.paths.store
    audit_rows.cut(path, 1)
    assert AdminClient(config).status().state == "serving"
    running.daemon._look()
    state = AdminClient(config).status().state
    assert state.startswith("degraded: the audit log ")
    assert "was cut while the node ran" in state
    assert "ddib audit verify" in state
    assert not verify(lines_of(path)).ok


def test_a_reload_is_a_line(config: NodeConfig, running: Running) -> None:
    """By the operator."""
    AdminClient(config).reload()
    assert len(of_act(config, "reload")) == 1
