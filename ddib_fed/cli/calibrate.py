"""`ddib calibrate`: agrees with a peer on how two domains correspond, and shows those of this node."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import group, open_config, open_model, option, usual_threads
from ddib_fed.client.client import Client
from ddib_fed.client.jobs import split_target
from ddib_fed.errors import (
    AlreadyExists,
    CalibrationKindDenied,
    Cancelled,
    DdibError,
    InputError,
    RefusedError,
    ShapeMismatch,
    UsageError,
)
from ddib_fed.protocol.messages import values_of
from ddib_fed.terminal import console, emit, lines, listed, number, outcome, print_table, say, size

if TYPE_CHECKING:
    from ddib_fed.calibration.record import (
        CalibratedSide,
        Calibration,
        CalibrationStore,
        Dial,
        Side,
        SignedCalibration,
    )
    from ddib_fed.client.dial import Measured
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.protocol.contract import CalibrationKind
    from ddib_fed.training.calibrating import CalibrationRequest

NAME = click.argument("name", metavar="DIGEST")
YES = option("--yes", "Do not ask; what would leave is still shown.")
EPSILON = option(
    "--epsilon X",
    "Differential privacy of each picture, or of each group of --group-by, at a delta of 1e-5. With --local: what the "
    "noise would give each of B's pictures between nodes.",
    click.FloatRange(0.01, 8),
    default=1.0,
)


@dataclass(frozen=True, slots=True)
class _Options:
    """What a calibration is to be made of; `pictures` are this side's and, in one process, the target's."""

    kind: CalibrationKind
    pictures: tuple[str, ...]
    anchors: tuple[Path, Path] | None
    contrast: Literal["same", "inverted"] | None
    days: int
    seed: int
    force: bool

    def request(self, command: str, own: CalibratedSide, to: tuple[str, str]) -> CalibrationRequest:
        from ddib_fed.training.calibrating import CalibrationRequest

        command = f"ddib calibrate {command} --kind {self.kind} --seed {self.seed}"
        command += "" if self.anchors is None else " --anchors"
        command += f" --contrast {self.contrast}" if self.contrast else ""
        return CalibrationRequest(
            self.kind, own, to, self.days, command, self.seed, self.force, self.contrast or ""
        )


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
    "area. The calibration is fitted to them.",
    click.Path(file_okay=False, path_type=Path),
    nargs=2,
)
@option(
    "--contrast",
    "Of a tone without --anchors, which a histogram cannot tell: whether light in A is light in B (same), or dark "
    "(inverted). A dark background stays dark.",
    ("same", "inverted"),
)
@EPSILON
@option("--days N", "Days until the calibration expires.", click.IntRange(1, 731), default=180)
@options.SEED
@option(
    "--out FILE", "The calibration; an existing file is never overwritten.", default=Path("calibration.json")
)
@option("--force", "Write, or accept, a calibration that is refused for its figures.")
@option(
    "existing --from FILE",
    "The map of this calibration, or of the one that ships by this name, with the figures that it has: --peer proposes "
    "it, --local measures its dial.",
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
    epsilon: float,
    out: Path,
    existing: Path | None,
    yes: bool,
    config_path: Path,
    **given: Any,
) -> None:
    """Agree with a peer on how two domains correspond.

    Without a calibration the bridge pairs light with light and what varies most with what varies most. A calibration
    says which values correspond. It is a file of a few numbers, and it expires.

    A calibration that is no better than none, or whose best solution is hardly better than another one, is refused
    with its figures; --force uses it anyway.
    """
    if (command := context.invoked_subcommand) is not None:
        if peer or local:
            hint = f"ddib calibrate {command} --help"
            raise UsageError(f"--{'peer' if peer else 'local'} does not belong before {command}", hint=hint)
        return
    if bool(peer) == bool(local):
        raise UsageError(
            "one of --peer and --local is needed",
            hint="ddib calibrate --peer INSTITUTION/DOMAIN, or --local A B; ddib calibrate --help",
        )
    asked, hint = _Options(**given), "leave it out; ddib calibrate --help"
    if peer is not None:
        options.refuse_idle(("epsilon", "out"), "is not for --peer", hint=hint)
        named = {"pictures": asked.pictures, "anchors": asked.anchors, "from": existing}
        if len(sources := [f"--{name}" for name, value in named.items() if value]) > 1:
            raise UsageError(
                f"{sources[0]} and {sources[1]} contradict each other", hint="leave one of them out"
            )
        if len(asked.pictures) > 1:
            raise UsageError("--peer takes one --pictures: this node's own", hint="leave the other one out")
        _agree(asked, peer, config_path, existing=existing, yes=yes)
    elif local is not None:
        options.refuse_idle(("yes", "config_path"), "is not for --local", hint=hint)
        if existing is not None:
            idle = ("kind", "contrast", "days", "seed", "force", "epsilon")
            options.refuse_idle(idle, "is not for --from, which has a calibration already", hint=hint)
        _make(asked, local, epsilon=epsilon, out=out, existing=existing)


# The ways of `ddib calibrate` itself


def _make(
    asked: _Options, local: tuple[str, str], *, epsilon: float, out: Path, existing: Path | None
) -> None:
    """`--local`: make a calibration of two models, measure its dial, write it, and print what is known of it."""
    from ddib_fed.calibration.record import RETRAINED, misfit, read_calibration, write_calibration
    from ddib_fed.data.shipped import SHIPPED
    from ddib_fed.networks.placement import torch_threads
    from ddib_fed.training import calibrating

    if out.exists():
        raise AlreadyExists(f"{out} exists", hint="name another file with --out, or remove this one")
    if (count := len(asked.pictures)) not in {0, 2}:
        raise UsageError(
            f"--pictures is given {count} times; it names A's pictures and then B's",
            hint="--pictures A_FOLDER --pictures B_FOLDER",
        )
    own, others = asked.pictures or (None, None)
    if asked.anchors is not None:
        idle = ("pictures", "epsilon")
        options.refuse_idle(idle, "is for aggregates, not for --anchors")
    source, target = (open_model(name) for name in local)
    first, second = source.manifest, target.manifest
    if first.sample_shape != second.sample_shape or first.latent_shape != second.latent_shape:
        raise ShapeMismatch(
            f"{first.name} is of {first.sample_shape}, {second.name} of {second.sample_shape}",
            hint="a calibration is for two models of one size and number of channels",
        )
    noise = "" if asked.anchors is not None else f" --epsilon {epsilon:g}"
    command = f"--local {shlex.join((first.domain, second.domain))}{noise}"
    latents = calibrating.of_latents(asked.kind, first)
    request = asked.request(command, calibrating.side(first, latents=latents), ("", second.domain))
    there = calibrating.LocalTarget(target, others, epsilon, asked.seed, latents)
    rows: list[Measured] = []
    with torch_threads(usual_threads()):
        if existing is not None:
            found = read_calibration(existing)
        else:
            found = calibrating.make_calibration(request, source, there, pictures=own, folders=asked.anchors)
        write_calibration(found, out)
        if (usable := not misfit(found, first)) and found.alone is not None:
            rows, found = _dialled(found, (source, target), own, asked.anchors, out)
    model, other = local
    if not usable and found.kind in RETRAINED:
        data = ["--domain", model] if model in SHIPPED else ["--images", "PICTURES"]
        following = ["model", "train", *data, "--init", model, "--calibration", str(out), "--steps", "600"]
        following += ["--out", f"{found.source.domain}-calibrated"]
    else:
        following = ["translate", "PICTURES", "--source", model, "--target", other, "--calibration", str(out)]
        following += ["--out", "calibrated"]

    def text() -> None:
        show_calibration(found)
        show_dial(rows, found)
        say(f"written      {out}", "next:", f"  ddib {shlex.join(following)}")

    emit(found, text)


def _dialled(
    found: Calibration,
    models: tuple[Bundle, Bundle],
    own: str | None,
    anchors: tuple[Path, Path] | None,
    out: Path,
) -> tuple[list[Measured], Calibration]:
    """A calibration in a file with the setting that is proposed, and what was measured."""
    from ddib_fed.calibration.record import write_calibration
    from ddib_fed.client.in_process import InProcess
    from ddib_fed.engine.local_party import open_party

    source, target = (open_party(each, threads=usual_threads()) for each in models)
    client = InProcess(source, target)
    try:
        rows, dial = measured(found, models[0], own, anchors, client, client.target)
    except Cancelled:
        say(f"{out} is written; its dial was not measured", err=True)
        raise
    except DdibError as error:
        say(f"the dial was not measured: {error.detail}", err=True)
        return [], found
    found = found.model_copy(update={"dial": dial})
    out.unlink()
    write_calibration(found, out)
    return rows, found


def measured(
    calibration: Calibration,
    source: Bundle,
    which: str | None,
    anchors: tuple[Path, Path] | None,
    client: Client,
    target: str,
    *,
    limit: int = 24,
    least_share: float = 0.0,
) -> tuple[list[Measured], Dial]:
    """The figures of each setting of the dial on anchors, or on own pictures, and the setting that is proposed."""
    from ddib_fed.client import dial
    from ddib_fed.data.folder import scan
    from ddib_fed.evaluation.metrics import picture_rule
    from ddib_fed.training.sources import own_samples

    manifest = source.manifest
    with tempfile.TemporaryDirectory() as folder, console(stderr=True).status("measuring the dial"):
        root, truth = Path(folder), None
        if anchors is not None:
            root, truth = anchors
            entries = scan(root).entries
            pictures = [entry.path for entry in entries[:: -(-len(entries) // limit)]]
        else:
            own = own_samples(manifest, which, limit, limit)
            some = own.held_out if 2 * len(own.held_out) > limit else own.train
            pictures = dial.write_pictures(some, picture_rule(manifest), Path(folder))
        translate = dial.translating(client, target, pictures, root, calibration, truth)
        shares = [share for share in dial.SHARES if share >= least_share]
        return dial.measure_dial(translate, shares, source.privacy)


def show_dial(rows: Sequence[Measured], calibration: Calibration) -> None:
    """The table over the dial, and the setting that is proposed."""
    if not rows:
        return
    of_truth = any(row.ssim is not None for row in rows)
    # Short enough for a terminal of 100 characters.
    columns = ["share", ">temp", ">blend", ">SSIM with map", ">edges", ">sharp", ">white",
               ">round trip dB", ">read dB", ">leak dB"]  # fmt: skip
    columns += [">PSNR dB", ">SSIM", ">partner"] * of_truth

    table = [
        [
            *(number(each, "g") for each in (row.dial.share, row.dial.temperature, row.dial.blend)),
            number(row.map_ssim, ".3f"), number(row.edges, ".2f"),
            number(row.sharpness / (rows[0].sharpness or 1.0), ".2f"), number(row.whiteness, ".2f"),
            *(number(each, ".1f") for each in (row.round_trip, row.read, row.surrogate)),
            *([number(row.psnr, ".1f"), number(row.ssim, ".3f"), number(row.partner, ".2f")] * of_truth),
        ]
        for row in rows
    ]  # fmt: skip
    print_table("", columns, table)
    say(f"proposed     {calibration.dial}; measured on {min(row.pictures for row in rows)} pictures")
    if rows[0].read is not None:
        say(
            f"             read: PSNR of what a read-out of {rows[0].pairs} pairs makes of other latents: a",
            "             lower bound, which rises with the number of pairs (SECURITY.md has figures of 512)",
        )
    if rows[0].surrogate is not None:
        say("             leak: PSNR read from a latent, by the model's privacy report")


def _agree(asked: _Options, peer_name: str, config_path: Path, *, existing: Path | None, yes: bool) -> None:
    """`--peer`: fetch the peer's aggregate, fit with own pictures, show, ask, sign, send and store."""
    from ddib_fed.calibration.record import read_calibration
    from ddib_fed.node import calibrations
    from ddib_fed.node.role import load_hosted
    from ddib_fed.training.calibrating import make_calibration, of_latents, side

    try:
        institution, domain = split_target(peer_name)
    except UsageError as error:
        error.hop, error.hint = "", "ddib peer list"
        raise
    config = open_config(config_path)
    calibrations.require_role(config, "source", "ddib calibrate --peer")
    if existing is None and asked.kind not in config.policy.calibration:
        raise CalibrationKindDenied(
            f"policy.calibration of {config.path} does not list {asked.kind}",
            hint=f"{calibrations.allow(asked.kind, config.policy)} in {config.path}, then restart the node",
        )
    bundle, pictures = load_hosted(config), next(iter(asked.pictures), config.train.pictures(config.folder))
    found = None if existing is None else read_calibration(existing)
    latents = of_latents(asked.kind if found is None else found.kind, bundle.manifest)
    own = side(bundle.manifest, config.node.institution, latents=latents)
    own = own.model_copy(update={"domain": config.model.domain})
    with calibrations.CalibrationPeer(config, institution, domain) as peer:
        if found is not None:
            made = _proposed(found, asked, own, (institution, domain))
            share = max(made.dial.share, config.policy.least_share)
            made = made.model_copy(update={"dial": made.dial.model_copy(update={"share": share})})
        else:
            request = asked.request(f"--peer {peer_name}", own, (institution, domain))
            which = None if pictures is None else str(pictures)
            made = make_calibration(request, bundle, peer, pictures=which, folders=asked.anchors)
        show_calibration(made)
        say(
            f"would leave  {len(made.canonical)} bytes of calibration with the numbers and figures above, and this "
            f"node's signature and certificate, to {institution}; no picture and no part of one",
            err=True,
        )
        _confirm("Sign this calibration and send it?", yes=yes)
        signed = calibrations.send(config, made, peer, now=datetime.now(UTC))
    say(f"crossed      {', '.join(f'{name} {count} bytes' for name, count in peer.crossed.items())}")
    _say_sent(signed, config)
    outcome(
        sha256=signed.sha256,
        state="signed" if signed.complete else "pending",
        crossed=peer.crossed,
        calibration=made.model_dump(mode="json", exclude_none=True),
    )


def _proposed(found: Calibration, asked: _Options, own: CalibratedSide, to: tuple[str, str]) -> Calibration:
    """The map of an existing calibration, proposed with its figures; the peer checks its own units."""
    from ddib_fed.node.calibrations import refuse_doubtful

    if found.source.units_sha256 != own.units_sha256:
        raise InputError(
            f"the calibration of {found.source.domain} was made for a model of other units than that of this node",
            hint="make one for this model, or leave out --from",
        )
    if not asked.force:
        refuse_doubtful(found)
    made = found.made
    if found.target.institution != to[0]:
        nothing = {"aggregate_sha256": "", "crossed_bytes": 0, "epsilon": None, "delta": None}
        made = made.model_copy(update=nothing)
    target = found.target.model_copy(update={"institution": to[0], "domain": to[1]})
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=asked.days)
    return found.model_copy(update={"source": own, "target": target, "made": made, "expires": ends})


# The commands of the group


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
    "--group-by folder|PATTERN",
    "What is protected as one: all pictures of one first folder below FOLDER, or of one name that a regular expression "
    "finds in their paths, as 'patient-[0-9]+'. Without it epsilon is for one picture alone.",
)
@option(
    "--force",
    "Replace what is published. The noise is drawn again, which costs epsilon once more if pictures are the same.",
)
@option(
    "--latents",
    "Count the latents of the model's autoencoder, for a rotation with a source that has the same one, not colours.",
)
@YES
@options.OUTCOME
def publish(
    config_path: Path,
    pictures: str | None,
    epsilon: float,
    group_by: str | None,
    force: bool,
    latents: bool,
    yes: bool,
) -> None:
    """Publish one noised histogram of this target's pictures for peers that calibrate.

    It shows what would leave and asks. Admitted peers get it only while [policy] calibration lists a kind.
    """
    from ddib_fed.calibration.aggregate import DELTA
    from ddib_fed.node import calibrations
    from ddib_fed.node.role import load_hosted
    from ddib_fed.training.calibrating import count_pictures

    config = open_config(config_path)
    calibrations.require_role(config, "target", "ddib calibrate publish")
    calibrations.refuse_second(config, again=force)
    bundle = load_hosted(config)
    which = pictures or config.train.pictures(config.folder)
    with console(stderr=True).status("counting pictures"):
        counted = count_pictures(bundle, which, epsilon=epsilon, group_by=group_by, latents=latents)
    aggregate = replace(counted, domain=config.model.domain).noised(epsilon, DELTA)
    say(*aggregate.describe().split("\n"), *counted.notes)
    if before := calibrations.publications(config):
        together = calibrations.total_privacy([*before, aggregate])
        say(f"together     {together}, with what was published before")
    _confirm("May admitted peers have this?", yes=yes)
    calibrations.publish(config, aggregate, again=force)
    say(f"published    {config.paths.aggregate}; the noise was drawn once, every peer gets the same bytes")
    if not config.policy.calibration:
        say(f'nobody gets it yet: [policy] calibration = ["rotation"] in {config_path}, then restart it')
    content = aggregate.model_dump(mode="json", exclude={"counts"})
    outcome(sha256=aggregate.sha256, bytes=len(aggregate.canonical), **content)


@calibrate.command(
    short_help="Measure the dial of an agreed calibration.",
    epilog="\b\nExample:\n  ddib calibrate dial west.example/relief --pictures pictures --config east/node.toml",
)
@click.argument("target", metavar="INSTITUTION/DOMAIN")
@options.CONFIG
@option(
    "--pictures FOLDER",
    "This node's pictures: a folder, or the name of a domain that ships. Default: what [train] of node.toml names.",
)
@option(
    "--anchors A_DIR B_DIR",
    "Instead pictures of the same things in both domains, by the same file names: then the truth counts.",
    click.Path(file_okay=False, path_type=Path),
    nargs=2,
)
@option("--limit N", "Pictures that are measured, at most.", click.IntRange(4), default=24)
@YES
@options.PROFILE
@options.OUTCOME
def dial(
    target: str,
    config_path: Path,
    pictures: str | None,
    anchors: tuple[Path, Path] | None,
    limit: int,
    yes: bool,
    profile_path: Path | None,
) -> None:
    """Measure share, temperature and blend under the calibration that is agreed on, and propose a setting.

    Own pictures are translated there and back by jobs of this node, at each share that its policy allows. The setting
    that is proposed becomes part of the calibration, which both operators sign again: jobs that name no share use it.
    """
    from ddib_fed.node import calibrations
    from ddib_fed.node.role import load_hosted

    config, store = _open(config_path)
    calibrations.require_role(config, "source", "ddib calibrate dial")
    bundle, now = load_hosted(config), datetime.now(UTC)
    places = calibrations.own_place(config), split_target(target)
    stored = store.chosen(*places, bundle.manifest, now)
    if stored is None or stored.state(now) != "active":
        raise InputError(
            f"no calibration for {target} is agreed on here",
            hint=f"ddib calibrate --peer {shlex.quote(target)}",
        )
    if anchors is not None:
        options.refuse_idle(("pictures",), "is not for --anchors")
    found, which = stored.calibration, pictures or config.train.pictures(config.folder)
    with Client.for_command(profile_path) as client:
        rows, proposed = measured(
            found, bundle, which, anchors, client, target, limit=limit, least_share=config.policy.least_share
        )
    made = found.dialled(proposed, datetime.now(UTC))
    show_dial(rows, made)
    lines({"sha256": made.sha256.hex()})
    if {row.dial.share for row in rows} == {1.0}:
        say("no share below 1 was measured: [policy] least_share in node.toml of both nodes allows it")
    outcome_of = {"dial": proposed.model_dump(), "rows": [asdict(row) for row in rows]}
    if proposed == found.dial:
        say("the calibration has this setting already")
        outcome(sha256=found.sha256.hex(), state="signed", **outcome_of)
        return
    _confirm("Sign the calibration with this setting and send it?", yes=yes)
    with calibrations.CalibrationPeer(config, *split_target(target)) as peer:
        signed = calibrations.send(config, made, peer, now=datetime.now(UTC))
    _say_sent(signed, config)
    outcome(sha256=signed.sha256, state="signed" if signed.complete else "pending", **outcome_of)


def _open(config_path: Path) -> tuple[NodeConfig, CalibrationStore]:
    from ddib_fed.calibration.record import CalibrationStore

    config = open_config(config_path)
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
    _confirm("Sign this calibration?", yes=yes)
    signed = calibrations.accept(config, stored, now=datetime.now(UTC))
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

    config, store = _open(config_path)
    calibration = store.named(name).calibration
    calibrations.require_role(config, "source", "ddib calibrate send")
    target, domain = calibration.target.place
    with calibrations.CalibrationPeer(config, target, domain) as peer:
        signed = calibrations.send(config, calibration, peer, now=datetime.now(UTC))
    _say_sent(signed, config)
    outcome(sha256=signed.sha256, target=target, agreed=signed.complete)


@calibrate.command(name="list", short_help="List those of this node.")
@options.CONFIG
@options.OUTCOME
def list_(config_path: Path) -> None:
    """List the calibrations of this node, the newest first."""
    from ddib_fed.node.calibrations import publications, total_privacy

    config, store = _open(config_path)
    found, published = _rows(config, store), publications(config)

    def text() -> None:
        calibrations = [
            [each["sha256"][:12], each["kind"], f"{each['source']} to {each['target']}", each["dial"],
             each["state"], each["expires"][:10]]
            for each in found
        ]  # fmt: skip
        if found:
            print_table("", ["!calibration", "kind", "from, to", "dial", "state", "expires"], calibrations)
        else:
            say("no calibrations yet: ddib calibrate --peer INSTITUTION/DOMAIN")
        say(*(f"{each['sha256'][:12]}: {each['warning']}" for each in found if each["warning"]))
        aggregates = [
            [each.sha256[:12], each.time[:10], f"{each.counted} {each.unit}s", f"{each.epsilon:g}",
             f"{each.delta:g}", ", ".join(each.peers) or "none"]
            for each in published
        ]  # fmt: skip
        if published:
            columns = ["!aggregate", "published", "over", ">epsilon", ">delta", "peers that have it"]
            print_table("", columns, aggregates)
            say(f"together     {total_privacy(published)}, also if the peers compare what they have")

    emit({"calibrations": found, "published": published}, text)
    for problem in store.problems():
        say(f"not read: {problem}", err=True)


def _rows(config: NodeConfig, store: CalibrationStore) -> list[dict[str, Any]]:
    from ddib_fed.node.admitting import peer_store
    from ddib_fed.node.calibrations import overview

    return [values_of(each) for each in overview(config, store, peer_store(config), inactive=True)]


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
    from ddib_fed.calibration.record import SIDES, write_calibration

    config, store = _open(config_path)
    stored = store.named(name)
    if out is not None:
        write_calibration(stored, out)
    row = next(each for each in _rows(config, store) if each["sha256"] == stored.sha256.hex())
    checked = {side: _checked(config, stored, side) for side in SIDES}

    def text() -> None:
        show_calibration(stored.calibration)
        state = f"{row['state']}, here since {stored.added:%Y-%m-%d %H:%M} UTC"
        lines(listed("", {"state": state, "signatures": checked, "written": out}))

    content = stored.calibration.model_dump(mode="json", exclude_none=True)
    emit({**row, "signatures": checked, "calibration": content}, text)


def _checked(config: NodeConfig, signed: SignedCalibration, side: Side) -> str:
    """Who signed for a side and when, or what is wrong with the signature."""
    from ddib_fed.node.admitting import peer_store

    peers, signature = peer_store(config).snapshot(), signed.signature(side)
    try:
        signer = signed.verify_side(side, pins=peers.pins, withdrawn=peers.withdrawn, now=datetime.now(UTC))
    except RefusedError as error:
        return f"{error.detail}  [{error.reason}]"
    return f"{signer}, {signature.moment:%Y-%m-%d %H:%M} UTC" if signature is not None else ""


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
    forget = not stored.active
    calibrations.take_out_of_use(config, stored, forget=forget)
    say(f"{stored.short} is deleted" if forget else f"{stored.short} is no longer used, without a restart")
    outcome(removed=stored.sha256, deleted=forget)


# What is shown and asked


def _say_sent(signed: SignedCalibration, config: NodeConfig) -> None:
    short, institution = signed.short, signed.calibration.target.institution
    if signed.complete:
        say(f"agreed       both institutions have signed {short}", *how_jobs_use(signed.calibration, config))
        return
    say(
        f"proposed     {short} waits for the operator of {institution}, who runs there:",
        f"  ddib calibrate accept {short} --config node.toml",
        "then, here:",
        f"  ddib calibrate send {short} --config {shlex.quote(str(config.path))}",
    )


def _confirm(question: str, *, yes: bool) -> None:
    """Raise unless the operator agrees."""
    if yes:
        return
    from ddib_fed.node.admitting import confirm

    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint="look at what is shown above, then add --yes")
    if not confirm(question):
        raise Cancelled("not confirmed; nothing left and nothing was signed", hint="the same command again")


def show_calibration(calibration: Calibration) -> None:
    """What it is, how it was made, and what it does, a line each on stdout."""
    made, effect = calibration.made, calibration.effect
    anchored = made.method == "anchors"
    theirs = f"an aggregate over {made.target_pictures} {made.target_unit}s of the target"
    if not made.aggregate_sha256:
        theirs = f"one that was not {calibration.target.institution}'s; the figures are of those"
    crossed = "nothing but the calibration itself"
    if made.crossed_bytes:
        where = "" if calibration.target.institution else "nothing in one process; between nodes "
        crossed = f"{where}{size(made.crossed_bytes)} of aggregate, once"
    if made.epsilon is not None and made.delta is not None:
        crossed += f", with noise: epsilon {made.epsilon:g}, delta {made.delta:g} for each {made.target_unit}"
    before, after = effect.distance_before, effect.distance
    of = "mean squared, each anchor by a map of the others" if anchored else "of the colours to the target's"
    lines(
        {
            "calibration": f"{calibration.kind}, {calibration.source} to {calibration.target}",
            "made from": f"{made.anchors} anchors, pictures of the same things in both domains"
            if anchored
            else f"{made.source_pictures} pictures of the source, and {theirs}",
            "error" if anchored else "distance": f"{before} without it, {after} with it: {of}",
            "gain" if anchored else "margin": f"{effect.margin}, as a share of that without it",
            **{name: str(figure) for name, figure in effect.figures.items()},
            **({"contrast": f"{made.contrast}, as its operators say"} if made.contrast else {}),
            "crosses": crossed,
            "dial": str(calibration.dial),
            "expires": f"{calibration.expires:%Y-%m-%d}",
            "sha256": calibration.sha256.hex(),
            **({"forced": "its figures were refused, and --force took it"} if effect.forced else {}),
        }
    )


def how_jobs_use(calibration: Calibration, config: NodeConfig) -> tuple[str, ...]:
    """What a source does, once both have signed, so that its jobs use it: lines for its operator."""
    from ddib_fed.calibration.record import misfit
    from ddib_fed.node.role import load_hosted
    from ddib_fed.training.config import SHIPPED

    short, target, path = calibration.sha256.hex()[:12], calibration.target.institution, config.path
    if not misfit(calibration, load_hosted(config).manifest):
        return (f"jobs to {target} use it from now on; ddib translate --calibration none leaves it out",)
    file, model = config.folder / f"{short}.json", config.paths.bundle
    images = config.train.pictures(config.folder) or "PICTURES"
    which = "--domain" if images in SHIPPED else "--images"
    trained = config.folder / f"{model.name}-{short}"
    train = ["--init", str(model), "--calibration", str(file), "--out", str(trained)]
    return (
        f"jobs to {target} use it once this node's model is trained with it:",
        f"  ddib calibrate show {short} {shlex.join(['--out', str(file), '--config', str(path)])}",
        f"  ddib model train {shlex.join([which, str(images), *train])}",
        f'then [model] bundle = "{trained.name}" in {path}, and restart the node',
    )
