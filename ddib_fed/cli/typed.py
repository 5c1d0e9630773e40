"""Command lines as they can be pasted: the running one again, and those that come next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from ddib_fed.names import CONFIG_VARIABLE
from ddib_fed.terminal import say

NODE_FILE: Final = "node.toml"
"""The configuration that operators' commands read without --config, in the current folder."""
MOST_LETTERS = 1000
SAME = "the same command again"
"""What stands for a command that is not known."""


def same_command(*more: str) -> str:
    """The running command with further options; in words where it is not known, or too long to be pasted.

    A shell writes a pattern such as `*.png` out before the command sees it.
    """
    context = click.get_current_context(silent=True)
    words = None if context is None else context.find_root().obj
    if isinstance(words, tuple):
        added = [word for word in more if word not in words]
        at = words.index("--") if "--" in words else len(words)
        line = shlex.join(["ddib", *words[:at], *added, *words[at:]])
        if len(line) <= MOST_LETTERS:
            return line
    return " ".join([SAME, *(["with", *more] if more else [])])


def with_config(path: Path) -> str:
    """` --config PATH` for another command about the same node; empty if that command finds the file by itself."""
    found = Path(os.environ.get(CONFIG_VARIABLE) or NODE_FILE)
    return "" if path == found else f" --config {shlex.quote(str(path))}"


def say_next(steps: Sequence[tuple[str, str]]) -> None:
    """Print the next commands, each on a line of its own with its purpose as a comment of the shell.

    Args:
        steps: At least one (command, purpose).
    """
    width = max(len(command) for command, _ in steps)
    say("next:")
    for command, purpose in steps:
        say(f"  {command.ljust(width)}   # {purpose}")
