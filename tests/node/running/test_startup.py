"""`check` finds what `serve` would end with: each wrong set-up is tried with both, as an operator types them."""

import os
import shutil
import socket
import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError, ExhaustedError
from ddib_fed.node import daemon
from ddib_fed.node.command import node_command, run
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.daemon import Daemon
from ddib_fed.security import pki
from ddib_fed.security.peers import begin_node
from ddib_fed.security.pki import issue_leaf, new_key
from ddib_fed.testing import free_port
from tests.node.running.test_daemon import Running, ready


class Node:
    """North's source node in a folder, which a test spoils."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ready(folder, "north.example", "source")
        self.held: list[object] = []

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def config(self) -> NodeConfig:
        return NodeConfig.load(self.folder / "node.toml")

    def edit(self, old: str, new: str) -> None:
        path = self.folder / "node.toml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def listening(self) -> str:
        """An address that another process has."""
        taken = socket.socket()
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        self.held.append(taken)
        return f"127.0.0.1:{taken.getsockname()[1]}"

    def leaf(self, start_h: float) -> None:
        """A certificate of 24 hours that begins then, which this node cannot renew."""
        authority, key = pki.load_authority(self.pki), new_key()
        begins = datetime.now(UTC) + timedelta(hours=start_h)
        made = issue_leaf(authority, "node", "node-1", public_key=key.public_key(), now=begins)
        pki.write_identity(self.pki, certificate=made, key=key, roots=(authority.certificate,))
        for name in ("ca.key", "ca.pem"):
            (self.pki / name).unlink()

    def tree(self) -> list[tuple[str, int, int]]:
        return sorted((str(p), p.lstat().st_mode, p.lstat().st_size) for p in self.folder.rglob("*"))


def others_key(node: Node) -> None:
    elsewhere = node.folder.parent / "elsewhere"
    begin_node(elsewhere, "north.example", "node-1")
    shutil.copy(elsewhere / "pki" / "ca.key", node.pki / "ca.key")


def one_port_for_both(node: Node) -> None:
    address = f"127.0.0.1:{free_port()}"
    node.edit("127.0.0.1:0", address)
    node.edit('# listen = "127.0.0.1:9464"', f'listen = "{address}"')


def other_domain(node: Node) -> None:
    node.edit('domain = "moons"                #', 'domain = "checkerboards"     #')


def damaged_database(node: Node) -> None:
    (node.state / "node.sqlite").write_bytes(b"garbage " * 999)


WRONG = {
    "bundle of another domain": (other_domain, "model", "bundle_domain"),
    "port in use": (lambda n: n.edit("127.0.0.1:0", n.listening()), "listen", "ss -ltnp"),
    "state 0777": (lambda n: n.state.chmod(0o777), "state", "chmod 700"),
    "damaged database": (damaged_database, "store", "node.sqlite cannot be used"),
    "another root's key": (others_key, "identity", "is not the key of ca.pem"),
    "expired": (lambda n: n.leaf(-48), "identity", "expired"),
    "another name": (lambda n: n.edit('name = "node-1"', 'name = "node-2"'), "identity", "node-2"),
    "trust": (lambda n: (n.state / "trust.json").write_text("{"), "peers", "trust.json cannot be used"),
    "http on the node's port": (one_port_for_both, "http", "both port"),
    "socket is a folder": (lambda n: (n.state / "admin.sock").mkdir(), "operator", "is no socket"),
}


@pytest.fixture
def node(tmp_path: Path):
    made = Node(tmp_path / "north")
    yield made
    for held in made.held:
        held.close()


def problems(node: Node) -> dict[str, str]:
    """What `check` finds wrong, with what to do; that it changes nothing is looked at each time."""
    before = node.tree()
    found = {f.step: f"{f.problem.detail} | {f.problem.hint}" for f in daemon.check(node.config) if f.problem}
    assert node.tree() == before
    return found


def typed(node: Node, verb: str, capsys, monkeypatch) -> tuple[int, str]:
    """Exit code and output of the command."""
    monkeypatch.setattr(sys, "argv", ["ddib-source-node", verb, "--config", str(node.folder / "node.toml")])
    with pytest.raises(SystemExit) as ended:
        run(node_command("source"))
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    return ended.value.code or 0, said


def test_a_node_that_is_in_order_passes_and_is_left_as_it_is(node: Node) -> None:
    """Each step says what there is; the database, the key and the sockets are made by a start, not by a check."""
    assert problems(node) == {}
    assert not (node.state / "node.sqlite").exists()
    assert [finding.step for finding in daemon.check(node.config)] == list(daemon.STEPS)


@pytest.mark.slow
def test_a_running_node_passes_its_own_check(tmp_path: Path) -> None:
    """Its port, its socket and its database are in use by itself; a second one on its folder ends at once."""
    config = ready(tmp_path / "north", "north.example", "source")
    config.path.write_text(config.path.read_text().replace("127.0.0.1:0", f"127.0.0.1:{free_port()}"))
    config = NodeConfig.load(config.path)
    running = Running(config).serving()
    findings = daemon.check(config)
    assert [(found.step, found.problem) for found in findings if found.problem] == []
    held = [found.step for found in findings if "in use while this node runs" in found.text]
    assert held == ["store", "listen", "operator", "roles"]
    with pytest.raises(ConfigError, match="another node is running"):
        daemon.begin(config)
    running.end()


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_check_finds_what_serve_ends_with(node: Node, name: str, capsys, monkeypatch) -> None:
    """The same reason, exit code 3 of `check` and a documented one of `serve`, no traceback, and nothing is changed."""
    spoil, step, text = WRONG[name]
    spoil(node)
    found = problems(node)
    assert text in found[step], found
    code, said = typed(node, "check", capsys, monkeypatch)
    assert (code, text in said) == (3, True)
    code, said = typed(node, "serve", capsys, monkeypatch)
    assert code in {3, 5, 6}
    assert text in said


@pytest.mark.parametrize(
    "spoil",
    [
        lambda node: (node.folder / "node.toml").write_bytes(b"\xff\xfe["),
        lambda node: (node.folder / "node.toml").unlink(),
    ],
    ids=["utf-16", "missing"],
)
def test_a_configuration_that_cannot_be_used_is_named(node: Node, spoil, capsys, monkeypatch) -> None:
    spoil(node)
    for verb in ("check", "serve"):
        code, said = typed(node, verb, capsys, monkeypatch)
        assert code in {2, 3, 6}
        assert "node.toml" in said


def test_what_a_start_survives_is_a_warning(node: Node, caplog) -> None:
    node.leaf(0)
    node.edit("127.0.0.1:0", "0.0.0.0:0")
    assert problems(node) == {}
    warned = [text for finding in daemon.check(node.config) for text in finding.warnings]
    assert len(warned) == 2
    started = Daemon(node.config)
    for role in started.roles:
        role.close()
        role.release()
    started.server.stop(0)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == warned


def test_a_full_disk_is_found_before_the_start(node: Node, monkeypatch) -> None:
    """By what is left of it; a node that starts there would fail at its first write."""
    usage = shutil.disk_usage(node.folder)
    monkeypatch.setattr(daemon.shutil, "disk_usage", lambda _: usage._replace(free=4096))
    with pytest.raises(ExhaustedError, match="4 KiB left"):
        daemon.begin(node.config)


def test_a_state_folder_of_another_user_is_refused(node: Node, monkeypatch) -> None:
    somebody = os.geteuid() + 4_000_000
    if os.geteuid() == 0:
        os.chown(node.state, somebody, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: somebody)
    with pytest.raises(ConfigError, match="belongs to the user") as failed:
        daemon.begin(node.config)
    assert f"chown {os.geteuid()} {node.state}" in failed.value.hint


def test_a_check_reads_the_database_with_the_log_that_a_kill_left(node: Node) -> None:
    with sqlite3.connect(node.state / "node.sqlite") as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("PRAGMA user_version = 99")
        assert "another release" in problems(node)["store"]
    made.close()
