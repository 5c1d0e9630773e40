"""Every command and option has help, and docs/cli.md says the same as the commands do."""

from __future__ import annotations

import re

import click

from ddib_fed.cli.main import SECTIONS, cli
from ddib_fed.errors import ExitCode
from tests.cli.reference import DOCUMENT, PROTOCOL, commands, document, with_contract

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
