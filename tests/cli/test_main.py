"""The `ddib` command itself: what it loads, what it says when something fails, and what it ends with."""

from __future__ import annotations

import importlib.metadata
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from ddib_fed.cli import main as entry
from ddib_fed.cli.main import run
from ddib_fed.errors import (
    NEXT_STEPS,
    ContractMismatch,
    DdibError,
    Difference,
    ExitCode,
    PeerUnreachable,
    all_errors,
)


@pytest.fixture
def failing(monkeypatch):
    """Makes `ddib domains` raise what the test wants."""

    def install(error: BaseException) -> None:
        @click.command()
        def domains() -> None:
            raise error

        module = type(sys)("failing_command")
        module.domains = domains
        monkeypatch.setitem(sys.modules, "failing_command", module)
        monkeypatch.setitem(entry.cli.hooks, "domains", "failing_command:domains")

    return install


def test_help_loads_nothing_heavy():
    """`ddib --help` imports click and our errors, no torch, grpc, numpy, pydantic or rich."""
    code = (
        "import sys; from ddib_fed.cli.main import run; assert run(['--help']) == 0;"
        "heavy = {'torch', 'grpc', 'numpy', 'pydantic', 'google', 'rich', 'cryptography'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_error_says_what_where_and_what_next(failing, capsys):
    """What failed, the hop, the facts, the incident and the next command to try, on stderr alone."""
    error = PeerUnreachable("no answer", hop="target south.example", facts={"tries": 3}, incident="ab12")
    failing(error)
    assert run(["domains"]) == ExitCode.UNAVAILABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    for text in ("no answer", "PEER_UNREACHABLE", "target south.example", "tries 3", "ab12", "ddib doctor"):
        assert text in captured.err


def test_contract_differences_are_a_table(failing, capsys):
    differences = (Difference("sample_shape", "[2]", "[3]", "train models of one shape"),)
    failing(ContractMismatch(differences=differences))
    assert run(["domains"]) == ExitCode.CONTRACT
    line = next(line for line in capsys.readouterr().err.splitlines() if "sample_shape" in line)
    assert line.split(None, 3) == ["sample_shape", "[2]", "[3]", "train models of one shape"]


def test_every_error_ends_with_its_code_and_a_next_step(failing, capsys):
    """No error of the tree leaves somebody without a next command, and the table holds no reason that was renamed."""
    assert set(NEXT_STEPS) <= {kind.reason for kind in all_errors()}
    for kind in all_errors():
        if kind is not DdibError:
            failing(kind("it went wrong"))
            assert run(["domains"]) == kind.exit_code != 0
            assert "  try:  " in capsys.readouterr().err, kind


def test_an_unforeseen_error_says_how_to_see_where(failing, capsys, monkeypatch):
    """One line, no traceback, exit 1; with DDIB_DEBUG=1 the traceback too."""
    failing(ZeroDivisionError("by zero"))
    monkeypatch.delenv("DDIB_DEBUG", raising=False)
    assert run(["domains"]) == ExitCode.INTERNAL
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "DDIB_DEBUG=1" in said
    assert "Traceback" not in said
    monkeypatch.setenv("DDIB_DEBUG", "1")
    assert run(["domains"]) == ExitCode.INTERNAL
    assert "Traceback" in capsys.readouterr().err


def test_a_client_that_runs_a_command_of_a_node_is_told_a_command_that_works(failing, monkeypatch, capsys):
    """As after `pip install CHECKOUT`, without the extra: this Python's own pip, and all that is missing, by names
    that an index has, with their versions; not `ddib-fed[node]`, which none has."""
    found, absent = importlib.metadata.version, {"torch", "safetensors", "spake2"}

    def version(name: str) -> str:
        if name in absent:
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    failing(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert run(["domains"]) == ExitCode.USAGE
    (hint,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  try:")]
    python, *words = shlex.split(hint.removeprefix("  try:"))
    assert (python, words[:3]) == (sys.executable, ["-m", "pip", "install"])
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = {Requirement(each) for each in declared["optional-dependencies"]["node"]}
    assert {Requirement(each) for each in words[3:]} == {each for each in wanted if each.name in absent}


INTERRUPTED = """
import os, runpy, signal, sys
class AtOnce:
    def find_spec(name, *_):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, AtOnce)
sys.argv = [sys.argv[1], "--help"]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("program", ["ddib_fed", "source_node"])
def test_ctrl_c_while_a_program_is_imported_shows_no_traceback(program):
    command = [sys.executable, "-c", INTERRUPTED, program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
