"""`check` finds what `serve` would end with: each wrong set-up is tried with both, as an operator types them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError, ExhaustedError
from ddib_fed.node import daemon
from ddib_fed.node.command import node_command, run
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.daemon import Daemon
from tests.e2e.harness import free_port
from tests.node.running.test_daemon import Running, ready
from tests.node.spoilt_nodes import WRONG, Node, folder_for, http


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
        lambda node: (node.folder / "node.toml").write_text("["),
        lambda node: (node.folder / "node.toml").write_bytes(b"\xff\xfe["),
        lambda node: (node.folder / "node.toml").unlink(),
        folder_for("node.toml"),
        lambda node: node.edit('domain = "moons"                #', 'domain = "My Moons"   #'),
        http("0.0.0.0:9464"),
        lambda node: node.edit("# recovery_days = 30.0", "recovery_days = -1"),
    ],
    ids=["toml", "utf-16", "missing", "folder", "domain", "http", "recovery"],
)
def test_a_configuration_that_cannot_be_used_is_named(node: Node, spoil, capsys, monkeypatch) -> None:
    """By both commands, before anything else."""
    spoil(node)
    for verb in ("check", "serve"):
        code, said = typed(node, verb, capsys, monkeypatch)
        assert code in {2, 3, 6}
        assert "node.toml" in said


def test_what_a_start_survives_is_a_warning(node: Node, caplog) -> None:
    """Nothing that renews, an address that others cannot dial."""
    node.leaf(0, issues=False)
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
    """Both users are named, and the command that gives it to this one."""
    somebody = os.geteuid() + 4_000_000
    if os.geteuid() == 0:
        os.chown(node.state, somebody, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: somebody)
    with pytest.raises(ConfigError, match="belongs to the user") as failed:
        daemon.begin(node.config)
    assert f"chown {os.geteuid()} {node.state}" in failed.value.hint


@contextmanager
def left_by_a_kill(node: Node):
    """A database whose last transactions are in the log that a kill left beside it."""
    with sqlite3.connect(node.state / "node.sqlite") as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("PRAGMA user_version = 99")
        yield
    made.close()


def test_a_check_reads_the_database_with_the_log_that_a_kill_left(node: Node) -> None:
    """On a copy: what is only in the log counts, and neither file is touched."""
    with left_by_a_kill(node):
        assert "another release" in problems(node)["store"]
