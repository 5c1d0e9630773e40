"""`ddib calibrate`: the group and its options. Heavy imports wait until the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.models.picture_options import THREADS
from ddib_fed.cli.options import with_options
from ddib_fed.errors import UsageError

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
WAYS = ("peer", "local", "evaluate")

_OPTIONS = (
    click.option(
        "--local",
        nargs=2,
        metavar="A B",
        help="Calibrate model A to model B in this process. Each is a model that ships, by name, or a model's folder.",
    ),
    click.option(
        "--evaluate",
        type=_FILE,
        metavar="FILE",
        help="Measure a calibration: with --local between these two models, without it between the models that ship "
        "for its two domains.",
    ),
    click.option(
        "--kind",
        type=click.Choice(["rotation", "tone", "colour-map"]),
        default="rotation",
        show_default=True,
        help="rotation: an orthogonal change of the channels, used as it is. tone (grey) and colour-map: a curve or "
        "map of values, for which the source's model is trained again.",
    ),
    click.option(
        "--pictures",
        multiple=True,
        metavar="FOLDER",
        help="Pictures of a domain, unpaired: a folder, or the name of a domain that ships; with --local twice, A's "
        "and B's. Default: the domains that ship under the models' names.",
    ),
    click.option(
        "--anchors",
        nargs=2,
        type=_FOLDER,
        metavar="A_DIR B_DIR",
        help="Pictures of the same things in both domains, by the same file names: a phantom, a travelling subject, a "
        "public area. The calibration is fitted to them; with --evaluate they are its truth.",
    ),
    click.option(
        "--epsilon",
        type=click.FloatRange(0.01, 8),
        default=1.0,
        show_default=True,
        help="Differential privacy of each of B's pictures in the noised aggregate.",
    ),
    click.option(
        "--delta",
        type=click.FloatRange(1e-12, 1e-3),
        default=1e-5,
        show_default=True,
        help="The same: probability with which epsilon does not hold.",
    ),
    click.option(
        "--days",
        type=click.IntRange(1, 3650),
        default=180,
        show_default=True,
        help="Days until the calibration expires.",
    ),
    click.option(
        "--count",
        type=click.IntRange(2),
        default=32,
        show_default=True,
        help="Most pictures that --evaluate translates.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Of the noise, of the search's starts and of softening.",
    ),
    THREADS,
    click.option(
        "--out",
        type=_FILE,
        default=Path("calibration.json"),
        show_default=True,
        metavar="FILE",
        help="The calibration; an existing file is never overwritten.",
    ),
    click.option(
        "--force", is_flag=True, help="Write, or accept, a calibration that is refused for its figures."
    ),
    options.FORMAT,
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@with_options(_OPTIONS)
@click.pass_context
def calibrate(context: click.Context, /, **given: Any) -> None:
    """Agree with a peer on how two domains correspond; evaluate such a calibration.

    Without a calibration the bridge pairs light with light and what varies most with what varies most. A calibration
    says which values correspond. It is a file of a few numbers, which expires.

    A calibration that is no better than none, or whose best solution is hardly better than another one, is refused
    with its figures; --force takes it nevertheless.
    """
    asked = [name for name in WAYS if given.get(name)]
    if context.invoked_subcommand is not None:
        if asked:
            raise UsageError(
                f"--{asked[0]} does not belong before {context.invoked_subcommand}",
                hint=f"ddib calibrate {context.invoked_subcommand} --help",
            )
        return
    raise UsageError(
        "nothing to calibrate is named",
        hint="ddib calibrate --local A B, or --evaluate FILE; ddib calibrate --help",
    )
