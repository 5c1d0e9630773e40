"""`ddib calibrate accept|send|list|show|remove`: the calibrations of this node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.calibrate_showing import YES, confirmed, how_jobs_use, show_calibration
from ddib_fed.cli.help import command, group
from ddib_fed.cli.output import moment, outcome, print_json, print_table
from ddib_fed.errors import RefusedError, UsageError
from ddib_fed.terminal import console, say

if TYPE_CHECKING:
    from ddib_fed.calibration.signed import CalibrationStore, Side, SignedCalibration
    from ddib_fed.node.calibrations import Publication
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
    help="Differential privacy of each picture, or of each group of --group-by, at a delta of 1e-5.",
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
    at_most: int,
    group_by: str | None,
    again: bool,
    yes: bool,
    output_format: str,
) -> None:
    """Publish one noised histogram of this target's pictures for peers that calibrate.

    It shows what would leave and asks. Admitted peers get it only while [policy] calibration lists a kind.
    """
    from ddib_fed.calibration.aggregate import DELTA
    from ddib_fed.node import calibrations
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.model import load_hosted
    from ddib_fed.training.calibrating import count_pictures

    config = NodeConfig.load(config_path)
    calibrations.require_role(config, "target", "ddib calibrate publish")
    calibrations.refuse_second(config, again=again)
    bundle = load_hosted(config)
    which = pictures or config.train.pictures(config.folder)
    with console(stderr=True).status("counting pictures"):
        counted = count_pictures(bundle, which, epsilon=epsilon, at_most=at_most, group_by=group_by)
    aggregate = replace(counted, domain=config.model.domain).noised(epsilon, DELTA)
    before = calibrations.publications(config)
    said = [*aggregate.describe().split("\n"), *counted.notes]
    if before:
        said.append(
            f"together     {calibrations.total_privacy([*before, aggregate])}, with what was published before"
        )
    say(*said, err=output_format == "json")
    confirmed("May admitted peers have this?", yes=yes)
    calibrations.publish(config, aggregate, again=again)
    if output_format == "json":
        content = aggregate.model_dump(mode="json", exclude={"counts"})
        print_json({"sha256": aggregate.sha256, "bytes": len(aggregate.canonical), **content})
        return
    say(f"published    {config.paths.aggregate}; the noise was drawn once, every peer gets the same bytes")
    if not config.policy.calibration:
        say(
            f'nobody gets it yet: [policy] calibration = ["rotation"] in {config_path}, then restart the node'
        )


NAME = click.argument("name", metavar="DIGEST")


def _open(config_path: Path) -> tuple[NodeConfig, CalibrationStore]:
    from ddib_fed.calibration.signed import CalibrationStore
    from ddib_fed.node.config import NodeConfig

    config = NodeConfig.load(config_path)
    return config, CalibrationStore(config.paths.calibrations)


@command(
    short_help="Sign what a peer proposed to this target.",
    epilog="\b\nExample:\n  ddib calibrate accept 1f3b5c7d9e0a --config south/node.toml",
)
@options.CONFIG
@NAME
@click.option("--force", is_flag=True, help="Also if its figures are refused.")
@YES
@options.OUTCOME
def accept(config_path: Path, name: str, force: bool, yes: bool) -> None:
    """Sign a calibration that a peer has proposed to this target.

    DIGEST is its SHA-256, or the first 8 or more digits. The source's signature, the units of this node's model, the
    aggregate that it published, and the policy are checked first. The figures are those that the source measured.
    """
    from ddib_fed.node import calibrations

    config, store = _open(config_path)
    stored = store.named(name)
    show_calibration(stored.calibration)
    if not force:
        calibrations.refuse_doubtful(stored.calibration)
    confirmed("Sign this calibration?", yes=yes)
    signed = calibrations.accept(config, stored, now=datetime.now(UTC), force=force)
    source = signed.calibration.source.institution
    say(
        f"signed       {signed.sha256.hex()[:12]}; {source} fetches the signature:",
        f"  ddib calibrate send {signed.sha256.hex()[:12]} --config node.toml",
    )
    outcome(signed=signed.sha256, source=source)


@command(
    short_help="Send a proposal again; fetch the signature.",
    epilog="\b\nExample:\n  ddib calibrate send 1f3b5c7d9e0a --config north/node.toml",
)
@options.CONFIG
@NAME
@options.OUTCOME
def send(config_path: Path, name: str) -> None:
    """Send a proposed calibration to its target again, and store the target's signature when it comes."""
    from ddib_fed.node import calibrations
    from ddib_fed.node.calibration_peer import CalibrationPeer

    config, store = _open(config_path)
    calibration = store.named(name).calibration
    calibrations.require_role(config, "source", "ddib calibrate send")
    with CalibrationPeer(config, calibration.target.institution, calibration.target.domain) as peer:
        signed = calibrations.send(config, calibration, peer, now=datetime.now(UTC))
    short, target = signed.short, calibration.target.institution
    if signed.complete:
        say(f"agreed       both institutions have signed {short}", *how_jobs_use(signed.calibration, config))
    else:
        say(f"proposed     {short} still waits for the operator of {target}: ddib calibrate accept {short}")
    outcome(sha256=signed.sha256, target=target, agreed=signed.complete)


@command(name="list", short_help="List those of this node.")
@options.CONFIG
@options.FORMAT
def list_(config_path: Path, output_format: str) -> None:
    """List the calibrations of this node, the newest first."""
    from ddib_fed.node.calibrations import publications

    config, store = _open(config_path)
    now, found, published = datetime.now(UTC), store.list(), publications(config)
    if output_format == "json":
        print_json({"calibrations": [_row(stored, now) for stored in found], "published": published})
    elif found:
        rows = [list(_row(stored, now).values()) for stored in found]
        print_table(
            "",
            ["!calibration", "kind", "from, to", "state", "expires"],
            [
                [sha256[:12], kind, f"{source} to {target}", state, expires[:10]]
                for sha256, kind, source, target, state, expires in rows
            ],
        )
    else:
        say("no calibrations yet: ddib calibrate --peer INSTITUTION/DOMAIN")
    if published and output_format != "json":
        _list_published(published)
    for problem in store.problems():
        say(f"not read: {problem}", err=True)


def _list_published(published: Sequence[Publication]) -> None:
    """What this node has published, to whom it went, and what it costs together."""
    from ddib_fed.node.calibrations import total_privacy

    say()
    rows = [
        [
            each.sha256[:12],
            each.time[:10],
            f"{each.counted} {each.unit}s",
            f"{each.epsilon:g}",
            f"{each.delta:g}",
            ", ".join(each.peers) or "none",
        ]
        for each in published
    ]
    print_table("", ["!aggregate", "published", "over", ">epsilon", ">delta", "peers that have it"], rows)
    say(f"together     {total_privacy(published)}, also if the peers compare what they have")


def _row(stored: SignedCalibration, now: datetime) -> dict[str, str]:
    calibration = stored.calibration
    return {
        "sha256": stored.sha256.hex(),
        "kind": calibration.kind,
        "source": f"{calibration.source.institution}/{calibration.source.domain}",
        "target": f"{calibration.target.institution}/{calibration.target.domain}",
        "state": stored.state(now),
        "expires": moment(calibration.expires.timestamp()) or "",
    }


@command(
    short_help="Show one, and verify its signatures.",
    epilog="\b\nExample:\n  ddib calibrate show 1f3b5c7d9e0a --out calibration.json",
)
@options.CONFIG
@options.FORMAT
@NAME
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write it with its signatures, e.g. for `ddib model train --calibration`; an existing file is kept.",
)
def show(config_path: Path, output_format: str, name: str, out: Path | None) -> None:
    """Show a calibration of this node, and verify its signatures."""
    from ddib_fed.calibration.signed import SIDES
    from ddib_fed.files import write_file
    from ddib_fed.node.calibrations import publications, total_privacy

    config, store = _open(config_path)
    stored, now = store.named(name), datetime.now(UTC)
    if out is not None:
        write_file(out, stored.model_dump_json(indent=2, exclude_none=True).encode() + b"\n", overwrite=False)
    checked = {side: _checked(config, stored, side, now) for side in SIDES}
    if output_format == "json":
        content = stored.calibration.model_dump(mode="json", exclude_none=True)
        print_json({**_row(stored, now), "signatures": checked, "calibration": content})
        return
    show_calibration(stored.calibration)
    say(f"state        {stored.state(now)}, here since {stored.added:%Y-%m-%d %H:%M} UTC")
    if published := publications(config):
        say(f"published    {total_privacy(published)}")
    for side, text in checked.items():
        say(f"signed       {side}: {text}")
    if out is not None:
        say(f"written      {out}")


def _checked(config: NodeConfig, signed: SignedCalibration, side: Side, now: datetime) -> str:
    """Who signed for a side and when, or what is wrong with the signature."""
    from ddib_fed.node.admitting import peer_store

    peers = peer_store(config).snapshot()
    try:
        signer = signed.verify_side(side, pins=peers.pins, withdrawn=peers.withdrawn, now=now)
    except RefusedError as error:
        return f"{error.detail}  [{error.reason}]"
    signature = signed.source if side == "source" else signed.target
    assert signature is not None
    return f"{signer}, {signature.moment:%Y-%m-%d %H:%M} UTC"


@command(short_help="Stop using one.")
@options.CONFIG
@NAME
@click.option("--forget", is_flag=True, help="Delete its file too; the peer may then propose it again.")
@options.OUTCOME
def remove(config_path: Path, name: str, forget: bool) -> None:
    """Stop using a calibration; new contracts with it are refused at once.

    It is kept, so that results made with it can be explained, and the peer cannot bring it back.
    """
    from ddib_fed.node import calibrations

    config, store = _open(config_path)
    stored = store.named(name)
    calibrations.take_out_of_use(config, stored, forget=forget)
    say(f"{stored.sha256.hex()[:12]} is no longer used, without a restart")
    outcome(removed=stored.sha256, forgotten=forget)


_FILE = click.Path(dir_okay=False, path_type=Path)
WAYS = ("peer", "evaluate", "local")
_IDLE = {
    "peer": ("epsilon", "evaluations", "threads", "out"),
    "evaluate": ("kind", "epsilon", "days", "out", "existing", "yes", "config_path"),
    "local": ("evaluations", "existing", "yes", "config_path"),
}
"""Options that say nothing of a way to use this command."""


@group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--peer",
    metavar="INSTITUTION/DOMAIN",
    help="Agree with this peer, on the machine of your source node: fetch what its operator published, fit with "
    "your own --pictures, show, ask, sign, send.",
)
@click.option(
    "--local",
    nargs=2,
    metavar="A B",
    help="Calibrate model A to model B in this process. Each is a model that ships, by name, or a model's folder.",
)
@click.option(
    "--evaluate",
    type=_FILE,
    metavar="FILE",
    help="Measure a calibration: with --local between these two models, without it between the models that ship "
    "for its two domains.",
)
@click.option(
    "--kind",
    type=click.Choice(["rotation", "tone", "colour-map"]),
    default="rotation",
    show_default=True,
    help="rotation: an orthogonal change of the channels, used as it is. tone (grey) and colour-map: a curve or "
    "map of values, for which the source's model is trained again.",
)
@click.option(
    "--pictures",
    multiple=True,
    metavar="FOLDER",
    help="Pictures of a domain, unpaired: a folder, or the name of a domain that ships; with --local twice, A's "
    "and B's; with --peer this node's. Default: the domains that ship under the models' names; with --peer what "
    "[train] of node.toml names.",
)
@click.option(
    "--anchors",
    nargs=2,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="A_DIR B_DIR",
    help="Pictures of the same things in both domains, by the same file names: a phantom, a travelling subject, a "
    "public area. The calibration is fitted to them; with --evaluate they are its truth.",
)
@click.option(
    "--epsilon",
    type=click.FloatRange(0.01, 8),
    default=1.0,
    show_default=True,
    help="With --local: differential privacy of each of B's pictures that the noise would give between nodes.",
)
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=180,
    show_default=True,
    help="Days until the calibration expires.",
)
@options.EVALUATIONS
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the noise, of the search's starts and of softening.",
)
@options.THREADS
@click.option(
    "--out",
    type=_FILE,
    default=Path("calibration.json"),
    show_default=True,
    metavar="FILE",
    help="The calibration; an existing file is never overwritten.",
)
@click.option(
    "--force", is_flag=True, help="Write, or accept, a calibration that is refused for its figures."
)
@click.option(
    "--from",
    "existing",
    type=_FILE,
    metavar="FILE",
    help="With --peer: propose the map of this calibration, or of the one that ships by this name, with the "
    "figures that it has.",
)
@YES
@options.CONFIG
@options.FORMAT
@click.pass_context
def calibrate(
    context: click.Context,
    /,
    *,
    peer: str | None,
    local: tuple[str, str] | None,
    evaluate: Path | None,
    epsilon: float,
    evaluations: int,
    threads: int,
    out: Path,
    existing: Path | None,
    yes: bool,
    config_path: Path,
    output_format: str,
    **given: Any,
) -> None:
    """Agree with a peer on how two domains correspond; evaluate such a calibration.

    Without a calibration the bridge pairs light with light and what varies most with what varies most. A calibration
    says which values correspond. It is a file of a few numbers, and it expires.

    A calibration that is no better than none, or whose best solution is hardly better than another one, is refused
    with its figures; --force uses it anyway.
    """
    ways = [name for name in WAYS if context.params.get(name)]
    if context.invoked_subcommand is not None:
        if ways:
            raise UsageError(
                f"--{ways[0]} does not belong before {context.invoked_subcommand}",
                hint=f"ddib calibrate {context.invoked_subcommand} --help",
            )
        return
    if not ways:
        raise UsageError(
            "nothing to calibrate is named",
            hint="ddib calibrate --peer INSTITUTION/DOMAIN, --local A B, or --evaluate FILE; ddib calibrate --help",
        )
    if len(ways) > 1 and ways[0] == "peer":
        raise UsageError(f"--peer and --{ways[1]} contradict each other", hint="run two commands")
    options.refuse_idle(_IDLE[ways[0]], f"is not for --{ways[0]}", hint="leave it out; ddib calibrate --help")
    if peer is not None:
        if len(given["pictures"]) > 1:
            raise UsageError("--peer takes one --pictures: this node's own", hint="leave the other one out")
        named = {"pictures": given["pictures"], "anchors": given["anchors"], "from": existing}
        sources = [f"--{name}" for name, value in named.items() if value]
        if len(sources) > 1:
            raise UsageError(
                f"{sources[0]} and {sources[1]} contradict each other", hint="leave one of them out"
            )
    from ddib_fed.cli import calibrate_making as making

    if peer is not None:
        asked = making.Asked(**given)
        making.agree(asked, peer, config_path, existing=existing, yes=yes, output_format=output_format)
    elif evaluate is not None:
        shared = {name: given[name] for name in ("pictures", "anchors", "seed", "force")}
        making.evaluate(
            evaluate, local, evaluations=evaluations, threads=threads, output_format=output_format, **shared
        )
    elif local is not None:
        asked = making.Asked(**given)
        making.make(asked, local, epsilon=epsilon, threads=threads, out=out, output_format=output_format)


for _command in (publish, accept, send, list_, show, remove):
    calibrate.add_command(_command)
