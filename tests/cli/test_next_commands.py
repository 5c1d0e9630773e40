"""Command lines that are printed can be pasted: one a line, paths quoted, the configuration named where needed."""

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click

from ddib_fed.cli.main import cli, run
from ddib_fed.node.command import node_command

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


def test_what_init_prints_next_can_be_pasted(tmp_path, capsys, monkeypatch):
    """The files that it names are there, and the request becomes the client's certificate."""
    place, named = tmp_path / "My node", "--institution north.example"
    node = f"node {named} --role source --domain moons"
    client = f"client {named} --address localhost:7443 --name bob"
    printed, files = [], set()
    for words, out in ((node, place), (client, place / "bob")):
        assert run(["init", *words.split(), "--out", str(out)]) == 0
        lines = capsys.readouterr().out.partition("next:\n")[2].splitlines()
        printed += [shlex.split(line) for line in lines[1::2]]
    for program, *words in printed:
        assert not unknown(cli if program == "ddib" else node_command("source"), words)
        files |= {Path(path) for option, path in pairwise(words) if option in {"--config", "--profile"}}
    assert files == {place / each for each in ("node.toml", "client/client.toml", "bob/client.toml")}
    assert all(path.is_file() for path in files)
    issue, install = (words[1:] for words in printed if words[1] == "pki")
    monkeypatch.chdir(place / "bob")
    assert run([*issue, "--config", str(place / "node.toml"), "--yes"]) == run(install) == 0


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
