"""`ddib peer` as typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ddib_fed.cli.peer import peer
from ddib_fed.errors import (
    PeerNotFound,
    PolicyDenied,
    Unauthenticated,
    UsageError,
)
from ddib_fed.node.admitting import own_peer
from ddib_fed.node.config import NodeConfig
from ddib_fed.security.peers import begin_node, parse_peer
from tests.cli.node.test_pki import write_config
from tests.node.institutions import Institution
from tests.node.listening import Listening


def run(*arguments: object, answer: str | None = None) -> str:
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
def test_a_name_that_looks_like_another_is_not_admitted(
    north: Path, south: Path, tmp_path: Path, name: str, like: str
) -> None:
    """Whatever its fingerprint; that of a peer or of the own institution."""
    run("export", "--config", south, "--out", tmp_path / "south.peer")
    run("add", tmp_path / "south.peer", "--config", north, *told(south))
    other = set_up(tmp_path / "other", name)
    run("export", "--config", other, "--out", tmp_path / "other.peer")
    with pytest.raises(PolicyDenied, match=f"{name} reads as ") as refused:
        run("add", tmp_path / "other.peer", "--config", north, *told(other))
    assert like in refused.value.hint


def told(config: Path) -> tuple[str, ...]:
    return ("--fingerprint", own_peer(NodeConfig.load(config)).fingerprint)


def exported(config: Path, file: str) -> str:
    """Export; the fingerprint that was shown."""
    return next(
        word
        for word in run("export", "--config", config, "--out", file).split()
        if word.startswith("SHA256:")
    )


def listed(config: Path) -> list[dict[str, object]]:
    return json.loads(run("list", "--format", "json", "--config", config))


def test_two_commands_a_side_admit_each_other(north: Path, south: Path) -> None:
    """Export here, add there; the fingerprint goes by telephone."""
    fingerprint = exported(north, "north.peer")
    said = run("add", "north.peer", "--fingerprint", fingerprint, "--config", south)
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
        run("add", "north.peer", "--config", south, answer="y\n")
    assert listed(south) == []


@pytest.mark.parametrize(("answer", "added"), [("y\n", True), ("\n", False)])
def test_on_a_terminal_the_fingerprint_is_shown_and_asked_about(
    north: Path, south: Path, monkeypatch: pytest.MonkeyPatch, answer: str, added: bool
) -> None:
    """Only a plain yes admits; no answer is a no."""
    fingerprint = exported(north, "north.peer")
    said: list[str] = []

    @click.command()
    @click.pass_context
    def terminal(context: click.Context) -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        context.invoke(
            peer.commands["add"],
            file=Path("north.peer"),
            config_path=south,
            fingerprints=(),
            replace=False,
            unconstrained_root=False,
        )

    result = CliRunner().invoke(terminal, input=answer)
    said.append(result.output)
    assert fingerprint in said[0]
    assert isinstance(result.exception, PolicyDenied) is not added
    assert bool(listed(south)) is added


def test_a_root_without_name_constraints_is_accepted_only_when_asked(north: Path, south: Path) -> None:
    """A general CA of the other institution: the operator decides."""
    from ddib_fed.security.pki import certificate_pem, fingerprint
    from tests.security.test_identity import unconstrained

    exported(north, "north.peer")
    root = unconstrained().certificate
    content = json.loads(Path("north.peer").read_text()) | {"roots": [certificate_pem(root).decode()]}
    Path("corporate.peer").write_text(json.dumps(content))
    arguments = ("add", "corporate.peer", "--fingerprint", fingerprint(root), "--config", south)
    with pytest.raises(PolicyDenied, match="no name constraints"):
        run(*arguments)
    run(*arguments, "--unconstrained-root")


def test_a_peer_is_suspended_and_resumed(north: Path, south: Path) -> None:
    """The list says since when and why; a node that does not run is applied when one starts."""
    run("add", "north.peer", "--fingerprint", exported(north, "north.peer"), "--config", south)
    said = run("suspend", "north.example", "--reason", "contract ended", "--config", south)
    assert "is applied when one starts" in said
    assert listed(south)[0]["suspended"].endswith(": contract ended")
    assert "north.example is suspended since 20" in run("list", "--config", south)
    assert "already" in run("suspend", "north.example", "--config", south)
    assert "is resumed" in run("suspend", "--undo", "north.example", "--config", south)
    assert "nothing is changed" in run("suspend", "--undo", "north.example", "--config", south)
    assert listed(south)[0]["suspended"] == ""
    with pytest.raises(PeerNotFound) as refused:
        run("suspend", "nort.example", "--config", south)
    assert "did you mean north.example?" in refused.value.hint


@pytest.fixture
def listening(tmp_path: Path):
    node = Listening(Institution("west.example", tmp_path / "west"))
    yield node
    node.close()


def add_west(config: Path, node: Listening, address: str = "") -> None:
    file = Path("west.peer")
    file.write_bytes(node.south.peer(address or node.address).to_bytes())
    run("add", file, "--fingerprint", node.south.peer().fingerprint, "--config", config)


def _admit_north(config: Path, node: Listening) -> None:
    exported(config, "north.peer")
    entry = parse_peer(Path("north.peer").read_bytes(), "north.peer")
    node.south.store.add(entry, fingerprints=entry.fingerprints)


def test_test_says_that_the_peer_does_not_know_us(north: Path, listening: Listening) -> None:
    """The commonest case: only one side has added the other."""
    add_west(north, listening)
    with pytest.raises(Unauthenticated, match="refused-us") as error:
        run("test", "west.example", "--config", north)
    assert "ddib peer add there" in error.value.hint


def test_test_shows_what_the_peer_decodes(north: Path, listening: Listening) -> None:
    """Handshake and DescribeDomain."""
    add_west(north, listening)
    _admit_north(north, listening)
    said = run("test", "west.example", "--config", north)
    assert "TLSv1.3" in said
    assert "decoding" in said
    told = json.loads(run("test", "west.example", "--config", north, "--format", "json"))
    assert told["institution"] == "west.example"
    assert "TLSv1.3" in told["connection"]
    assert repr(told["decoding"]["domain"]) in said
    assert "clock        that node's is" in said
    assert abs(told["clock_s"]) < 60
