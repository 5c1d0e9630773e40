"""`ddib audit verify`: verifies the chain of the node's audit log and prints its last digest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.cli.output import print_json
from ddib_fed.errors import ChunkCorrupt, FileMissing
from ddib_fed.terminal import say


@click.group()
def audit() -> None:
    """Verify the chain of the node's audit log."""


@audit.command(epilog="\b\nExample:\n  ddib audit verify --config node.toml --head 3f5a...")
@options.CONFIG
@click.option(
    "--head",
    metavar="DIGEST",
    help="A head noted earlier: the log must still contain the line with this digest.",
)
@options.FORMAT
def verify(config_path: Path, head: str | None, output_format: str) -> None:
    """Read the whole log, follow its chain, and print its head.

    The chain detects lines that were changed, removed or inserted. It cannot detect that the end was cut off, or that
    the file was rewritten: keep the head elsewhere, and pass it with --head the next time.
    """
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust import audit as log

    path = NodeConfig.load(config_path).paths.audit
    try:
        found = log.verify(path, noted=head)
    except FileNotFoundError as error:
        raise FileMissing(f"there is no {path}", hint="a node writes it when it serves") from error
    if output_format == "json":
        print_json({"path": path, "ok": found.ok, **dataclasses.asdict(found)})
    else:
        say(f"lines  {found.lines}")
        say(f"head   {found.head}")
        if found.torn_bytes:
            say(f"torn   {found.torn_bytes} bytes of a write interrupted by a crash")
    if not found.ok:
        where = "" if found.broken_line is None else f", line {found.broken_line}"
        raise ChunkCorrupt(
            f"{path}{where}: {found.problem}",
            hint="keep the file unchanged, and find out who could write to it",
        )
