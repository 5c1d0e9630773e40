"""`ddib calibrate publish`: what a target lets its peers know about its pictures, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.calibrate.asking import YES, confirmed
from ddib_fed.cli.help import command
from ddib_fed.cli.output import print_json
from ddib_fed.errors import AlreadyExists
from ddib_fed.terminal import console, say

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.aggregates import Aggregate
    from ddib_fed.node.config import NodeConfig


@command(
    short_help="Publish a noised histogram for peers.",
    epilog="\b\nExample:\n  ddib calibrate publish --pictures pictures --config south/node.toml",
)
@options.CONFIG
@click.option(
    "--pictures",
    metavar="FOLDER",
    help="This node's pictures: a folder, or the name of a domain that ships. Default: what [train] of "
    "node.toml names, else the domain that ships under the model's domain.",
)
@click.option(
    "--epsilon",
    type=click.FloatRange(0.01, 8),
    default=1.0,
    show_default=True,
    help="Differential privacy of each picture, or of each group of --group-by.",
)
@click.option(
    "--delta",
    type=click.FloatRange(1e-12, 1e-3),
    default=1e-5,
    show_default=True,
    help="Probability with which epsilon does not hold.",
)
@click.option(
    "--at-most",
    type=click.IntRange(200, 1_000_000),
    default=4_000,
    show_default=True,
    metavar="N",
    help="Count at most this many pictures or groups, evenly spaced by their names.",
)
@click.option(
    "--group-by",
    metavar="folder|PATTERN",
    help="What is protected as one: all pictures of one first folder below FOLDER, or of one name that a regular "
    "expression finds in their paths, as 'patient-[0-9]+'. Without it epsilon is for one picture alone.",
)
@click.option(
    "--again",
    is_flag=True,
    help="Replace what is published. The noise is drawn again, which costs epsilon once more if pictures are the same.",
)
@YES
@options.FORMAT
def publish(
    config_path: Path,
    pictures: str | None,
    epsilon: float,
    delta: float,
    at_most: int,
    group_by: str | None,
    again: bool,
    yes: bool,
    output_format: str,
) -> None:
    """Publish one noised histogram of this target's pictures for peers that calibrate.

    It shows what would leave and asks. Admitted peers get it only while [policy] calibration lists a kind.
    """
    from ddib_fed.node.calibration import agreeing
    from ddib_fed.node.calibration.published import publications, spent
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.model import load_hosted
    from ddib_fed.runs.calibration.pictures import count_pictures

    config = NodeConfig.load(config_path)
    agreeing.require_role(config, "target", "ddib calibrate publish")
    if config.paths.aggregate.exists() and not again:
        raise AlreadyExists(
            f"an aggregate is published already ({config.paths.aggregate}); another draw of its noise costs epsilon "
            "again",
            hint="keep it; or add --again, e.g. because the pictures or the model have changed",
        )
    bundle = load_hosted(config)
    which = pictures or config.train.pictures(config.folder)
    with console(stderr=True).status("counting pictures"):
        counted = count_pictures(bundle, which, epsilon=epsilon, at_most=at_most, group_by=group_by)
    aggregate = replace(counted, domain=config.model.domain).noised(epsilon, delta)
    before = publications(config)
    said = [*aggregate.describe().split("\n"), *counted.notes]
    if before:
        said.append(f"together     {spent([*before, aggregate])}, with what was published before")
    say(*said, err=output_format == "json")
    confirmed("May admitted peers have this?", yes=yes)
    agreeing.publish(config, aggregate, again=again)
    _show_published(config, config_path, aggregate, output_format)


def _show_published(config: NodeConfig, path: Path, aggregate: Aggregate, output_format: str) -> None:
    if output_format == "json":
        content = aggregate.model_dump(mode="json", exclude={"counts"})
        print_json({"sha256": aggregate.sha256, "bytes": len(aggregate.canonical), **content})
        return
    say(f"published    {config.paths.aggregate}; the noise was drawn once, every peer gets the same bytes")
    if not config.policy.calibration:
        say(f'nobody gets it yet: [policy] calibration = ["rotation"] in {path}, then restart the node')
