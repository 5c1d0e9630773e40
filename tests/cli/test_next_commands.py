"""Command lines that are printed can be pasted: one a line, paths quoted, the configuration named where needed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ddib_fed.cli.main import cli, run
from ddib_fed.cli.options import with_config
from ddib_fed.node.command import node_command


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "My node"


def next_commands(shown: str) -> list[list[str]]:
    lines = shown.partition("next:\n")[2].rstrip("\n").splitlines()
    assert all(line.startswith("  ") and line.endswith(":") for line in lines[::2])
    return [shlex.split(line) for line in lines[1::2]]


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def make_node(place: Path, *words: str) -> int:
    return run(["init", "node", "--institution", "north.example", "--role", "source", "--domain", "moons",
                "--out", str(place), *words])  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "path", "words"),
    [
        ("", "node.toml", ""),
        ("", "My node/node.toml", " --config 'My node/node.toml'"),
        ("north/node.toml", "north/node.toml", ""),
    ],
)
def test_the_configuration_is_named_where_the_next_command_would_not_find_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, path: str, words: str
) -> None:
    monkeypatch.setenv("DDIB_CONFIG", variable)
    assert with_config(Path(path)) == words


def test_what_init_prints_next_can_be_pasted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_node(place) == 0
    node = next_commands(capsys.readouterr().out)
    assert {value(words, "--config") for words in node if "--config" in words} == {str(place / "node.toml")}
    client = ["--institution", "north.example", "--address", "localhost:7443", "--name", "bob"]
    assert run(["init", "client", *client, "--out", str(place / "bob")]) == 0
    issue, install, doctor, domains = next_commands(capsys.readouterr().out)
    assert issue == ["ddib", "pki", "issue", "bob.csr"]
    assert value(install, "--profile") == str(place / "bob" / "client.toml")
    assert value(doctor, "--profile") == value(domains, "--profile") == str(place / "bob" / "client.toml")


PRODUCT = Path(__file__).parents[2]
_COMMAND = re.compile(
    r"(?<![\w/.-])(?<!--compat )ddib(?:-(source|target)-node)?"
    r"((?: [a-z][a-z-]*)+(?: (?:--?[a-z][a-z-]*|[A-Z./'\"\w:-]+))*)"
)
_PROCESSES = {"worker", "ray"}
"""What follows `ddib` in the name of a process of an engine."""


def texts() -> Iterator[tuple[str, str]]:
    """Where, and what: each text that a user may be shown; what is filled in stands as X."""
    for package in ("ddib_fed", "source_node", "target_node"):
        for path in sorted((PRODUCT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
                    yield f"{path}:{node.lineno}", "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{path}:{node.lineno}", node.value
        for path in sorted((PRODUCT / package).rglob("*.[jh][st]*")):
            if "pretrained" in path.parts:  # records of what was run once
                continue
            yield str(path), path.read_text()


def unknown(program: click.Command, words: list[str]) -> list[str]:
    """The words of a command line that are no command or option of the program."""
    command, context = program, click.Context(program)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(context, words[0])
        if inner is None:
            return [] if command is not program else words[:1]  # a sentence about the group goes on
        command, words = inner, words[1:]
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
    return [word for word in words if word.startswith("--") and word not in known]


def test_every_command_that_is_named_exists() -> None:
    wrong, seen = [], 0
    for where, text in texts():
        for found in _COMMAND.finditer(text):
            words = found[2].split()
            if found[1] is None and words[0] in _PROCESSES:
                continue
            seen += 1
            program = cli if found[1] is None else node_command(found[1])
            wrong += [f"{where}: {found[0]!r}: {word}" for word in unknown(program, words)]
    assert seen > 300
    assert not wrong
