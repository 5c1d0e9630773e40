"""Writes docs/cli.md, and the example of docs/protocol.md, from the code: `python -m tests.cli.reference`."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from ddib_fed.cli.main import cli
from ddib_fed.cli.options import SETTINGS
from ddib_fed.errors import all_errors
from ddib_fed.node.command import node_command
from ddib_fed.node.config import ModelSection, NodeSection, render_node_toml
from tests.protocol.examples import contract

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT, PROTOCOL = DOCS / "cli.md", DOCS / "protocol.md"
BEGIN, END = "<!-- contract: written by `python -m tests.cli.reference` -->", "<!-- end of contract -->"
HEAD = """\
# Commands, options, reasons and node.toml

Written by `python -m tests.cli.reference` from the commands themselves.

- Results go to stdout, all else to stderr. With `--format json` stdout is one JSON document (`ddib job watch`: one
  event a line): times are ISO 8601 in UTC, what is not known is `null`.
- The first characters of a digest are enough.
  `eval "$(_DDIB_COMPLETE=bash_source ddib)"` completes commands and
  options in bash, and so with `zsh_source` and `fish_source`.
- An option without effect is refused by name before anything is written. Existing files are not overwritten without
  `--force`, inputs never. Files are written with mode 0600, in folders of mode 0700.
- Several processes are supported only in training (`torchrun --nproc-per-node N --no-python ddib model train ...`).
"""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that is installed, groups before their members."""
    yield from _walk("ddib", cli)
    yield from _walk("ddib-source-node", node_command("source"))
    yield from _walk("ddib-target-node", node_command("target"))


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
        lines += [f"## `{name}`", "", inspect.cleandoc(command.help or "").replace("\b\n", ""), ""]
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


def reasons() -> str:
    """Each reason of an error with its sentence, exit code and gRPC status."""
    rows = ["## Reasons", "", "| reason | sentence | exit code | gRPC status |", "|---|---|---|---|"]
    rows += [
        f"| `{kind.reason}` | {kind.sentence} | {int(kind.exit_code)} | {kind.status} |"
        for kind in sorted(set(all_errors()), key=lambda kind: (int(kind.exit_code), kind.reason))
        if kind.__module__.startswith("ddib_fed.")
    ]
    return "\n".join([*rows, ""])


def further() -> str:
    """The table of `--set`."""
    rows = [
        f"| `{each.name}={_cell(each.metavar)}` | {'' if each.here else 'yes'} | {_cell(each.text)} |"
        for each in SETTINGS.values()
    ]
    text = "Settings of `ddib translate`, `ddib dicom receive` and `ddib model sample`; `--set help` prints them."
    return "\n".join(
        [
            "## `--set NAME=VALUE`",
            "",
            text,
            "",
            "| setting | between nodes | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def settings() -> str:
    """A node.toml as `ddib init node` writes it: every key with its default."""
    node = NodeSection(institution="north.example", listen="0.0.0.0:7443", address="north.example:7443")
    made = render_node_toml(node, ModelSection(domain="photos"))
    return f"## node.toml\n\n```toml\n{made.rstrip()}\n```\n"


def document() -> str:
    """The whole of docs/cli.md."""
    return f"{HEAD}\n{reasons()}\n{render()}\n{further()}\n{settings()}"


def with_contract(page: str) -> str:
    """docs/protocol.md with the canonical JSON of a contract, and its digest."""
    before, rest = page.split(BEGIN)
    made = contract()
    example = f"```json\n{made.canonical().decode()}\n```\n\nhas the digest `{made.digest.hex()}`."
    return f"{before}{BEGIN}\n\n{example}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
    PROTOCOL.write_text(with_contract(PROTOCOL.read_text(encoding="utf-8")), encoding="utf-8")
