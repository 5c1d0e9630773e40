"""`ddib calibrate`: the group and its options. Heavy imports wait until the command runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.calibrate import stored
from ddib_fed.cli.calibrate.asking import YES
from ddib_fed.cli.calibrate.publishing import publish
from ddib_fed.cli.help import group
from ddib_fed.cli.model_options import THREADS
from ddib_fed.cli.options import with_options
from ddib_fed.errors import UsageError

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_OF_PEER = ("peer", "existing", "yes", "config_path")
_NOT_OF_PEER = ("epsilon", "delta", "count", "without", "evaluations", "threads", "out")
WAYS = ("peer", "local", "evaluate")
_OF_EVALUATING = ("count", "without", "evaluations")
_OF_MAKING = ("kind", "epsilon", "delta", "days", "out")

_OPTIONS = (
    click.option(
        "--peer",
        metavar="INSTITUTION/DOMAIN",
        help="Agree with this peer, on the machine of your source node: fetch what its operator published, fit with "
        "your own --pictures, show, ask, sign, send.",
    ),
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
        "and B's; with --peer this node's. Default: the domains that ship under the models' names; with --peer what "
        "[train] of node.toml names.",
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
        help="With --local: differential privacy of each of B's pictures that the noise would give between nodes.",
    ),
    click.option(
        "--delta",
        type=click.FloatRange(1e-12, 1e-3),
        default=1e-5,
        show_default=True,
        help="Probability with which epsilon does not hold.",
    ),
    click.option(
        "--days",
        type=click.IntRange(1, 3650),
        default=180,
        show_default=True,
        help="Days until the calibration expires.",
    ),
    click.option(
        "--without",
        metavar="MODEL",
        help="With --evaluate, of a tone or colour-map: the source's model before it was trained with the map, for "
        "comparison; default: the one that ships.",
    ),
    click.option(
        "--count",
        type=click.IntRange(2),
        default=32,
        show_default=True,
        help="Largest number of pictures that --evaluate translates.",
    ),
    options.EVALUATIONS,
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of the noise, of the search's starts and of softening.",
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
    click.option(
        "--from",
        "existing",
        type=_FILE,
        metavar="FILE",
        help="With --peer: propose the map of this calibration, or of the one that ships by this name, with the "
        "figures that it has.",
    ),
    YES,
    options.CONFIG,
    options.FORMAT,
)


@group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@with_options(_OPTIONS)
@click.pass_context
def calibrate(context: click.Context, /, **given: Any) -> None:
    """Agree with a peer on how two domains correspond; evaluate such a calibration.

    Without a calibration the bridge pairs light with light and what varies most with what varies most. A calibration
    says which values correspond. It is a file of a few numbers, and it expires.

    A calibration that is no better than none, or whose best solution is hardly better than another one, is refused
    with its figures; --force uses it anyway.
    """
    asked = [name for name in WAYS if given.get(name)]
    of_peer = {name: given.pop(name) for name in _OF_PEER}
    if context.invoked_subcommand is not None:
        if asked:
            raise UsageError(
                f"--{asked[0]} does not belong before {context.invoked_subcommand}",
                hint=f"ddib calibrate {context.invoked_subcommand} --help",
            )
        return
    if len(asked) > 1 and "peer" in asked:
        raise UsageError(f"--peer and --{asked[1]} contradict each other", hint="run two commands")
    if of_peer["peer"] is not None:
        _with_peer(of_peer, given)
        return
    if asked:
        options.refuse_idle(_OF_PEER, "is for --peer", hint="leave it out")
    if given["evaluate"] is not None:
        _evaluate(given)
        return
    if given["local"] is not None:
        _local(given)
        return
    raise UsageError(
        "nothing to calibrate is named",
        hint="ddib calibrate --peer INSTITUTION/DOMAIN, --local A B, or --evaluate FILE; ddib calibrate --help",
    )


def _evaluate(given: Mapping[str, Any]) -> None:
    from ddib_fed.cli.calibrate.evaluating import evaluate

    options.refuse_idle(_OF_MAKING, "is for making a calibration, not for --evaluate", hint="leave it out")
    evaluate(**{name: value for name, value in given.items() if name not in _OF_MAKING})


def _local(given: Mapping[str, Any]) -> None:
    from ddib_fed.cli.calibrate.local import make

    options.refuse_idle(_OF_EVALUATING, "is for --evaluate", hint="leave it out")
    left_out = {"evaluate", *_OF_EVALUATING}
    make(**{name: value for name, value in given.items() if name not in left_out})


def _with_peer(of_peer: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """`--peer`."""
    from ddib_fed.cli.calibrate import peer

    options.refuse_idle(_NOT_OF_PEER, "is not for --peer", hint="leave it out; ddib calibrate --help")
    if len(given["pictures"]) > 1:
        raise UsageError("--peer takes one --pictures: this node's own", hint="leave the other one out")
    ways = [f"--{name}" for name in ("pictures", "anchors") if given[name]]
    ways += ["--from"] if of_peer["existing"] else []
    if len(ways) > 1:
        raise UsageError(f"{ways[0]} and {ways[1]} contradict each other", hint="leave one of them out")
    institution, domain = peer.split_peer(of_peer["peer"])
    asked = peer.Asked(
        institution,
        domain,
        given["kind"],
        given["pictures"][0] if given["pictures"] else None,
        given["anchors"],
        of_peer["existing"],
        given["days"],
        given["seed"],
        given["force"],
        of_peer["yes"],
    )
    peer.run(of_peer["config_path"], asked, given["output_format"])


for _command in (publish, stored.accept, stored.send, stored.list_, stored.show, stored.remove):
    calibrate.add_command(_command)
