"""`ddib pki withdraw|reinstate|withdrawn`: identities that this node refuses.

A successful command prints when the node applies the change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.output import print_json, print_table
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust.identity import Identity

IDENTITY = click.argument("identity", metavar="IDENTITY")


@command(
    epilog="\b\nExample:\n  ddib pki withdraw spiffe://north.example/client/alice --comment 'laptop lost'"
)
@options.CONFIG
@options.FORMAT
@click.option("--comment", default="", metavar="TEXT", help="Reason, for the list; default: the date.")
@IDENTITY
def withdraw(config_path: Path, output_format: str, comment: str, identity: str) -> None:
    """Refuse a client or node of this institution although its certificate is valid, e.g. because its key was lost.

    The node refuses its next call and renewals, and issues it no certificate. Each node of the institution has its
    own list: run this on each.
    """
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust import withdrawn as lists
    from ddib_fed.trust.audit.log import note

    config = NodeConfig.load(config_path)
    named = _of_institution(config, identity)
    changed = lists.withdraw(
        config.paths.pki,
        named,
        comment=comment,
        before=lambda: note(config.paths.audit, "identity_withdrawn", identity=named.uri, comment=comment),
    )
    _report(config, named, output_format, changed=changed, withdrawn=True)


@command(epilog="\b\nExample:\n  ddib pki reinstate spiffe://north.example/client/alice")
@options.CONFIG
@options.FORMAT
@IDENTITY
def reinstate(config_path: Path, output_format: str, identity: str) -> None:
    """Reinstate an identity that was withdrawn on this node; its line in the list becomes a comment."""
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust import withdrawn as lists
    from ddib_fed.trust.audit.log import note

    config = NodeConfig.load(config_path)
    named = _of_institution(config, identity)
    changed = lists.reinstate(
        config.paths.pki,
        named,
        before=lambda: note(config.paths.audit, "identity_reinstated", identity=named.uri),
    )
    _report(config, named, output_format, changed=changed, withdrawn=False)


@command()
@options.CONFIG
@options.FORMAT
def withdrawn(config_path: Path, output_format: str) -> None:
    """List the identities that are withdrawn on this node."""
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust import withdrawn as lists

    folder = NodeConfig.load(config_path).paths.pki
    entries = lists.load_withdrawn(folder).entries
    if output_format == "json":
        print_json([{"identity": entry.identity.uri, "comment": entry.comment} for entry in entries])
    elif entries:
        rows = [[entry.identity.uri, entry.comment] for entry in entries]
        print_table("", ["withdrawn", "comment"], rows)
    else:
        say("nobody is withdrawn on this node: ddib pki withdraw IDENTITY")


def _of_institution(config: NodeConfig, text: str) -> Identity:
    """The identity, if this node's list can refuse it."""
    from ddib_fed.errors import InputError, PolicyDenied
    from ddib_fed.trust.identity import Identity

    institution = config.node.institution
    try:
        named = Identity.parse(text)
    except InputError as error:
        raise InputError(
            f"{text!a} is no identity: {error.detail}",
            hint=f"e.g. spiffe://{institution}/client/alice; `ddib pki show` prints a certificate's own",
        ) from error
    if named.institution != institution:
        raise PolicyDenied(
            f"{named} is not of {institution}, and a node withdraws identities of its own institution",
            hint=f"to refuse another institution's node: ddib peer remove {named.institution}, or ddib peer suspend",
        )
    return named


def _report(
    config: NodeConfig, identity: Identity, output_format: str, *, changed: bool, withdrawn: bool
) -> None:
    """Report what was done, when the node applies it, and where else to run the command."""
    from ddib_fed.trust.withdrawn import WITHDRAWN

    file = config.paths.pki / WITHDRAWN
    running = _obeyed(config)
    if output_format == "json":
        obeyed = ("now" if withdrawn else "in 2 seconds") if running else "at start"
        print_json(
            {
                "identity": identity.uri,
                "withdrawn": withdrawn,
                "changed": changed,
                "file": str(file),
                "node_running": running,
                "obeyed": obeyed,
            }
        )
        return
    if not changed and not withdrawn:
        say(f"{identity} was not withdrawn, in {file}: nothing is changed")
        return
    done = "withdrawn" if withdrawn else "reinstated"
    say(f"{identity} is {done} in {file}" if changed else f"{identity} was {done} already, in {file}")
    if not running:
        say("no node runs on this state now; it obeys the list from its start")
    elif withdrawn:
        say("the running node refuses it from now on, renewals too; its open calls are ended")
    else:
        say("the running node lets it in again within 2 seconds")
    say(f"do the same on each other node of {identity.institution}: each has a list of its own")
    if withdrawn and identity.kind == "node":
        say(f"and tell the peers that admitted it: ddib peer remove {identity.institution}, there")


def _obeyed(config: NodeConfig) -> bool:
    """Make the node on this state folder read the list now; returns whether one runs."""
    from ddib_fed.errors import InputError
    from ddib_fed.node.running.admin import AdminClient
    from ddib_fed.trust.withdrawn import WITHDRAWN

    lines = AdminClient(config).reload_if_running()
    if lines is None:
        return False
    refused = [line for line in lines if line.startswith("not read:") and WITHDRAWN in line]
    if refused:
        raise InputError(
            f"the list is written, and the running node does not obey it: {refused[0]}",
            hint="run this as the node's own user, and let the file belong to that user",
        )
    return True
