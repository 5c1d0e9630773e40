"""What a peer file, a peer or a node says is shown, and does nothing else; what reaches a node's log."""

import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ddib_fed.cli.job import _show_job
from ddib_fed.cli.main import run as run_ddib
from ddib_fed.client.client import job_from_pb
from ddib_fed.node.command import JsonFormatter, TextFormatter
from ddib_fed.node.config import NodeConfig, peer_store
from ddib_fed.security.peers import begin_node
from ddib_fed.security.pki import certificate_pem
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from tests.cli.node.test_pki import write_config
from tests.node.institutions import Institution, changed

GENUINE = "SHA256:" + ":".join(["ab"] * 32)


def north_node(folder: Path) -> Path:
    config = write_config(folder, institution="north.example")
    begin_node(NodeConfig.load(config).paths.state, "north.example", "node-1")
    return config


def on_a_terminal(arguments: list[object], answer: bytes) -> tuple[int, bytes]:
    """A command at a pseudo terminal: its exit code, and every byte that the terminal gets."""
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    code = "from ddib_fed.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    return process.wait(), shown


@pytest.mark.slow
@pytest.mark.parametrize("character", ["\x1b", "\u202e"], ids=ascii)
def test_a_peer_file_with_a_sequence_in_its_address_is_refused_in_plain_words(tmp_path, character):
    """The attack of a swapped file, at a terminal, with a `y`: nobody is admitted, and no byte of it comes through."""
    config, attacker = north_node(tmp_path / "north"), Institution("south.example", tmp_path / "attacker")
    file = tmp_path / "south.peer"
    file.write_bytes(
        changed(attacker.peer(), address=f"south.example:7442{character}E{GENUINE}{character}]0;:7442")
    )
    code, shown = on_a_terminal(["peer", "add", file, "--config", config], b"y\n")
    assert code == 3
    assert b"is not host:port" in shown
    assert b"\x1b" not in shown
    assert character.encode() not in shown
    assert not peer_store(NodeConfig.load(config)).list()


@pytest.mark.slow
@pytest.mark.parametrize("roots", [1, 2])
def test_the_fingerprints_come_last_and_alone(tmp_path: Path, roots: int) -> None:
    """At a terminal, right before the question, each on a line of its own.

    Two roots are a roll-over, or an attacker's beside the real one: the question is about all of them, by number.
    """
    config, south = north_node(tmp_path / "north"), Institution("south.example", tmp_path / "south")
    attacker, file = Institution("south.example", tmp_path / "attacker"), tmp_path / "south.peer"
    both = [certificate_pem(root).decode() for root in (south.root, attacker.root)]
    file.write_bytes(changed(south.peer("south.example:7442"), roots=both[:roots]))
    code, shown = on_a_terminal(["peer", "add", file, "--config", config], b"n\n")
    assert code == 5
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    asked = "Is this what" if roots == 1 else "Are all 2 of these what the other operator reads out"
    question = next(number for number, line in enumerate(lines) if line.startswith(asked))
    assert south.peer().fingerprint in lines[question - roots : question]


EVIL = "x\n2030-01-01 INFO    ddib_fed.node.daemon: stopped \x1b]0;\x07\u202e"


def evil_job() -> pb.Job:
    failure = common_pb2.ErrorDetail(reason=EVIL, sentence=EVIL, institution=EVIL, incident=EVIL)
    item = pb.Item(state=pb.ITEM_STATE_FAILED, error=failure)
    solver = common_pb2.SolverSettings(solver=EVIL, grid=EVIL)
    request = pb.JobHeader(
        target_institution=EVIL, target_domain=EVIL, solver=solver, source_class=EVIL, target_class=EVIL
    )
    return pb.Job(job_id=EVIL, state=pb.JOB_STATE_FAILED, request=request, items=[item], error=failure)


def test_a_job_that_a_node_describes_is_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    _show_job(job_from_pb(evil_job(), "node"))
    out = capsys.readouterr().out
    assert out.count(r"x\n2030") >= 5
    assert all(line.isprintable() and not line.startswith("2030") for line in out.split("\n"))


@pytest.mark.parametrize("name", ["\x1b]0;x\x07.png", "a\nerror: b"], ids=ascii)
def test_what_was_typed_is_shown_escaped_in_errors(tmp_path, monkeypatch, capsys, name):
    """A shell puts the names of files there; click writes some of these errors, and Python the last."""
    monkeypatch.setenv("DDIB_DEBUG", "1")
    for arguments in ([name], ["translate", name], ["peer", "add", name], ["colours", name, name]):
        assert run_ddib(arguments) != 0
        shown = capsys.readouterr()
        assert "\x1b" not in shown.out + shown.err
        assert not any(line.startswith("error: b") for line in shown.err.split("\n"))


def record(message: str, *arguments: object, error: Exception | None = None) -> logging.LogRecord:
    information = None if error is None else (type(error), error, None)
    return logging.LogRecord("ddib_fed.node", logging.INFO, "x.py", 1, message, arguments, information)


def test_no_text_of_a_peer_begins_a_line_of_a_log() -> None:
    lines = TextFormatter().format(record("job %s fails", EVIL, error=ValueError(EVIL))).split("\n")
    assert lines[0].endswith(
        r"job x\n2030-01-01 INFO    ddib_fed.node.daemon: stopped \x1b]0;\x07\u202e fails"
    )
    assert lines[1:]
    assert all(line.startswith("    ") for line in lines[1:])
    assert all(line.isprintable() for line in lines)


def test_a_log_in_json_has_one_line_a_record_and_is_exact() -> None:
    text = JsonFormatter().format(record("job %s fails", EVIL, error=ValueError(EVIL)))
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["message"] == f"job {EVIL} fails"


SETUP = """
import logging, sys, threading, warnings
from ddib_fed.node.command import route, silence_grpc
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
route(handler, "{level}")
"""


def said(code: str, *, level: str = "debug", **environment: str) -> tuple[str, str]:
    """What a process with this code writes to stdout, which is its log, and to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", SETUP.format(level=level) + code], capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.stdout, done.stderr


def test_warnings_and_exceptions_that_nobody_caught_are_in_the_log() -> None:
    log, past = said(
        "warnings.warn('careful')\n"
        "thread = threading.Thread(target=lambda: 1 / 0, name='t'); thread.start(); thread.join()\n"
        "raise KeyError('last')\n",
        PYTHONWARNINGS="default",
    )
    assert past == ""
    assert "WARNING py.warnings" in log
    assert "ERROR ddib_fed.node.command thread t ended" in log
    assert "CRITICAL ddib_fed.node.command" in log


def test_grpc_says_nothing_whatever_the_environment_asks_for() -> None:
    code = "silence_grpc()\nimport grpc\ngrpc.insecure_channel('127.0.0.1:1').close()\n"
    assert said(code, GRPC_TRACE="all", GRPC_VERBOSITY="debug") == ("", "")
