"""Each act of an operator has its line in the node's audit log before it is done, whether the node runs or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddib_fed.cli.main import run
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.config import NodeConfig
from ddib_fed.security.audit import lines_of, verify
from tests import audit_rows
from tests.cli.node.test_peer import exported, set_up

ALICE = "spiffe://north.example/client/alice"


@pytest.fixture
def north(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return set_up(tmp_path / "north", "north.example")


@pytest.fixture
def south(tmp_path: Path) -> Path:
    return set_up(tmp_path / "south", "south.example")


def records(config: Path) -> list[dict]:
    path = NodeConfig.load(config).paths.store
    assert not path.exists() or verify(lines_of(path)).ok
    return audit_rows.records(path)


def acts(config: Path) -> list[str]:
    return [record["act"] for record in records(config)]


def add(config: Path, file: str, fingerprint: str, *options: str) -> int:
    return run(["peer", "add", file, "--config", str(config), "--fingerprint", fingerprint, *options])


def test_peers_come_change_and_go(north: Path, south: Path) -> None:
    """With identity, address and fingerprint; what changes nothing has no line."""
    fingerprint = exported(south, "south.peer")
    assert add(north, "south.peer", fingerprint) == 0
    assert add(north, "south.peer", fingerprint) == 0
    text = south.read_text()
    south.write_text(text.replace("7443", "7555"))
    exported(south, "moved.peer")
    assert add(north, "moved.peer", fingerprint, "--force") == 0
    assert run(["peer", "remove", "south.example", "--config", str(north)]) == 0
    added, replaced, removed = records(north)
    assert (added["act"], added["identity"], added["roots"]) == (
        "peer_added", "spiffe://south.example/node/node-1", [fingerprint],
    )  # fmt: skip
    assert (replaced["act"], replaced["address"][-4:]) == ("peer_replaced", "7555")
    assert (removed["act"], removed["peer"]) == ("peer_removed", "south.example")


@pytest.mark.parametrize("what", ["add", "remove", "withdraw"])
def test_without_its_line_an_act_is_not_done(north: Path, south: Path, what: str, capsys) -> None:
    """The log cannot be written: the peer is not admitted, not removed, nobody is withdrawn."""
    fingerprint = exported(south, "south.peer")
    config = NodeConfig.load(north)
    if what == "remove":
        assert add(north, "south.peer", fingerprint) == 0
        config.paths.store.unlink()
    config.paths.store.mkdir(parents=True)
    command = {
        "add": ["peer", "add", "south.peer", "--fingerprint", fingerprint],
        "remove": ["peer", "remove", "south.example"],
        "withdraw": ["pki", "withdraw", ALICE],
    }[what]
    assert run([*command, "--config", str(north)]) != 0
    assert "node.sqlite" in capsys.readouterr().err
    trusted = peer_store(config).snapshot()
    assert ("south.example" in trusted.peers) == (what == "remove")
    assert not trusted.withdrawn
