"""Runs command lines given as JSON, one after the other, and prints their exit codes; to be started by torchrun."""

import json
import sys

import click

from ddib_fed.cli.main import run
from ddib_fed.errors import DdibError
from ddib_fed.node.command import node_command


def node(words: list[str]) -> int:
    """A node's command; the exit code."""
    try:
        node_command("source")(words, standalone_mode=False)
    except DdibError as error:
        click.echo(f"error: {error.detail}", err=True)
        return int(error.exit_code)
    return 0


codes = [node(words[1:]) if words[0] == "node" else int(run(words)) for words in json.loads(sys.argv[1])]
print(json.dumps(codes), flush=True)
