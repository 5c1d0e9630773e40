"""`check` finds what `serve` would end with: each wrong set-up is tried with both, as an operator types them."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sqlite3
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError, ExhaustedError
from ddib_fed.models.bundle import save_bundle
from ddib_fed.models.manifest import Manifest, PictureFormat
from ddib_fed.networks.configs import ClassifierConfig
from ddib_fed.networks.registry import network_shapes
from ddib_fed.node import startup
from ddib_fed.node.command import node_command, run
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.daemon import Daemon
from ddib_fed.trust import pki
from ddib_fed.trust.certificates import issue_leaf, new_key
from tests.node.test_daemon import ready


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

    def leaf(self, start_h: float, *, issues: bool) -> None:
        """A certificate of 24 hours that begins then; without the root's key when it does not issue."""
        authority, key = pki.load_authority(self.pki), new_key()
        begins = datetime.now(UTC) + timedelta(hours=start_h)
        made = issue_leaf(authority, "node", "node-1", public_key=key.public_key(), now=begins)
        pki.write_identity(self.pki, certificate=made, key=key, roots=(authority.certificate,))
        if not issues:
            for name in ("ca.key", "ca.pem"):
                (self.pki / name).unlink()

    def tree(self) -> list[tuple[str, int, int]]:
        return sorted((str(p), p.lstat().st_mode, p.lstat().st_size) for p in self.folder.rglob("*"))


@pytest.fixture
def node(tmp_path: Path):
    made = Node(tmp_path / "north")
    yield made
    for held in made.held:
        held.close()


def problems(node: Node) -> dict[str, str]:
    """What `check` finds wrong, with what to do; that it changes nothing is looked at each time."""
    before = node.tree()
    found = {
        f.step: f"{f.problem.detail} | {f.problem.hint}" for f in startup.check(node.config) if f.problem
    }
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
    assert not (node.state / "jobs.sqlite").exists()
    assert [finding.step for finding in startup.check(node.config)] == [step.name for step in startup.STEPS]


def other_domain(node: Node) -> None:
    node.edit('domain = "moons"             #', 'domain = "checkerboards"     #')


def classifier(node: Node) -> None:
    network = ClassifierConfig(
        image_size=8, in_channels=1, model_channels=32, out_channels=2, num_res_blocks=1, channel_mult=(1.0,)
    )
    import torch

    state = {name: torch.zeros(there.shape) for name, there in network_shapes(network).items()}
    manifest = Manifest(
        name="c", domain="moons", role="classifier", sample_kind="picture", sample_shape=(1, 8, 8),
        network=network, value_range=(-1.0, 1.0), picture=PictureFormat(),
    )  # fmt: skip
    save_bundle(node.folder / "model", manifest, state, overwrite=True)


def damaged_weights(node: Node) -> None:
    path = node.folder / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def file_for(name: str):
    def put(node: Node) -> None:
        path = node.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.write_text("x")

    return put


def folder_for(name: str):
    def put(node: Node) -> None:
        (node.folder / name).unlink(missing_ok=True)
        (node.folder / name).mkdir(parents=True)

    return put


def mode(name: str, bits: int):
    def put(node: Node) -> None:
        (node.folder / name).mkdir(exist_ok=True)
        (node.folder / name).chmod(bits)

    return put


def device(name: str):
    return lambda node: node.edit('# device = "auto"', f'device = "{name}"')


def damaged_database(node: Node) -> None:
    (node.state / "jobs.sqlite").write_bytes(b"garbage " * 999)


def newer_database(node: Node) -> None:
    with sqlite3.connect(node.state / "jobs.sqlite") as made:
        made.execute("PRAGMA user_version = 99")
    made.close()


def held_database(node: Node) -> None:
    file = (node.state / "jobs.sqlite.lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    node.held.append(file)


def answering_socket(node: Node) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(node.state / "admin.sock"))
    listener.listen()
    node.held.append(listener)


def others_key(name: str):
    def put(node: Node) -> None:
        elsewhere = node.folder.parent / "elsewhere"
        pki.init_node_identity(elsewhere, "north.example", "node-1")
        shutil.copy(elsewhere / name, node.pki / name)

    return put


def without(*names: str):
    def put(node: Node) -> None:
        for name in names:
            (node.pki / name).unlink()

    return put


def expired_with_a_command_that_is_not_there(node: Node) -> None:
    node.leaf(-48, issues=False)
    node.edit('# renew_command = ["/usr/local/bin/renew"]', 'renew_command = ["/nowhere/renew"]')


def http(listen: str):
    return lambda node: node.edit('# listen = "127.0.0.1:9464"', f'listen = "{listen}"')


def one_port_for_both(node: Node) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    node.edit("127.0.0.1:0", address)
    http(address)(node)


def classified(folder: str):
    """A configuration that names this folder as the classifier."""
    return lambda node: node.edit('# classifier = "classifier"', f'classifier = "{folder}"')


WRONG = {
    "no classifier there": (classified("nowhere"), "model", "nowhere"),
    "a classifier that is none": (classified("model"), "model", "not a classifier"),
    "bundle of another domain": (other_domain, "model", "bundle_domain"),
    "classifier": (classifier, "model", "only a generator"),
    "damaged weights": (damaged_weights, "model", "weights"),
    "no weights": (lambda n: (n.folder / "model" / "model.safetensors").unlink(), "model", "model.safetensors"),
    "weights are a folder": (folder_for("model/model.safetensors"), "model", "model.safetensors"),
    "model is a file": (file_for("model"), "model", "model"),
    "cuda without CUDA": (device("cuda:7"), "model", "engine.device = 'cuda:7'"),
    "device nonsense": (device("banana"), "model", "engine.device = 'banana'"),
    "device meta": (device("meta"), "model", "engine.device = 'meta'"),
    "port in use": (lambda n: n.edit("127.0.0.1:0", n.listening()), "listen", "ss -ltnp"),
    "address of another machine": (lambda n: n.edit("127.0.0.1:0", "203.0.113.9:7443"), "listen", "ip -brief"),
    "no such host": (lambda n: n.edit("127.0.0.1:0", "no.such.invalid:7443"), "listen", "no host"),
    "state 0777": (mode("state", 0o777), "state", "chmod 700"),
    "state 0770": (mode("state", 0o770), "state", "chmod 700"),
    "peers 0777": (mode("state/peers", 0o777), "state", "chmod 700"),
    "spool 0777": (mode("state/spool", 0o777), "roles", "chmod 700"),
    "state is a file": (file_for("state"), "state", "is no folder"),
    "peers is a file": (file_for("state/peers"), "state", "is no folder"),
    "spool is a file": (file_for("state/spool"), "roles", "is no folder"),
    "damaged database": (damaged_database, "roles", "jobs.sqlite cannot be used"),
    "database is a folder": (folder_for("state/jobs.sqlite"), "roles", "is no file"),
    "newer database": (newer_database, "roles", "newer release"),
    "held database": (held_database, "roles", "another node is running"),
    "audit is a folder": (folder_for("state/audit.jsonl"), "audit", "is no file"),
    "no certificate": (without("leaf.pem", "ca.key", "ca.pem"), "identity", "leaf.pem"),
    "no roots": (without("roots.pem"), "identity", "roots.pem"),
    "another's key": (others_key("leaf.key"), "identity", "is not the key of leaf.pem"),
    "another root's key": (others_key("ca.key"), "identity", "is not the key of ca.pem"),
    "root without certificate": (without("ca.pem"), "identity", "ca.pem"),
    "another root": (lambda n: (others_key("roots.pem")(n), without("ca.key")(n)), "identity", "pinned root"),
    "expired": (lambda n: n.leaf(-48, issues=False), "identity", "expired"),
    "not yet valid": (lambda n: n.leaf(48, issues=False), "identity", "not valid before"),
    "no renew_command": (expired_with_a_command_that_is_not_there, "identity", "/nowhere/renew"),
    "another institution": (lambda n: n.edit('"north.example"', '"west.example"'), "identity", "west.example"),
    "another name": (lambda n: n.edit('name = "node-1"', 'name = "node-2"'), "identity", "node-2"),
    "withdrawn list": (lambda n: (n.pki / "withdrawn.txt").write_text("alice\n"), "peers", "withdrawn.txt, line 1"),
    "http in use": (lambda n: http(n.listening())(n), "http", "http.listen"),
    "http on the node's port": (one_port_for_both, "http", "both port"),
    "socket is a folder": (folder_for("state/admin.sock"), "operator", "is no socket"),
    "node on this state": (answering_socket, "operator", "another node is running"),
}  # fmt: skip


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


def test_check_finds_everything_at_once(node: Node) -> None:
    """Not only the first; `serve` names the first of them."""
    for name in ("withdrawn list", "device nonsense", "damaged database", "http in use"):
        WRONG[name][0](node)
    assert set(problems(node)) == {"peers", "http", "roles", "model"}
    with pytest.raises(Exception, match=r"withdrawn\.txt"):
        startup.begin(node.config)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda node: (node.folder / "node.toml").write_text("["),
        lambda node: (node.folder / "node.toml").write_bytes(b"\xff\xfe["),
        lambda node: (node.folder / "node.toml").unlink(),
        folder_for("node.toml"),
        lambda node: node.edit('domain = "moons"             #', 'domain = "My Moons"   #'),
        http("0.0.0.0:9464"),
        lambda node: node.edit('# renew_command = ["/usr/local/bin/renew"]', "renew_command = []"),
    ],
    ids=["toml", "utf-16", "missing", "folder", "domain", "http", "renew_command"],
)
def test_a_configuration_that_cannot_be_used_is_named(node: Node, spoil, capsys, monkeypatch) -> None:
    """By both commands, before anything else."""
    spoil(node)
    for verb in ("check", "serve"):
        code, said = typed(node, verb, capsys, monkeypatch)
        assert code in {2, 3, 6}
        assert "node.toml" in said


def test_a_configuration_with_a_bom_is_read(node: Node) -> None:
    """As some editors save it; before: `Invalid statement (at line 1, column 1)`."""
    path = node.folder / "node.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert problems(node) == {}


def test_what_a_start_survives_is_a_warning(node: Node, caplog) -> None:
    """A peer file that cannot be read, nothing that renews, an address that others cannot dial."""
    node.leaf(0, issues=False)
    (node.state / "peers").mkdir(mode=0o700)
    (node.state / "peers" / "south.example.json").write_text("{")
    node.edit("127.0.0.1:0", "0.0.0.0:0")
    assert problems(node) == {}
    warned = [text for finding in startup.check(node.config) for text in finding.found.warnings]
    assert len(warned) == 3
    started = Daemon(node.config)
    for role in started.roles:
        role.close()
        role.release()
    started.server.stop(0)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == warned


def test_a_certificate_that_a_start_renews_is_no_problem(node: Node) -> None:
    """The root's key is here: expired, or not valid yet after the clock was set back."""
    for start_h in (-48, 48):
        node.leaf(start_h, issues=True)
        assert problems(node) == {}
        assert "renewed at the start" in startup.check(node.config)[1].found.warnings[0]


def test_a_bundle_of_another_name_is_served_where_that_is_meant(node: Node) -> None:
    """`bundle_domain` says so; older configurations have none, and it is that of the node."""
    node.edit('domain = "moons"             # the', 'bundle_domain = "moons"\ndomain = "crescents" # the')
    assert problems(node) == {}


def test_a_full_disk_is_found_before_the_start(node: Node, monkeypatch) -> None:
    """By what is left of it; a node that starts there would fail at its first write."""
    usage = shutil.disk_usage(node.folder)
    monkeypatch.setattr(startup.shutil, "disk_usage", lambda _: usage._replace(free=4096))
    with pytest.raises(ExhaustedError, match="4 KiB left"):
        startup.begin(node.config)


def test_a_state_folder_of_another_user_is_refused(node: Node, monkeypatch) -> None:
    """Both users are named, and the command that gives it to this one."""
    somebody = os.geteuid() + 4_000_000
    if os.geteuid() == 0:
        os.chown(node.state, somebody, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: somebody)
    with pytest.raises(ConfigError, match="belongs to the user") as failed:
        startup.begin(node.config)
    assert f"chown {os.geteuid()} {node.state}" in failed.value.hint


def test_a_path_that_is_too_long_for_a_socket_is_named(node: Node, monkeypatch) -> None:
    """The short one is in a temporary folder, which may have a long name itself."""
    from ddib_fed.node import config as module

    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: "/tmp/" + "t" * 100)
    node.edit('state = "state"', 'state = "' + "s" * 100 + '"')
    shutil.move(node.state, node.folder / ("s" * 100))
    assert "more than 100 bytes" in problems(node)["operator"]


def test_a_damaged_list_of_steps_does_not_hide_the_others(node: Node, monkeypatch) -> None:
    """A step that breaks is a finding like any other."""

    def broken(config: NodeConfig) -> startup.Found:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(startup, "STEPS", (startup.Step("broken", broken), *startup.STEPS))
    found = problems(node)
    assert list(found) == ["broken"]
    assert "ZeroDivisionError" in found["broken"]


@contextmanager
def left_by_a_kill(node: Node):
    """A database whose last transactions are in the log that a kill left beside it."""
    with sqlite3.connect(node.state / "jobs.sqlite") as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("PRAGMA user_version = 99")
        yield
    made.close()


def test_a_check_reads_the_database_with_the_log_that_a_kill_left(node: Node) -> None:
    """On a copy: what is only in the log counts, and neither file is touched."""
    with left_by_a_kill(node):
        assert "newer release" in problems(node)["roles"]
