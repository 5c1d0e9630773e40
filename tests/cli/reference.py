"""Writes the reference part of docs/cli.md from the commands themselves: `python -m tests.cli.reference`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from ddib_fed.cli.main import cli
from ddib_fed.node.command import node_command

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"
BEGIN = "<!-- reference: written by `python -m tests.cli.reference` -->"
END = "<!-- end of the reference -->"


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that is installed, groups before their members."""
    yield from _walk("ddib", cli)
    yield from _walk("ddib-source-node", node_command("source"))
    yield from _walk("ddib-target-node", node_command("target"))
    yield from _walk("python -m ddib_fed.node", node_command(None))


def _walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _walk(f"{name} {child}", found)


def parameters(command: click.Command) -> Iterator[tuple[str, str]]:
    """Each argument and option that is shown, as (how it is written, what it does)."""
    context = click.Context(command)
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            yield parameter.make_metavar(context), ""
        elif isinstance(parameter, click.Option) and not parameter.hidden and parameter.name != "version":
            record = parameter.get_help_record(context)
            assert record is not None
            yield record


def render() -> str:
    """The reference: a heading for each command, its text, and a table of its options."""
    lines: list[str] = []
    for name, command in commands():
        lines += [f"### `{name}`", "", inspect.cleandoc(command.help or "").replace("\b\n", ""), ""]
        rows = list(parameters(command))
        arguments = " ".join(written for written, text in rows if not text)
        if arguments:
            lines += [f"Arguments: `{arguments}`", ""]
        options = [(written, text) for written, text in rows if text]
        if options:
            lines += ["| option | meaning |", "|---|---|"]
            lines += [f"| `{_cell(written)}` | {_cell(text)} |" for written, text in options]
            lines += [""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def replaced(document: str) -> str:
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{render()}{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
