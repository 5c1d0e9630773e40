"""The running command line as it can be pasted again."""

from __future__ import annotations

import shlex

import click

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
