"""Asks the operator before something leaves or is signed."""

from __future__ import annotations

import sys

import click

from ddib_fed.errors import Cancelled, UsageError

YES = click.option("--yes", is_flag=True, help="Do not ask; what would leave is still shown.")


def confirmed(question: str, *, yes: bool) -> None:
    """Return if the operator agrees."""
    if yes:
        return
    from ddib_fed.node.admitting import confirm

    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint="look at what is shown above, then add --yes")
    if not confirm(question):
        raise Cancelled("not confirmed; nothing left and nothing was signed", hint="the same command again")
