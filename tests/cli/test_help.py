"""Every command and option has help, and docs/cli.md says the same as the commands do."""

from __future__ import annotations

import re

import click
import pytest

from ddib_fed.cli.main import COMMANDS, cli
from ddib_fed.errors import ExitCode
from tests.cli.reference import DOCUMENT, PROTOCOL, commands, document, parameters, with_contract

EVERY = list(commands())


@pytest.mark.parametrize(("name", "command"), EVERY, ids=[name for name, _ in EVERY])
def test_every_command_and_option_has_help(name: str, command: click.Command) -> None:
    """A first sentence for the command, and a text for each option."""
    assert command.help, f"{name} has no help"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{name} {parameter.opts[-1]} has no help"


def test_the_document_says_what_the_commands_say() -> None:
    """`python -m tests.cli.reference` brings docs/cli.md up to date."""
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "python -m tests.cli.reference"


def test_the_example_of_a_contract_is_that_of_the_code() -> None:
    """Its canonical JSON and digest, for a second implementation."""
    text = PROTOCOL.read_text(encoding="utf-8")
    assert with_contract(text) == text, "python -m tests.cli.reference"


def test_the_document_names_every_option() -> None:
    """No option is hidden in a rendering that broke."""
    text = DOCUMENT.read_text(encoding="utf-8")
    written = {option for _, command in EVERY for option, meaning in parameters(command) if meaning}
    missing = [option for option in written if option.split(",")[-1].split()[0] not in text]
    assert not missing


def test_every_exit_code_is_documented() -> None:
    """The table of docs/troubleshooting.md has each number once."""
    text = DOCUMENT.with_name("troubleshooting.md").read_text(encoding="utf-8")
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == [
        int(code) for code in ExitCode
    ]


def test_the_list_of_commands_says_what_their_help_says() -> None:
    """The line in `ddib --help`, which is known without importing the command, is not a second opinion."""
    context = click.Context(cli)
    for name, lazy in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help
        assert " ".join(command.help.split("\n\n")[0].split()) == lazy.help, name
