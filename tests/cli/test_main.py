"""The `ddib` command: what it loads, its help, what it says when something fails, and what it ends with."""

import errno
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from ddib_fed.cli import main as entry
from ddib_fed.cli.main import SECTIONS, cli, run
from ddib_fed.errors import (
    NEXT_STEPS,
    DdibError,
    ExitCode,
    PeerUnreachable,
    PolicyDenied,
    all_errors,
)
from tests.cli.reference import DOCUMENT, PROTOCOL, commands, document, with_contract


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
    """Neither `ddib --help` nor the command modules of extensions import torch, grpc, numpy, pydantic or rich."""
    code = (
        "import sys; from ddib_fed.cli.main import run; assert run(['--help']) == 0;"
        "heavy = {'torch', 'grpc', 'numpy', 'pydantic', 'google', 'rich', 'cryptography'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("slover=ddim", "did you mean solver?"),
        ("depth=2", "not in the range"),
        ("solver=euler", "unipc"),
        ("depth", "NAME=VALUE is expected"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_command_that_lists_them(setting, says, tmp_path, capsys):
    line = ["translate", "scan.png", "--to", "south.example/relief", "--out", str(tmp_path), "--set", setting]
    assert run(line) == ExitCode.USAGE
    told = capsys.readouterr().err
    assert says in told
    assert "ddib translate --set help" in told
    assert run(["translate", "--set", "help"]) == 0
    assert "temperature=SCALE" in capsys.readouterr().out


def test_an_error_says_what_where_and_what_next(failing, capsys):
    """What failed, the hop, the facts, the incident and the next command to try, on stderr alone."""
    error = PeerUnreachable("no answer", hop="target south.example", facts={"tries": 3}, incident="ab12")
    failing(error)
    assert run(["domains"]) == ExitCode.UNAVAILABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    for text in ("no answer", "PEER_UNREACHABLE", "target south.example", "tries 3", "ab12", "ddib doctor"):
        assert text in captured.err


@pytest.mark.parametrize(
    ("least", "step"),
    [("8", "--evaluations 8, or"), ("8; rm -r", "ask the operator of the node that refused")],
)
def test_a_policy_that_refuses_a_setting_is_answered_by_the_option_that_it_takes(
    failing, capsys, least, step
):
    """By the number that came from the node, and by no other text of it."""
    failing(PolicyDenied(facts={"policy": "least_evaluations", "evaluations": 4, "least": least}))
    assert run(["domains"]) == ExitCode.REFUSED
    assert f"  try:  {step}" in capsys.readouterr().err


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


def test_an_error_of_the_system_without_a_file_is_no_bug_to_report(failing, capsys, monkeypatch):
    monkeypatch.delenv("DDIB_DEBUG", raising=False)
    failing(OSError(errno.EMFILE, "Too many open files"))
    assert run(["domains"]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert "Too many open files" in said
    assert "DDIB_DEBUG" not in said


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


EVERY = list(commands())


def test_every_command_and_option_has_help() -> None:
    for name, command in EVERY:
        assert command.help, f"{name} has no help"
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{name} {parameter.opts[-1]} has no help"


def test_the_document_says_what_the_commands_say() -> None:
    """`python -m tests.cli.reference` brings docs/cli.md up to date."""
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "python -m tests.cli.reference"


def test_the_example_of_a_contract_is_that_of_the_code() -> None:
    text = PROTOCOL.read_text(encoding="utf-8")
    assert with_contract(text) == text, "python -m tests.cli.reference"


def test_every_exit_code_is_documented() -> None:
    text = DOCUMENT.with_name("troubleshooting.md").read_text(encoding="utf-8")
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == [
        int(code) for code in ExitCode
    ]


def test_the_list_of_commands_says_what_their_help_says() -> None:
    """The line in `ddib --help`, which is known without importing the command, is not a second opinion."""
    context = click.Context(cli)
    for name, _, text in (each for section in SECTIONS.values() for each in section):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help
        assert " ".join(command.help.split("\n\n")[0].split()) == text, name


WITHOUT_JSON = {
    "ddib demo": "a show for people; what it runs can be run alone",
    "ddib dicom receive": "runs until it is stopped; says in its log what becomes of each series",
    "ddib web": "serves until it is stopped; prints its address",
    "check": "of a node: says each step; its exit code answers scripts",
    "serve": "runs until it is stopped; [log] format has JSON",
    "train": "of a node: prints nothing on stdout; the bundle's manifest has the figures",
}
LEAVES = [(name, command) for name, command in commands() if not isinstance(command, click.Group)]


def test_every_command_answers_scripts_in_json():
    for name, command in LEAVES:
        of_node = name.split()[-1] if not name.startswith("ddib ") else name
        has = any(param.name == "output_format" and "--format" in param.opts for param in command.params)
        assert has != (of_node in WITHOUT_JSON), name


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["tranlsate"], "'translate'"),
        (["job", "lst"], "'list'"),
        (["job", "list", "--limt", "3"], "'--limit'"),
        (["model", "get", "sattelite", "--out", "x"], "satellite"),
        (["peer"], "export"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_is_misspelt_gets_a_suggestion(words, meant, capsys):
    code = run(words)
    captured = capsys.readouterr()
    assert code in {ExitCode.USAGE, ExitCode.NOT_FOUND}
    assert meant in captured.err + captured.out


def test_with_json_sentences_are_aside(tmp_path, capsys):
    """stdout is one document; messages for people go to stderr, and is there without JSON."""
    words = ["init", "node", "--institution", "north.example", "--role", "source", "--domain", "moons"]
    assert run([*words, "--out", str(tmp_path / "a"), "--format", "json"]) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert made["config"] == str(tmp_path / "a" / "node.toml")
    assert "fingerprint" in captured.err
    config = ["--config", made["config"]]
    for line, key in (
        (["peer", "export", "--out", str(tmp_path / "north.peer")], "fingerprints"),
        (["peer", "list"], None),
        (["pki", "show"], "valid_until"),
        (["pki", "request", "--out", str(tmp_path / "node.csr")], "identity"),
    ):
        assert run([*line, *config, "--format", "json"]) == 0, line
        found = json.loads(capsys.readouterr().out)
        assert key is None or key in found
        if key == "valid_until":
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found[key])
    assert run(["peer", "export", "--out", str(tmp_path / "north.peer"), "--force", *config]) == 0
    assert "fingerprint" in capsys.readouterr().out
