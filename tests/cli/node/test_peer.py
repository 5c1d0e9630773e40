"""`ddib peer` as typed."""

import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ddib_fed.cli.main import run
from ddib_fed.cli.peer import peer
from ddib_fed.errors import PeerNotFound, PolicyDenied, UsageError
from ddib_fed.node.config import NodeConfig, peer_store
from ddib_fed.node.operator import Node
from ddib_fed.security.audit import lines_of, verify
from ddib_fed.security.peers import begin_node
from ddib_fed.security.pki import certificate_pem
from ddib_fed.security.pki import fingerprint as fingerprint_of
from tests import audit_rows
from tests.cli.node.test_pki import write_config
from tests.node.institutions import Institution
from tests.node.listening import Listening
from tests.security.test_pki import unconstrained


def typed(*arguments: object, answer: str | None = None) -> str:
    """A command that must succeed; its error is raised otherwise."""
    result = CliRunner().invoke(peer, [str(a) for a in arguments], input=answer)
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture
def north(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return set_up(tmp_path / "north", "north.example")


@pytest.fixture
def south(tmp_path: Path) -> Path:
    return set_up(tmp_path / "south", "south.example")


def set_up(folder: Path, institution: str) -> Path:
    path = write_config(folder, institution=institution)
    begin_node(NodeConfig.load(path).paths.state, institution, "node-1")
    return path


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("xn--suth-55d.example", "south.example"),  # a Cyrillic o
        ("xn--nrth-gra.example", "north.example"),  # an o with a stroke
    ],
)
def test_a_name_that_looks_like_another_is_not_admitted(north, south, tmp_path, name, like):
    typed("export", "--config", south, "--out", tmp_path / "south.peer")
    typed("add", tmp_path / "south.peer", "--config", north, *told(south))
    other = set_up(tmp_path / "other", name)
    typed("export", "--config", other, "--out", tmp_path / "other.peer")
    with pytest.raises(PolicyDenied, match=f"{name} reads as ") as refused:
        typed("add", tmp_path / "other.peer", "--config", north, *told(other))
    assert like in refused.value.hint


def told(config: Path) -> tuple[str, ...]:
    return ("--fingerprint", Node.open(config).peers.own().fingerprint)


def exported(config: Path, file: str) -> str:
    """Export; the fingerprint that was shown."""
    said = typed("export", "--config", config, "--out", file).split()
    return next(word for word in said if word.startswith("SHA256:"))


def listed(config: Path) -> list[dict[str, object]]:
    return json.loads(typed("list", "--format", "json", "--config", config))


def test_two_commands_a_side_admit_each_other(north: Path, south: Path) -> None:
    fingerprint = exported(north, "north.peer")
    said = typed("add", "north.peer", "--fingerprint", fingerprint, "--config", south)
    assert "admitted spiffe://north.example/node/node-1" in said
    assert said.endswith(f"next: ddib peer test north.example --config {south}\n")
    (entry,) = listed(south)
    assert entry == {
        "institution": "north.example",
        "identity": "spiffe://north.example/node/node-1",
        "address": "127.0.0.1:7443",
        "fingerprints": [fingerprint],
        "suspended": "",
    }


def test_without_a_terminal_a_fingerprint_is_needed(north: Path, south: Path) -> None:
    """Nobody is there to compare; a piped yes does not count."""
    exported(north, "north.peer")
    with pytest.raises(UsageError, match="fingerprint"):
        typed("add", "north.peer", "--config", south, answer="y\n")
    assert listed(south) == []


@pytest.mark.parametrize(("answer", "added"), [("y\n", True), ("\n", False)])
def test_on_a_terminal_the_fingerprint_is_shown_and_asked_about(north, south, monkeypatch, answer, added):
    fingerprint = exported(north, "north.peer")

    @click.command()
    def terminal() -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        peer.main(["add", "north.peer", "--config", str(south)], standalone_mode=False)

    result = CliRunner().invoke(terminal, [], input=answer)
    assert fingerprint in result.output
    assert isinstance(result.exception, PolicyDenied) is not added
    assert bool(listed(south)) is added


def test_a_root_without_name_constraints_is_accepted_only_when_asked(north: Path, south: Path) -> None:
    """A general CA of the other institution: the operator decides."""
    exported(north, "north.peer")
    root = unconstrained().certificate
    content = json.loads(Path("north.peer").read_text()) | {"roots": [certificate_pem(root).decode()]}
    Path("corporate.peer").write_text(json.dumps(content))
    arguments = ("add", "corporate.peer", "--fingerprint", fingerprint_of(root), "--config", south)
    with pytest.raises(PolicyDenied, match="no name constraints"):
        typed(*arguments)
    typed(*arguments, "--unconstrained-root")


def test_a_peer_is_suspended_and_resumed(north: Path, south: Path) -> None:
    """The list says since when and why; a node that does not run is applied when one starts."""
    typed("add", "north.peer", "--fingerprint", exported(north, "north.peer"), "--config", south)
    said = typed("suspend", "north.example", "--reason", "contract ended", "--config", south)
    assert "is applied when one starts" in said
    assert listed(south)[0]["suspended"].endswith(": contract ended")
    assert "north.example is suspended since 20" in typed("list", "--config", south)
    assert "already" in typed("suspend", "north.example", "--config", south)
    assert "is resumed" in typed("suspend", "--undo", "north.example", "--config", south)
    assert "nothing is changed" in typed("suspend", "--undo", "north.example", "--config", south)
    assert listed(south)[0]["suspended"] == ""
    with pytest.raises(PeerNotFound) as refused:
        typed("suspend", "nort.example", "--config", south)
    assert "did you mean north.example?" in refused.value.hint


@pytest.fixture
def listening(tmp_path: Path):
    node = Listening(Institution("west.example", tmp_path / "west"))
    yield node
    node.close()


def add_west(config: Path, node: Listening) -> None:
    file = Path("west.peer")
    file.write_bytes(node.south.peer(node.address).to_bytes())
    typed("add", file, "--fingerprint", node.south.peer().fingerprint, "--config", config)


def test_test_shows_what_the_peer_decodes(north: Path, listening: Listening) -> None:
    add_west(north, listening)
    entry = Node.open(north).peers.own()
    listening.south.store.add(entry, fingerprints=entry.fingerprints)
    said = typed("test", "west.example", "--config", north)
    assert "TLSv1.3" in said
    assert "decoding" in said
    told = json.loads(typed("test", "west.example", "--config", north, "--format", "json"))
    assert told["institution"] == "west.example"
    assert "TLSv1.3" in told["connection"]
    assert repr(told["decoding"]["domain"]) in said
    assert "clock        that node's is" in said
    assert abs(told["clock_s"]) < 60


ALICE = "spiffe://north.example/client/alice"


def records(config: Path) -> list[dict]:
    path = NodeConfig.load(config).paths.store
    assert not path.exists() or verify(lines_of(path)).ok
    return audit_rows.records(path)


def acts(config: Path) -> list[str]:
    return [record["act"] for record in records(config)]


def add(config: Path, file: str, fingerprint: str, *options: str) -> int:
    return run(["peer", "add", file, "--config", str(config), "--fingerprint", fingerprint, *options])


def test_peers_come_change_and_go(north: Path, south: Path) -> None:
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
