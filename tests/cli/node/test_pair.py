"""`ddib pair` as typed on both sides."""

import re
import shlex
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from ddib_fed.node.config import NodeConfig, peer_store
from ddib_fed.node.operator import Node
from ddib_fed.security import pairing
from ddib_fed.security.peers import Peer
from ddib_fed.testing import free_port
from tests import audit_rows


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """node.toml of north and south."""
    made = []
    for name, role in (("north", "source"), ("south", "target")):
        port = free_port()
        Node.create(tmp_path / name, institution=f"{name}.example", role=role, domain="moons", name="node-1",
                  listen=f"127.0.0.1:{port}", address=f"localhost:{port}")  # fmt: skip
        made.append(tmp_path / name / "node.toml")
    return made[0], made[1]


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, threading.Thread, list[int]]]:
    """Runs `ddib pair --listen` on a thread: its code, the thread, and its exit code once it has ended."""

    def start(config: Path, *words: str) -> tuple[str, threading.Thread, list[int]]:
        shown, ended = threading.Event(), list[int]()
        codes: list[str] = []
        made = pairing.new_code

        def new_code() -> str:
            codes.append(made())
            return codes[-1]

        monkeypatch.setattr(pairing, "new_code", new_code)
        original = pairing.listen

        def listen(*arguments, **options):
            shown.set()
            return original(*arguments, **options)

        monkeypatch.setattr(pairing, "listen", listen)
        thread = threading.Thread(
            target=lambda: ended.append(run(["pair", "--listen", "--config", str(config), *words]))
        )
        thread.start()
        assert shown.wait(60)
        return codes[0], thread, ended

    return start


def admitted(config: Path) -> list[str]:
    return [peer.institution for peer in peer_store(NodeConfig.load(config)).list()]


def entry(config: Path) -> Peer:
    return Node.open(config).peers.own()


def address(config: Path) -> str:
    return NodeConfig.load(config).node.address


def test_a_code_admits_both(two, listening, capsys) -> None:
    """As `ddib peer add` would: the same entry, the same line of the audit log; both fingerprints are shown twice."""
    north, south = two
    code, thread, ended = listening(south)
    assert (
        run(["pair", address(south), code, "--config", str(north), "--fingerprint", entry(south).fingerprint])
        == 0
    )
    thread.join(60)
    assert ended == [0]
    assert (admitted(north), admitted(south)) == (["south.example"], ["north.example"])
    assert peer_store(NodeConfig.load(north)).get("south.example") == entry(south)
    shown = capsys.readouterr().out
    assert f"there:       ddib pair {address(south)} {code}" in shown
    assert "admitted     spiffe://north.example/node/node-1 at localhost:" in shown
    for config in two:
        assert shown.count(entry(config).fingerprint) == 2
    record = audit_rows.records(NodeConfig.load(north).paths.store)[-1]
    assert (record["act"], record["peer"]) == ("peer_added", "south.example")
    said = [" ".join(shlex.split(line, comments=True)) for line in shown.splitlines()]
    assert f"ddib-source-node serve --config {north}" in said
    assert f"ddib peer test north.example --config {south}" in said


def test_another_root_than_the_one_read_out_is_not_admitted(two, listening, capsys) -> None:
    north, south = two
    code, thread, ended = listening(south)
    words = ["pair", address(south), code, "--config", str(north), "--fingerprint", entry(north).fingerprint]
    assert run(words) == ExitCode.REFUSED
    thread.join(60)
    assert ended == [ExitCode.REFUSED]
    assert admitted(north) == admitted(south) == []
    assert "not confirmed" in capsys.readouterr().err


def test_another_port_is_named_where_the_node_has_its_own(two, listening, capsys) -> None:
    """A node that runs need not stop: the message says how; the other side sees the port that is bound."""
    north, south = two
    config = NodeConfig.load(south).node
    host, port = config.listen.split(":")
    with socket.create_server((host, int(port))):
        assert run(["pair", "--listen", "--config", str(south)]) == ExitCode.BAD_INPUT
        assert f"ddib pair --listen 127.0.0.1:PORT --config {south}" in capsys.readouterr().err
        code, thread, ended = listening(south, "127.0.0.1:0")
        there = re.search(r"there: +ddib pair (\S+) (\S+)", capsys.readouterr().out)
        assert there is not None
        assert there[2] == code
        assert not there[1].endswith(f":{port}")
        assert run(["pair", there[1], code, "--config", str(north)]) == 0
        thread.join(60)
    assert ended == [0]
