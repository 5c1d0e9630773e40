"""`ddib pair`: two operators admit each other's nodes with a code that one reads to the other."""

from __future__ import annotations

from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.next_commands import say_next, with_config
from ddib_fed.cli.output import outcome
from ddib_fed.errors import UsageError


@command(
    epilog="\b\nExamples:\n  ddib pair --listen\n  ddib pair west.example:7444 482-173-063   (on the other side)"
)
@options.CONFIG
@click.argument("address", required=False, metavar="HOST:PORT")
@click.argument("code", required=False)
@click.option("--listen", "listens", is_flag=True, help="Show a code, and wait for the other side.")
@click.option(
    "--at",
    metavar="HOST:PORT",
    help="With --listen: address to bind; default: node.listen, which must be free.",
)
@click.option("--expect", metavar="INSTITUTION", help="Admit only this institution.")
@click.option("--replace", is_flag=True, help="Replace the entry: a new root, name or address of a peer.")
@click.option("--unconstrained-root", is_flag=True, help="Accept a root without name constraints.")
@options.OUTCOME
def pair(
    config_path: Path,
    address: str | None,
    code: str | None,
    listens: bool,
    at: str | None,
    expect: str | None,
    replace: bool,
    unconstrained_root: bool,
) -> None:
    """Admit another institution's node, and be admitted there, with a code read out by telephone.

    One side runs `ddib pair --listen`, which shows an address and a code; the other `ddib pair HOST:PORT CODE`. The two
    commands exchange the peer files over a connection that the code protects. A code is valid for one try within 5
    minutes: somebody between the two sides can guess once, with a chance of one in 100 million. Both sides show whom
    they admitted, and both fingerprints. Read the code out to somebody whose voice you know.
    """
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.pairing import PairOptions, pair_dialling, pair_listening

    if listens == (address is not None):
        raise UsageError("give --listen, or the address and the code that the other side shows")
    if address is not None and code is None:
        raise UsageError("the code is missing", hint=f"ddib pair {address} CODE, as the other side shows it")
    if at is not None and not listens:
        raise UsageError("--at is for --listen")
    config = NodeConfig.load(config_path)
    settings = PairOptions(expect, replace=replace, unconstrained_root=unconstrained_root)
    if address is None or code is None:
        paired = pair_listening(config, at=at, options=settings)
    else:
        paired = pair_dialling(config, address, code, options=settings)
    other, more = paired.other, with_config(config_path)
    say_next(
        [
            (f"{config.command} serve{more}", "unless it runs already"),
            (f"ddib peer test {other.institution}{more}", "once the other node serves too"),
        ]
    )
    outcome(admitted=other.institution, identity=other.identity.uri, address=other.address)
