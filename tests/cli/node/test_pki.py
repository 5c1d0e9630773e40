"""`ddib pki` as typed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from ddib_fed.cli.main import run
from ddib_fed.cli.peer import pki
from ddib_fed.errors import Cancelled, ExitCode
from ddib_fed.node.admin import Metrics, operator_service
from ddib_fed.node.config import NodeConfig, peer_store
from ddib_fed.node.operator import Node
from ddib_fed.security.peers import PeerStore


def write_config(folder: Path, name: str = "node-1", institution: str = "north.example") -> Path:
    """A node.toml in a new folder."""
    Node.create(folder, institution=institution, role="source", domain="moons", name=name,
              listen="127.0.0.1:0", address="127.0.0.1:7443", with_ca=False)  # fmt: skip
    return folder / "node.toml"


def typed(*arguments: object, answer: str | None = None) -> Result:
    """A command that must succeed; its error is raised otherwise."""
    result = CliRunner().invoke(pki, [str(a) for a in arguments], input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The issuer's node.toml."""
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "one")
    assert "fingerprint  SHA256:" in typed("init", "--config", config).output
    return config


def shown(*arguments: object) -> dict[str, object]:
    return json.loads(typed("show", "--format", "json", *arguments).output)


def test_a_second_node_by_request_issue_install(one: Path, tmp_path: Path) -> None:
    two = write_config(tmp_path / "two", "node-2")
    said = typed("request", "--config", two).output
    assert "ddib pki issue node-2.csr" in said
    with pytest.raises(
        Cancelled, match="nothing was signed"
    ):  # whoever holds a request's key becomes whom it names
        typed("issue", "node-2.csr", "--config", one, answer="n\n")
    assert not Path("node-2.pem").exists()
    typed("issue", "node-2.csr", "--config", one, answer="y\n")
    typed("install", "node-2.pem", "--config", two)
    assert shown("--config", two)["identity"] == "spiffe://north.example/node/node-2"
    assert shown("--config", two)["issuer"] is False


ALICE = "spiffe://north.example/client/alice"


@pytest.fixture
def north(tmp_path):
    words = ["--institution", "north.example", "--role", "source", "--domain", "moons"]
    assert run(["init", "node", *words, "--out", str(tmp_path / "north")]) == 0
    return tmp_path / "north" / "node.toml"


@pytest.fixture
def node(north):
    """The operator's socket of a node that reads the lists as the real one does."""
    config = NodeConfig.load(north)
    store = PeerStore(config.paths.state, config.node.institution)
    store.snapshot()
    running = SimpleNamespace(
        reload=lambda: list(store.reload()), status=None, state=None, request_drain=None
    )
    with operator_service(config, running, Metrics()):
        yield store


def test_withdrawing_says_from_when_the_node_obeys(north, node, capsys):
    assert run(["pki", "withdraw", ALICE, "--config", str(north)]) == 0
    shown = capsys.readouterr().out
    assert "the running node has applied it" in shown
    assert "each other node of north.example" in shown
    assert {str(identity) for identity in node.snapshot().withdrawn} == {ALICE}
    assert run(["pki", "withdraw", "--undo", ALICE, "--config", str(north)]) == 0
    assert "is reinstated" in capsys.readouterr().out
    assert run(["pki", "withdraw", "--undo", ALICE, "--config", str(north)]) == 0
    assert "was not withdrawn" in capsys.readouterr().out


def test_without_a_node_the_list_waits_for_its_start(north, capsys):
    words = ["--config", str(north), "--format", "json"]
    seen = []
    for undo in ([], [], ["--undo"], ["--undo"]):
        assert run(["pki", "withdraw", ALICE, *undo, *words]) == 0
        found = json.loads(capsys.readouterr().out)
        seen.append((found["withdrawn"], found["changed"]))
        assert (found["identity"], found["node_running"]) == (ALICE, False)
    assert seen == [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize(
    ("identity", "code", "text"),
    [
        ("alice", ExitCode.BAD_INPUT, "spiffe://north.example/client/alice"),
        ("spiffe://south.example/node/node-1", ExitCode.REFUSED, "ddib peer remove south.example"),
    ],
    ids=["name", "other-institution"],
)
def test_only_an_identity_of_this_institution_is_withdrawn(north, capsys, identity, code, text):
    """A name that no certificate carries would refuse nobody; nothing is written."""
    assert run(["pki", "withdraw", identity, "--config", str(north)]) == code
    assert text in capsys.readouterr().err
    assert not peer_store(NodeConfig.load(north)).snapshot().withdrawn


def test_a_list_that_cannot_be_read_is_an_error_of_each_command(north, capsys):
    path = north.parent / "state" / "trust.json"
    path.write_text("{")
    for words in (["show"], ["withdraw", ALICE], ["withdraw", "--undo", ALICE]):
        assert run(["pki", *words, "--config", str(north)]) == ExitCode.BAD_INPUT
        shown = capsys.readouterr().err
        assert "trust.json" in shown
        assert "from a copy of the state folder" in shown
    assert path.read_text() == "{"


def test_a_node_that_cannot_read_the_new_list_makes_the_command_fail(north, node, capsys, monkeypatch):
    """Written by another user, say: success would be a lie."""
    monkeypatch.setattr(node, "reload", lambda: ["not read: state/trust.json cannot be read"])
    assert run(["pki", "withdraw", ALICE, "--config", str(north)]) == ExitCode.BAD_INPUT
    assert "does not obey it" in capsys.readouterr().err


def test_no_certificate_is_signed_for_who_is_withdrawn(north, tmp_path, capsys):
    client = ["--institution", "north.example", "--address", "localhost:1", "--name", "alice"]
    assert run(["init", "client", *client, "--out", str(tmp_path / "a")]) == 0
    run(["pki", "withdraw", ALICE, "--config", str(north)])
    for words in (
        ["pki", "issue", str(tmp_path / "a" / "alice.csr"), "--yes", "--config", str(north)],
        ["init", "client", "--config", str(north), "--name", "alice"],
    ):
        assert run([*words, "--out", str(tmp_path / "out")]) == ExitCode.REFUSED
        assert "is withdrawn in" in capsys.readouterr().err
