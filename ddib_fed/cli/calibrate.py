"""`ddib calibrate`: agrees with a peer on how two domains correspond; the calibrations of this node."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.calibrate_showing import confirmed, how_jobs_use, show_calibration, side_name
from ddib_fed.cli.options import group, option
from ddib_fed.errors import RefusedError, UsageError
from ddib_fed.terminal import console, emit, moment, outcome, print_table, say

if TYPE_CHECKING:
    from ddib_fed.calibration.signed import CalibrationStore, Side, SignedCalibration
    from ddib_fed.node.config import NodeConfig

NAME = click.argument("name", metavar="DIGEST")
YES = option("--yes", "Do not ask; what would leave is still shown.")
EPSILON = option(
    "--epsilon X",
    "Differential privacy of each picture, or of each group of --group-by, at a delta of 1e-5. With --local: what the "
    "noise would give each of B's pictures between nodes.",
    click.FloatRange(0.01, 8),
    default=1.0,
)
WAYS = ("peer", "evaluate", "local")
_IDLE = {
    "peer": ("epsilon", "evaluations", "out"),
    "evaluate": ("kind", "epsilon", "days", "out", "existing", "yes", "config_path"),
    "local": ("evaluations", "existing", "yes", "config_path"),
}
"""Options that say nothing of a way to use this command."""


@group(invoke_without_command=True)
@option(
    "--peer INSTITUTION/DOMAIN",
    "Agree with this peer, on the machine of your source node: fetch what its operator published, fit with your own "
    "--pictures, show, ask, sign, send.",
)
@option(
    "--local A B",
    "Calibrate model A to model B in this process. Each is a model that ships, by name, or a model's folder.",
    nargs=2,
)
@option(
    "--evaluate FILE",
    "Measure a calibration: with --local between these two models, without it between the models that ship for its two "
    "domains.",
)
@option(
    "--kind",
    "rotation: an orthogonal change of the channels, used as it is. tone (grey) and colour-map: a curve or map of "
    "values, for which the source's model is trained again.",
    ("rotation", "tone", "colour-map"),
    default="rotation",
)
@option(
    "--pictures FOLDER",
    "Pictures of a domain, unpaired: a folder, or the name of a domain that ships; with --local twice, A's and B's; "
    "with --peer this node's. Default: the domains that ship under the models' names; with --peer what [train] of "
    "node.toml names.",
    multiple=True,
)
@option(
    "--anchors A_DIR B_DIR",
    "Pictures of the same things in both domains, by the same file names: a phantom, a travelling subject, a public "
    "area. The calibration is fitted to them; with --evaluate they are its truth.",
    click.Path(file_okay=False, path_type=Path),
    nargs=2,
)
@EPSILON
@option("--days N", "Days until the calibration expires.", click.IntRange(1, 3650), default=180)
@options.EVALUATIONS
@options.SEED
@option(
    "--out FILE",
    "The calibration; an existing file is never overwritten.",
    default=Path("calibration.json"),
)
@option("--force", "Write, or accept, a calibration that is refused for its figures.")
@option(
    "existing --from FILE",
    "With --peer: propose the map of this calibration, or of the one that ships by this name, with the figures that it "
    "has.",
)
@YES
@options.CONFIG
@options.OUTCOME
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
    out: Path,
    existing: Path | None,
    yes: bool,
    config_path: Path,
    **given: Any,
) -> None:
    """Agree with a peer on how two domains correspond; evaluate such a calibration.

    Without a calibration the bridge pairs light with light and what varies most with what varies most. A calibration
    says which values correspond. It is a file of a few numbers, and it expires.

    A calibration that is no better than none, or whose best solution is hardly better than another one, is refused
    with its figures; --force uses it anyway.
    """
    ways = [name for name in WAYS if context.params.get(name)]
    if (command := context.invoked_subcommand) is not None:
        if ways:
            hint = f"ddib calibrate {command} --help"
            raise UsageError(f"--{ways[0]} does not belong before {command}", hint=hint)
        return
    if not ways:
        raise UsageError(
            "nothing to calibrate is named",
            hint="ddib calibrate --peer INSTITUTION/DOMAIN, --local A B, or --evaluate FILE; ddib calibrate --help",
        )
    named = {"pictures": given["pictures"], "anchors": given["anchors"], "from": existing}
    sources = [f"--{name}" for name, value in named.items() if value]
    for wrong in ([f"--{way}" for way in ways] if peer else [], sources if peer else []):
        if len(wrong) > 1:
            raise UsageError(f"{wrong[0]} and {wrong[1]} contradict each other", hint="leave one of them out")
    if peer and len(given["pictures"]) > 1:
        raise UsageError("--peer takes one --pictures: this node's own", hint="leave the other one out")
    options.refuse_idle(_IDLE[ways[0]], f"is not for --{ways[0]}", hint="leave it out; ddib calibrate --help")
    from ddib_fed.cli import calibrate_making as making

    if peer is not None:
        making.agree(making.CalibrateOptions(**given), peer, config_path, existing=existing, yes=yes)
    elif evaluate is not None:
        making.evaluate(making.CalibrateOptions(**given), evaluate, local, evaluations=evaluations)
    elif local is not None:
        making.make(making.CalibrateOptions(**given), local, epsilon=epsilon, out=out)


@calibrate.command(
    short_help="Publish a noised histogram for peers.",
    epilog="\b\nExample:\n  ddib calibrate publish --pictures pictures --config south/node.toml",
)
@options.CONFIG
@option(
    "--pictures FOLDER",
    "This node's pictures: a folder, or the name of a domain that ships. Default: what [train] of node.toml names, "
    "else the domain that ships under the model's domain.",
)
@EPSILON
@option(
    "--limit N",
    "Count at most this many pictures or groups, evenly spaced by their names.",
    click.IntRange(200, 1_000_000),
    default=4_000,
)
@option(
    "--group-by folder|PATTERN",
    "What is protected as one: all pictures of one first folder below FOLDER, or of one name that a regular expression "
    "finds in their paths, as 'patient-[0-9]+'. Without it epsilon is for one picture alone.",
)
@option(
    "--force",
    "Replace what is published. The noise is drawn again, which costs epsilon once more if pictures are the same.",
)
@YES
@options.OUTCOME
def publish(
    config_path: Path,
    pictures: str | None,
    epsilon: float,
    limit: int,
    group_by: str | None,
    force: bool,
    yes: bool,
) -> None:
    """Publish one noised histogram of this target's pictures for peers that calibrate.

    It shows what would leave and asks. Admitted peers get it only while [policy] calibration lists a kind.
    """
    from ddib_fed.calibration.aggregate import DELTA
    from ddib_fed.node import calibrations
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.role import load_hosted
    from ddib_fed.training.calibrating import count_pictures

    config = NodeConfig.load(config_path)
    calibrations.require_role(config, "target", "ddib calibrate publish")
    calibrations.refuse_second(config, again=force)
    bundle = load_hosted(config)
    which = pictures or config.train.pictures(config.folder)
    with console(stderr=True).status("counting pictures"):
        counted = count_pictures(bundle, which, epsilon=epsilon, at_most=limit, group_by=group_by)
    aggregate = replace(counted, domain=config.model.domain).noised(epsilon, DELTA)
    say(*aggregate.describe().split("\n"), *counted.notes)
    if before := calibrations.publications(config):
        together = calibrations.total_privacy([*before, aggregate])
        say(f"together     {together}, with what was published before")
    confirmed("May admitted peers have this?", yes=yes)
    calibrations.publish(config, aggregate, again=force)
    say(f"published    {config.paths.aggregate}; the noise was drawn once, every peer gets the same bytes")
    if not config.policy.calibration:
        say(
            f'nobody gets it yet: [policy] calibration = ["rotation"] in {config_path}, then restart the node'
        )
    content = aggregate.model_dump(mode="json", exclude={"counts"})
    outcome(sha256=aggregate.sha256, bytes=len(aggregate.canonical), **content)


def _open(config_path: Path) -> tuple[NodeConfig, CalibrationStore]:
    from ddib_fed.calibration.signed import CalibrationStore
    from ddib_fed.node.config import NodeConfig

    config = NodeConfig.load(config_path)
    return config, CalibrationStore(config.paths.calibrations)


@calibrate.command(
    short_help="Sign what a peer proposed to this target.",
    epilog="\b\nExample:\n  ddib calibrate accept 1f3b5c7d9e0a --config south/node.toml",
)
@options.CONFIG
@NAME
@option("--force", "Also if its figures are refused.")
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
        f"signed       {signed.short}; {source} fetches the signature:",
        f"  ddib calibrate send {signed.short} --config node.toml",
    )
    outcome(signed=signed.sha256, source=source)


@calibrate.command(
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


@calibrate.command(name="list", short_help="List those of this node.")
@options.CONFIG
@options.OUTCOME
def list_(config_path: Path) -> None:
    """List the calibrations of this node, the newest first."""
    from ddib_fed.node.calibrations import publications, total_privacy

    config, store = _open(config_path)
    now, published = datetime.now(UTC), publications(config)
    found = [_row(stored, now) for stored in store.list()]

    def text() -> None:
        columns = ["!calibration", "kind", "from, to", "state", "expires"]
        rows = [
            [
                row["sha256"][:12],
                row["kind"],
                f"{row['source']} to {row['target']}",
                row["state"],
                row["expires"][:10],
            ]
            for row in found
        ]
        if rows:
            print_table("", columns, rows)
        else:
            say("no calibrations yet: ddib calibrate --peer INSTITUTION/DOMAIN")
        if published:
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
            say()
            columns = ["!aggregate", "published", "over", ">epsilon", ">delta", "peers that have it"]
            print_table("", columns, rows)
            say(f"together     {total_privacy(published)}, also if the peers compare what they have")

    emit({"calibrations": found, "published": published}, text)
    for problem in store.problems():
        say(f"not read: {problem}", err=True)


def _row(stored: SignedCalibration, now: datetime) -> dict[str, str]:
    calibration = stored.calibration
    return {
        "sha256": stored.sha256.hex(),
        "kind": calibration.kind,
        "source": side_name(calibration.source),
        "target": side_name(calibration.target),
        "state": stored.state(now),
        "expires": moment(calibration.expires.timestamp()) or "",
    }


@calibrate.command(
    short_help="Show one, and verify its signatures.",
    epilog="\b\nExample:\n  ddib calibrate show 1f3b5c7d9e0a --out calibration.json",
)
@options.CONFIG
@options.OUTCOME
@NAME
@option(
    "--out FILE",
    "Also write it with its signatures, e.g. for `ddib model train --calibration`; an existing file is kept.",
)
def show(config_path: Path, name: str, out: Path | None) -> None:
    """Show a calibration of this node, and verify its signatures."""
    from ddib_fed.calibration.signed import SIDES
    from ddib_fed.files import write_file
    from ddib_fed.node.calibrations import publications, total_privacy

    config, store = _open(config_path)
    stored, now = store.named(name), datetime.now(UTC)
    if out is not None:
        write_file(out, stored.model_dump_json(indent=2, exclude_none=True).encode() + b"\n", overwrite=False)
    checked = {side: _checked(config, stored, side, now) for side in SIDES}

    def text() -> None:
        show_calibration(stored.calibration)
        say(f"state        {stored.state(now)}, here since {stored.added:%Y-%m-%d %H:%M} UTC")
        if published := publications(config):
            say(f"published    {total_privacy(published)}")
        for side, said in checked.items():
            say(f"signed       {side}: {said}")
        if out is not None:
            say(f"written      {out}")

    content = stored.calibration.model_dump(mode="json", exclude_none=True)
    emit({**_row(stored, now), "signatures": checked, "calibration": content}, text)


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


@calibrate.command(short_help="Stop using one.")
@options.CONFIG
@NAME
@options.OUTCOME
def remove(config_path: Path, name: str) -> None:
    """Stop using a calibration; new contracts with it are refused at once.

    It is kept, so that results made with it can be explained, and the peer cannot bring it back. A second time its
    file is deleted too.
    """
    from ddib_fed.node import calibrations

    config, store = _open(config_path)
    stored = store.named(name)
    forget = stored.state(datetime.now(UTC)) == "inactive"
    calibrations.take_out_of_use(config, stored, forget=forget)
    say(f"{stored.short} is deleted" if forget else f"{stored.short} is no longer used, without a restart")
    outcome(removed=stored.sha256, deleted=forget)
