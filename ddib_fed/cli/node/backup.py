"""`ddib backup` and `ddib restore`: a node's keys, peers, jobs and logs as one private file, and back."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.output import print_json
from ddib_fed.errors import UsageError
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.node.backup.record import BackupRecord


@command(epilog="\b\nExample:\n  ddib backup --config node.toml --out north-2026-11-26.tar")
@options.CONFIG
@options.FORMAT
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The backup; it is not overwritten.",
)
def backup(config_path: Path, output_format: str, out: Path) -> None:
    """Write a node's configuration and state to one file, while it runs.

    The file holds private keys, and pictures of jobs that wait: keep it as private as the state folder. The model is
    not in it.
    """
    from ddib_fed.node.backup.making import make_backup
    from ddib_fed.node.config import NodeConfig

    record = make_backup(NodeConfig.load(config_path), out)
    _show(record, output_format, f"wrote {out}, mode 0600: it holds private keys")


@command(
    epilog="\b\nExamples:\n  ddib restore north-2026-11-26.tar --out /srv/ddib\n"
    "  ddib restore north-2026-11-26.tar --check"
)
@options.FORMAT
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The node's folder; it must not be there, or be empty.",
)
@click.option("--check", is_flag=True, help="Only read the whole backup and compare it with its record.")
def restore(output_format: str, file: Path, out: Path | None, check: bool) -> None:
    """Make a node's folder from a backup, after checking every file of it.

    Stop the node that the backup is of for good first: two nodes of one identity would each do the same jobs. Jobs
    are as they were when the backup was made; what ended later is done again.
    """
    from ddib_fed.node.backup import restoring
    from ddib_fed.node.backup.checking import check_backup
    from ddib_fed.node.config import NodeConfig

    if check == (out is not None):
        raise UsageError("give --out DIR, or --check")
    if out is None:
        _show(check_backup(file), output_format, f"{file} is whole")
        return
    record = restoring.restore(file, out)
    _show(record, output_format, f"restored to {out}")
    if output_format != "json":
        place = out / "node.toml"
        missing = restoring.left_out(NodeConfig.load(place), record.model_sha256)
        say("next: put there what a backup does not hold:", *(f"        {each}" for each in missing))
        say(f"      then check and serve with {shlex.quote(str(place))}")


def _show(record: BackupRecord, output_format: str, done: str) -> None:
    if output_format == "json":
        print_json({**record.model_dump(exclude={"files"}), "files": len(record.files)})
        return
    say(done)
    say(f"node     {record.name}.{record.institution}, made {record.created} by release {record.release}")
    size = sum(each.size for each in record.files.values())
    say(f"holds    {len(record.files)} files of {size:,} bytes, {record.jobs} jobs")
    say(f"audit    head {record.audit_head or 'none'}")
