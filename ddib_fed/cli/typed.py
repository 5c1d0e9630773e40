"""The running command line as it can be pasted again, and its profile in the commands of a hint."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import click

MOST_LETTERS = 1000
SAME = "the same command again"
"""What stands for a command that is not known."""


def same_command(*more: str) -> str:
    """The running command with further options; in words where it is not known, or too long to be pasted."""
    context = click.get_current_context(silent=True)
    words = None if context is None else context.find_root().obj
    if isinstance(words, tuple):
        added = [word for word in more if word not in words]
        at = words.index("--") if "--" in words else len(words)
        line = shlex.join(["ddib", *words[:at], *added, *words[at:]])
        if len(line) <= MOST_LETTERS:
            return line
    return " ".join([SAME, *(["with", *more] if more else [])])


def with_profile(hint: str, words: Sequence[str]) -> str:
    """A hint whose commands for clients name the profile that the command line has."""
    profile = _profile(words)
    if profile is None:
        return hint
    named = f" --profile {shlex.quote(profile)}"
    return _FOR_CLIENTS.sub(lambda found: f"{found[0]}{named}", hint)


_FOR_CLIENTS = re.compile(
    r"\bddib (?:domains|doctor|job (?:list|show|watch|fetch|cancel|delete))\b"
    r"(?!(?:(?!\bddib ).)*--(?:profile|help)\b)"
)
"""A command that takes --profile, and has none before the end of the line or the next command."""


def _profile(words: Sequence[str]) -> str | None:
    """The value of --profile on a command line."""
    options = words[: words.index("--")] if "--" in words else words
    for at, word in enumerate(options):
        if word.startswith("--profile="):
            return word.partition("=")[2]
        if word == "--profile" and at + 1 < len(options):
            return options[at + 1]
    return None
