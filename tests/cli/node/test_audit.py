"""`ddib audit verify` on logs that a node wrote, and on what somebody made of them."""

from __future__ import annotations

import json

import pytest

from ddib_fed.cli.main import run
from ddib_fed.cli.node.making import make_node
from ddib_fed.errors import ExitCode
from ddib_fed.trust.audit import AuditLog, verify


@pytest.fixture
def config_path(tmp_path):
    make_node(tmp_path, institution="north.example", roles=("source",), domain="moons", name="node-1",
              listen="127.0.0.1:7441", address="localhost:7441", with_ca=False)  # fmt: skip
    return tmp_path / "node.toml"


@pytest.fixture
def log(config_path):
    """A log of three acts."""
    path = config_path.parent / "state" / "audit.jsonl"
    written = AuditLog(path)
    for act in ("started", "latent_sent", "stopped"):
        written.write(act)
    return path


def test_a_whole_log_is_verified(config_path, log, capsys):
    """Lines and head, for people and for scripts."""
    assert run(["audit", "verify", "--config", str(config_path)]) == 0
    assert verify(log).head in capsys.readouterr().out
    assert run(["audit", "verify", "--config", str(config_path), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["lines"], told["head"]) == (True, 3, verify(log).head)


def test_a_changed_line_is_named(config_path, log, capsys):
    """Exit 10, and the number of the first line that does not hang together."""
    log.write_bytes(log.read_bytes().replace(b"latent_sent", b"nothing_sent"))
    assert run(["audit", "verify", "--config", str(config_path)]) == ExitCode.CORRUPT
    assert "line 3" in capsys.readouterr().err


def test_a_log_that_was_cut_shows_by_the_noted_head(config_path, log, capsys):
    """The chain of what is left is whole; the head that was noted is no longer in it. Lines that follow do no harm."""
    noted = verify(log).head
    command = ["audit", "verify", "--config", str(config_path), "--head", noted]
    AuditLog(log).write("started")
    assert run(command) == 0
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    assert run(["audit", "verify", "--config", str(config_path)]) == 0
    assert run(command) == ExitCode.CORRUPT
    assert "head that was noted" in capsys.readouterr().err


def test_no_log_is_not_found(config_path, capsys):
    """A node that never served."""
    assert run(["audit", "verify", "--config", str(config_path)]) == ExitCode.NOT_FOUND
    assert "audit.jsonl" in capsys.readouterr().err
