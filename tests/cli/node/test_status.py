"""`ddib status`, `reload` and `drain` against the real admin service on a Unix socket."""

import json
import time
from types import SimpleNamespace

import pytest

from ddib_fed.cli.init import make_node
from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from ddib_fed.node.admin import operator_service
from ddib_fed.node.config import NodeConfig
from ddib_fed.v1 import admin_pb2 as pb


def answer() -> pb.StatusResponse:
    status = pb.StatusResponse(
        institution="north.example", name="node-1", roles=["source"], version="0.1.0", state="serving",
        listen="127.0.0.1:7441", address="localhost:7441", jobs={"running": 2}, certificate_expires=1e9,
    )  # fmt: skip
    status.model.CopyFrom(pb.ModelStatus(domain="moons", kind="point", sample_shape=[2], parameters=397_000))
    status.peers.add(institution="south.example", address="localhost:7442", fingerprint="SHA256:ab",
                     problem="nothing listens at localhost:7442 [nothing-listens]", failed=1e9)  # fmt: skip
    status.calibrations.add(
        sha256="ab" * 32, kind="rotation", source="north.example/photos", target="south.example/maps",
        state="active", expires=1.9e9, warning="it ends at 2030-03-17, in 3 days",
    )  # fmt: skip
    status.workers.CopyFrom(
        pb.WorkersStatus(
            executor="processes", wanted=2, ready=["0 on cpu, process 71"], replaced=4,
            problem="a worker process cannot be started: no memory",
        )
    )  # fmt: skip
    return status


def operated(answer: pb.StatusResponse) -> SimpleNamespace:
    """A node as its operator's commands see it."""
    return SimpleNamespace(
        status=lambda: answer, reload=lambda: ["added peer west.example"], request_drain=lambda: 2
    )


@pytest.fixture
def config_path(tmp_path):
    make_node(tmp_path, institution="north.example", roles=("source",), domain="moons", name="node-1",
              listen="127.0.0.1:7441", address="localhost:7441", with_ca=False)  # fmt: skip
    return tmp_path / "node.toml"


@pytest.fixture
def admin(config_path):
    with operator_service(NodeConfig.load(config_path), operated(answer())):
        yield config_path


def test_status_warns_of_a_root_that_ends_soon(config_path, capsys):
    ending = answer()
    ending.root_expires = time.time() + 10.5 * 86_400
    with operator_service(NodeConfig.load(config_path), operated(ending)):
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
        "abababababab rotation",
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
