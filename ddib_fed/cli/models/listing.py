"""`ddib model list|get`: the models that ship with the package, and those of a node; without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.completing import shipped_models as completed
from ddib_fed.cli.help import command
from ddib_fed.cli.output import figures, print_ids, print_json, print_table
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.models.catalogue import Listed

SHOWN_DIGEST = 12


@command(
    "list",
    epilog="\b\nExamples:\n  ddib model list\n  ddib model list --config node.toml\n  ddib model list -q",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="List the models of this node, the configured one and those installed, instead of those that ship.",
)
@options.QUIET
@options.FORMAT
def list_(*, config_path: Path | None, quiet: bool, output_format: str) -> None:
    """List the models that ship with the package; with --config those of a node, and which is active.

    The name of a shipped model can be given wherever a command says that MODEL may be a shipped one; for tune, gate and
    thresholds copy it first: `ddib model get`.
    `ddib model activate` takes the digest of a node's model, or its first characters. Learned steps are the numbers of
    evaluations for which a model's steps were tuned (`--grid learned`).
    """
    if config_path is None:
        from ddib_fed.models.catalogue import shipped_models

        _print(shipped_models(), {}, quiet=quiet, output_format=output_format)
        return
    found, marks = _of_node(config_path)
    if not found and not quiet and output_format == "text":
        say("no model: ddib model install BUNDLE", err=True)
        return
    _print(found, marks, quiet=quiet, output_format=output_format, by_digest=True)


def _of_node(config_path: Path) -> tuple[tuple[Listed, ...], dict[str, list[str]]]:
    """The models of a node, and by digest whether one is active or configured."""
    from ddib_fed.models.catalogue import look
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.model import library

    config = NodeConfig.load(config_path)
    active, configured = library.active_digest(config), library.configured_digest(config)
    places = {configured: config.paths.bundle} if configured else {}
    for digest in library.installed(config):
        places.setdefault(digest, config.paths.models / digest)
    marks = {
        digest: ["active"] * (digest == active) + ["configured"] * (digest == configured) for digest in places
    }
    return tuple(look(place, str(place)) for place in places.values()), marks


def _print(
    found: tuple[Listed, ...],
    marks: dict[str, list[str]],
    *,
    quiet: bool,
    output_format: str,
    by_digest: bool = False,
) -> None:
    if quiet:
        print_ids([each.digest if by_digest else each.name for each in found], output_format)
    elif output_format == "json":
        print_json([_values(each, marks, of_node=by_digest) for each in found])
    else:
        columns = ["!name", "domain", "!samples", ">parameters", ">MB", "learned steps", "!digest"]
        rows = [_row(each) for each in found]
        if by_digest:
            columns.append("")
            rows = [[*row, ", ".join(marks[each.digest])] for row, each in zip(rows, found, strict=True)]
        print_table("", columns, rows)


def _values(each: Listed, marks: dict[str, list[str]], *, of_node: bool) -> dict[str, object]:
    values = figures(each)
    if of_node:
        values |= {mark: mark in marks[each.digest] for mark in ("active", "configured")}
    return values


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
@click.argument("name", shell_complete=completed)
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
