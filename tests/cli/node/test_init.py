"""`ddib init node|client`: from nothing to files that the nodes and clients accept; nothing is overwritten."""

import pytest

from ddib_fed.cli.main import run
from ddib_fed.client.profile import Profile
from ddib_fed.errors import ExitCode
from ddib_fed.models.bundle import load_bundle, pretrained, save_bundle
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.role import load_hosted
from ddib_fed.security.peers import parse_peer
from ddib_fed.security.pki import load_identity
from tests.node.tiny_nodes import manifest, state


@pytest.fixture
def init_node(tmp_path):
    """Runs `ddib init node` for north, with what else is given; the exit code."""

    def call(*words: object, out: str = "north", role: str = "source") -> int:
        return run(["init", "node", "--institution", "north.example", "--role", role, "--domain", "moons",
                    "--out", str(tmp_path / out), *map(str, words)])  # fmt: skip

    return call


def test_a_node_gets_a_configuration_and_its_certificate(init_node, tmp_path, capsys):
    assert init_node("--listen", "127.0.0.1:7441", "--name", "node-2") == 0
    config = NodeConfig.load(tmp_path / "north" / "node.toml")
    assert (config.node.listen, config.node.address) == ("127.0.0.1:7441", "localhost:7441")
    assert str(load_identity(config.paths.pki).identity) == "spiffe://north.example/node/node-2"
    shown = capsys.readouterr().out
    for command in (
        "ddib-source-node train",
        "ddib-source-node serve",
        "--pair",
        "ddib peer add OTHER.peer",
        "init client",
    ):
        assert command in shown


def init_with_a_model(out, *words: object, role: str = "source") -> int:
    """`ddib init node` with a model instead of a domain; the exit code."""
    named = ["--institution", "north.example", "--role", role, "--out", str(out)]
    return run(["init", "node", *named, *map(str, words)])


def test_one_command_makes_node_model_peer_file_and_client(tmp_path, capsys):
    """Everything is ready: the node's check, the other side's `peer add` and the client's profile accept it."""
    out = tmp_path / "north"
    assert init_with_a_model(out, "--model", "moons", "--address", "localhost:7441") == 0
    config = NodeConfig.load(out / "node.toml")
    assert (config.model.domain, config.node.listen) == ("moons", "127.0.0.1:7441")
    assert load_bundle(config.paths.bundle).digest == pretrained("moons").digest
    assert config.paths.bundle.stat().st_mode & 0o777 == 0o700
    peer = parse_peer((out / "north.example.peer").read_bytes(), "it")
    assert peer.address == "localhost:7441"
    shown = capsys.readouterr().out
    assert f"fingerprint  {peer.fingerprint}" in shown
    assert "train" not in shown
    assert f"ddib domains --profile {out / 'client' / 'client.toml'}" in shown
    profile = Profile.load(out / "client" / "client.toml")
    assert load_identity(profile.pki_folder).identity.uri.startswith("spiffe://north.example/client/")


def test_role_and_model_suffice(tmp_path, monkeypatch, capsys):
    """In the current folder: the institution is named after the machine, the client after whoever types.

    With an address others can reach the node, and it names the institution. A target has no clients.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "Scanner_2.north.example")
    monkeypatch.setattr("getpass.getuser", lambda: "Alice.B")
    assert run(["init", "node", "--role", "source", "--model", "moons"]) == 0
    assert NodeConfig.load(tmp_path / "node.toml").node.institution == "scanner-2.internal"
    uri = "spiffe://scanner-2.internal/client/alice-b"
    assert load_identity(Profile.load().pki_folder).identity.uri == uri
    shown = capsys.readouterr().out
    assert "institution  scanner-2.internal, from this machine's name" in shown
    lines = [line.strip() for line in shown.splitlines()]
    assert "ddib-source-node serve --pair" in lines
    assert "ddib domains" in lines
    words = ["--address", "node-1.west.example:7450", "--out", str(tmp_path / "west")]
    assert run(["init", "node", "--role", "target", "--domain", "moons", *words]) == 0
    west = NodeConfig.load(tmp_path / "west" / "node.toml").node
    assert (west.institution, west.listen, west.address) == (
        "west.example", "0.0.0.0:7450", "node-1.west.example:7450",
    )  # fmt: skip
    assert not (tmp_path / "west" / "client").exists()
    client = ["init", "client", "--config", str(tmp_path / "west" / "node.toml"), "--name", "alice"]
    assert run([*client, "--out", str(tmp_path / "alice")]) == ExitCode.BAD_INPUT


def test_the_environment_names_the_configuration(tmp_path, monkeypatch, capsys):
    """DDIB_CONFIG, as DDIB_PROFILE does for clients; --config wins, and what it names must be there."""
    monkeypatch.chdir(tmp_path)
    assert init_with_a_model(tmp_path / "north", "--domain", "moons") == 0
    assert run(["pki", "show"]) == ExitCode.NOT_FOUND
    monkeypatch.setenv("DDIB_CONFIG", str(tmp_path / "north" / "node.toml"))
    capsys.readouterr()
    assert run(["pki", "show"]) == 0
    assert "spiffe://north.example/node/node-1" in capsys.readouterr().out
    assert run(["pki", "show", "--config", "gone.toml"]) == ExitCode.NOT_FOUND


@pytest.mark.parametrize("inside", [True, False])
def test_a_model_of_ones_own_is_used_where_it_lies(tmp_path, inside):
    """No copy; node.toml names the folder, relative where it is the node's; another domain name is written too."""
    model = tmp_path / ("north/model-2" if inside else 'a "quoted" \\ folder')
    save_bundle(model, manifest(), state())
    assert init_with_a_model(tmp_path / "north", "--model", model, "--domain", "crescents") == 0
    config = NodeConfig.load(tmp_path / "north" / "node.toml")
    assert config.model.bundle == ("model-2" if inside else str(model))
    assert (config.model.domain, config.model.bundle_domain) == ("crescents", "moons")
    assert load_hosted(config).digest == load_bundle(model).digest
    assert not (tmp_path / "north" / "model").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--listen", "7443"), ExitCode.BAD_INPUT, "7443"),
        (("--domain", "a/b"), ExitCode.BAD_INPUT, "1 to 64 of A-Z a-z 0-9 . _ -"),
        (("--listen", "[::]:7443"), ExitCode.BAD_INPUT, "--address HOST:7443"),
        (("--model", "nothing"), ExitCode.NOT_FOUND, "nothing"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_value_that_cannot_be_used_leaves_nothing(init_node, tmp_path, capsys, words, code, said):
    """Neither keys nor a folder; a node that others dial says by what address, or every peer would dial itself."""
    assert init_node(*words) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "north").exists()


def test_nothing_is_overwritten(init_node, tmp_path):
    assert init_node() == 0
    pki = tmp_path / "north" / "state" / "pki"
    assert {path.stat().st_mode & 0o777 for path in pki.glob("*.key")} == {0o600}
    key = (tmp_path / "north" / "state" / "pki" / "ca.key").read_bytes()
    assert init_node() == ExitCode.CONFLICT
    (tmp_path / "north" / "node.toml").unlink()
    assert init_node() == ExitCode.CONFLICT
    assert (tmp_path / "north" / "state" / "pki" / "ca.key").read_bytes() == key
    assert not (tmp_path / "north" / "node.toml").exists()


def test_a_state_folder_that_others_may_write_is_refused(init_node, tmp_path, capsys):
    """Whoever may write there could put a root of their own before ours."""
    (tmp_path / "north" / "state").mkdir(parents=True)
    (tmp_path / "north" / "state").chmod(0o777)
    assert init_node() == ExitCode.BAD_INPUT
    assert f"chmod 700 {tmp_path / 'north' / 'state'}" in capsys.readouterr().err
    assert not (tmp_path / "north" / "node.toml").exists()
