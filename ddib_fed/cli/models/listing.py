"""`ddib model list|get`: the models that ship with the package; without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.cli.output import figures, print_ids, print_json, print_table
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.models.catalogue import Listed

SHOWN_DIGEST = 12


@command("list", epilog="\b\nExamples:\n  ddib model list\n  ddib model list -q")
@options.QUIET
@options.FORMAT
def list_(*, quiet: bool, output_format: str) -> None:
    """List the models that ship with the package.

    The name of a shipped model can be given wherever a command says that MODEL may be a shipped one; for tune, gate and
    thresholds copy it first: `ddib model get`. Learned steps are the numbers of evaluations for which a model's steps
    were tuned (`--grid learned`).
    """
    from ddib_fed.models.catalogue import shipped_models

    found = shipped_models()
    if quiet:
        print_ids([each.name for each in found], output_format)
    elif output_format == "json":
        print_json([figures(each) for each in found])
    else:
        columns = ["!name", "domain", "!samples", ">parameters", ">MB", "learned steps", "!digest"]
        print_table("", columns, [_row(each) for each in found])


def _row(each: Listed) -> list[str]:
    return [
        each.name,
        each.domain,
        f"{each.kind} {'x'.join(map(str, each.shape))}",
        f"{each.parameters:,}",
        f"{each.size_bytes / 1e6:.1f}",
        " ".join(map(str, each.evaluations)) or "-",
        each.digest[:SHOWN_DIGEST],
    ]


@command(epilog="\b\nExample:\n  ddib model get satellite --out models/satellite")
@click.argument("name")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The folder of the copy; it appears whole or not at all.",
)
@click.option("--force", is_flag=True, help="Replace the model in --out.")
@options.FORMAT
def get(*, name: str, out: Path, force: bool, output_format: str) -> None:
    """Copy a model that ships with the package to a folder of your own, e.g. to tune it or to serve it."""
    from ddib_fed.models.catalogue import copy_shipped

    made = copy_shipped(name, out, overwrite=force)
    if output_format == "json":
        print_json({"out": out, **figures(made)})
        return
    say(f"{out}: {made.name}, {made.size_bytes / 1e6:.1f} MB, digest {made.digest[:SHOWN_DIGEST]}")
