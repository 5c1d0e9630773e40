"""What every command has in common: help that fits a screen, JSON for scripts, and suggestions for what is misspelt."""

from __future__ import annotations

import json
import re

import click
import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from tests.cli.reference import commands

SCREEN = 48
COLUMNS = 100
WITHOUT_JSON = {
    "ddib demo": "a show for people; what it runs can be run alone",
    "ddib web": "serves until it is stopped; prints its address",
    "check": "of a node: says each step; its exit code answers scripts",
    "serve": "runs until it is stopped; [log] format has JSON",
    "train": "of a node: prints nothing on stdout; the bundle's manifest has the figures",
}
LEAVES = [(name, command) for name, command in commands() if not isinstance(command, click.Group)]
OF_DDIB = [(name, command) for name, command in LEAVES if name.startswith("ddib ")]


def _ids(pairs):
    return [name for name, _ in pairs]


def test_every_command_answers_scripts_in_json():
    for name, command in LEAVES:
        of_node = name.split()[-1] if not name.startswith("ddib ") else name
        has = any(param.name == "output_format" and "--format" in param.opts for param in command.params)
        assert has != (of_node in WITHOUT_JSON), name


@pytest.mark.parametrize(("name", "command"), OF_DDIB, ids=_ids(OF_DDIB))
def test_help_fits_a_screen(name, command):
    """An option that is for few belongs into `RARE` of `cli/options.py`."""
    context = click.Context(
        command, info_name=name, terminal_width=COLUMNS, help_option_names=["-h", "--help"]
    )
    lines = command.get_help(context).split("\n")
    assert len(lines) <= SCREEN, f"{len(lines)} lines"
    examples = {
        line.strip() for line in (command.epilog or "").split("\n")
    }  # are to be pasted, so they are not broken
    assert all(len(line) <= COLUMNS or line.strip() in examples for line in lines)


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
