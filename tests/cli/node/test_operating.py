"""`ddib audit` on logs that a node wrote, and `ddib status`, `reload` and `drain` on the socket of one."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from ddib_fed.node.admin import (
    CalibrationStatus,
    Metrics,
    ModelStatus,
    NodeStatus,
    PeerStatus,
    WorkersStatus,
    operator_service,
)
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.operator import Node
from ddib_fed.security.audit import anchor_of, anchor_values, lines_of, verify
from tests import audit_rows
from tests.node.status import status_of


@pytest.fixture
def config_path(tmp_path):
    Node.create(tmp_path, institution="north.example", role="source", domain="moons", name="node-1",
              listen="127.0.0.1:7441", address="localhost:7441", with_ca=False)  # fmt: skip
    return tmp_path / "node.toml"


@pytest.fixture
def log(config_path):
    """A log of three acts."""
    path = config_path.parent / "state" / "node.sqlite"
    for act, values in (("started", {}), ("latent_sent", {"job": "7f3a"}), ("stopped", {})):
        audit_rows.append(path, act, **values)
    return path


@pytest.fixture
def pair(tmp_path):
    """The node.toml of north and south, which admitted each other and exchanged ten latents."""
    paths = {}
    for name, role in (("north", "source"), ("south", "target")):
        Node.create(tmp_path / name, institution=f"{name}.example", role=role, domain="moons", name="node-1",
                  listen="127.0.0.1:7441", address="localhost:7441", with_ca=True)  # fmt: skip
        paths[name] = tmp_path / name / "node.toml"
    for here, there in (("north", "south"), ("south", "north")):
        other = Node.open(paths[there]).peers.export(tmp_path / f"{there}.peer")
        Node.open(paths[here]).peers.add(tmp_path / f"{there}.peer", fingerprints=other.fingerprints)
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
    assert run(export) == 0
    file.write_text(capsys.readouterr().out)
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


def answer() -> NodeStatus:
    then = datetime.fromtimestamp(1e9, UTC)
    return status_of(
        "serving",
        jobs={"running": 2},
        certificate_expires=then,
        model=ModelStatus(domain="moons", kind="point", sample_shape=(2,), sha256="", parameters=397_000, device=""),
        peers=(
            PeerStatus(institution="south.example", identity="", address="localhost:7442", fingerprint="SHA256:ab",
                       problem="nothing listens at localhost:7442 [nothing-listens]", failed=then, suspended=""),
        ),
        calibrations=(
            CalibrationStatus(
                sha256="ab" * 32, kind="rotation", source="north.example/photos", target="south.example/maps",
                state="active", expires=datetime.fromtimestamp(1.9e9, UTC),
                dial="share 0.75, temperature 1, blend 0", warning="it ends at 2030-03-17, in 3 days",
            ),
        ),
        workers=WorkersStatus(executor="processes", wanted=2, ready=("0 on cpu, process 71",), replaced=4,
                              problem="a worker process cannot be started: no memory"),
    )  # fmt: skip


def operated(answer: NodeStatus) -> SimpleNamespace:
    """A node as its operator's commands see it."""
    return SimpleNamespace(
        state=lambda: answer.state, status=lambda: answer, reload=lambda: ["added peer west.example"],
        request_drain=lambda: 2,
    )  # fmt: skip


@pytest.fixture
def admin(config_path):
    with operator_service(NodeConfig.load(config_path), operated(answer()), Metrics()):
        yield config_path


def test_status_warns_of_a_root_that_ends_soon(config_path, capsys):
    ending = replace(answer(), root_expires=datetime.now(UTC) + timedelta(days=10.5))
    with operator_service(NodeConfig.load(config_path), operated(ending), Metrics()):
        assert run(["status", "--config", str(config_path)]) == 0
    assert "warning: the root of north.example ends in 10 days" in capsys.readouterr().out


def test_status_shows_the_node(admin, capsys):
    assert run(["status", "--config", str(admin)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "serving",
        "moons",
        "397,000",
        "south.example",
        "2 running",
        "abababababab rotation, north.example/photos to south.example/maps, share 0.75, temperature 1, blend 0",
        "in 3 days",
        "1 of 2 ready, 4 replaced",
        "0 on cpu, process 71",
        "no memory",
        "nothing listens at localhost:7442 [nothing-listens]; ddib peer test south.example --config ",
    ):
        assert text in shown
    assert run(["status", "--config", str(admin), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "serving"


def test_reload_and_drain_say_what_they_did(admin, capsys):
    assert run(["reload", "--config", str(admin)]) == 0
    shown = capsys.readouterr().out
    assert "added peer west.example" in shown
    assert "restart the node" in shown
    assert run(["drain", "--config", str(admin)]) == 0
    assert "2 jobs are still running" in capsys.readouterr().out


def test_no_node_is_unreachable(config_path, capsys):
    assert run(["status", "--config", str(config_path)]) == ExitCode.UNAVAILABLE
    assert "serve --config" in capsys.readouterr().err
