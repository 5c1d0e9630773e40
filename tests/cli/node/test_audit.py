"""`ddib audit verify` on logs that a node wrote, and on what somebody made of them."""

import json

import pytest

from ddib_fed.cli.init import make_node
from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from ddib_fed.node.admitting import admit, export_peer
from ddib_fed.node.config import NodeConfig
from ddib_fed.security.audit import anchor_of, anchor_values, lines_of, verify
from tests import audit_rows


@pytest.fixture
def config_path(tmp_path):
    make_node(tmp_path, institution="north.example", roles=("source",), domain="moons", name="node-1",
              listen="127.0.0.1:7441", address="localhost:7441", with_ca=False)  # fmt: skip
    return tmp_path / "node.toml"


@pytest.fixture
def log(config_path):
    """A log of three acts."""
    path = config_path.parent / "state" / "node.sqlite"
    for act, values in (("started", {}), ("latent_sent", {"job": "7f3a"}), ("stopped", {})):
        audit_rows.append(path, act, **values)
    return path


def test_a_log_that_was_cut_shows_by_the_noted_head(config_path, log, capsys):
    noted = verify(lines_of(log)).head
    command = ["audit", "verify", "--config", str(config_path), "--anchors", noted]
    audit_rows.append(log, "started")
    assert run(command) == 0
    audit_rows.cut(log, 2)
    assert run(["audit", "verify", "--config", str(config_path)]) == 0
    assert run(command) == ExitCode.CORRUPT
    assert "head that was noted" in capsys.readouterr().err


@pytest.fixture
def pair(tmp_path):
    """The node.toml of north and south, which admitted each other and exchanged ten latents."""
    paths = {}
    for name, role in (("north", "source"), ("south", "target")):
        make_node(tmp_path / name, institution=f"{name}.example", roles=(role,), domain="moons", name="node-1",
                  listen="127.0.0.1:7441", address="localhost:7441", with_ca=True)  # fmt: skip
        paths[name] = tmp_path / name / "node.toml"
    for here, there in (("north", "south"), ("south", "north")):
        own = export_peer(NodeConfig.load(paths[there]), tmp_path / f"{there}.peer")
        admit(NodeConfig.load(paths[here]), tmp_path / f"{there}.peer", own.fingerprints)
    logs = {name: NodeConfig.load(path).paths.store for name, path in paths.items()}
    for item in range(10):
        head = audit_rows.append(logs["north"], "latent_sent", peer="south.example", item=item)
        answer = audit_rows.append(
            logs["south"],
            "latent_received",
            peer="spiffe://north.example/node/node-1",
            **anchor_values(anchor_of(head)),
        )
        audit_rows.append(logs["north"], "receipt", peer="south.example", **anchor_values(anchor_of(answer)))
    return paths


@pytest.mark.parametrize(("victim", "holder"), [("north", "south"), ("south", "north")])
def test_a_cut_shows_against_the_anchors_that_the_peer_wrote_out(pair, tmp_path, capsys, victim, holder):
    """`ddib audit show --anchors` there, `ddib audit verify --anchors` here: whole before the cut, not after it."""
    file, log = tmp_path / "held.json", NodeConfig.load(pair[victim]).paths.store
    export = ["audit", "show", "--anchors", "--config", str(pair[holder]), "--peer", f"{victim}.example"]
    assert run([*export, "--out", str(file)]) == 0
    command = ["audit", "verify", "--config", str(pair[victim]), "--anchors", str(file)]
    assert run(command) == 0
    assert "10 lines that peers noted, all there" in capsys.readouterr().out
    audit_rows.cut(log, 6)
    assert run(["audit", "verify", "--config", str(pair[victim])]) == 0
    assert run(command) == ExitCode.CORRUPT
    told = capsys.readouterr()
    assert f"spiffe://{holder}.example/node/node-1 noted on" in told.err
    assert "its end was cut off" in told.err


def test_lines_are_shown_for_people_and_for_scripts(config_path, log, capsys):
    audit_rows.append(log, "peer_suspended", peer="south.example", reason='until "Friday"')
    assert run(["audit", "show", "--config", str(config_path), "--peer", "south.example"]) == 0
    shown = capsys.readouterr().out
    assert shown.split()[0] == "4"
    assert 'peer_suspended      peer=south.example  reason="until \\"Friday\\""' in shown
    assert run(["audit", "show", "--config", str(config_path), "--limit", "2", "--format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["act"] for line in lines] == ["stopped", "peer_suspended"]
    assert lines[-1]["sha256"] == verify(lines_of(log)).head


def test_no_log_cannot_be_shown(config_path):
    assert run(["audit", "show", "--config", str(config_path)]) == ExitCode.NOT_FOUND
