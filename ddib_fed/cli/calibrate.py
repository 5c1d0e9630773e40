"""`ddib calibrate`: agrees with a peer on how two domains correspond, and shows those of this node."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import ddib_fed
from ddib_fed.cli import options
from ddib_fed.cli.options import group, option, usual_threads
from ddib_fed.errors import AlreadyExists, CalibrationModel, Cancelled, DdibError, UsageError
from ddib_fed.terminal import console, emit, lines, listed, number, outcome, print_table, say, size

NAME = click.argument("name", metavar="DIGEST")
YES = option("--yes", "Do not ask; what would leave is still shown.")
OWN_PICTURES = option(
    "--pictures FOLDER", "A folder, or a domain that ships; default: what [train] of node.toml names."
)
EPSILON = option(
    "--epsilon X",
    "Differential privacy of each picture, or of each group of --group-by, at a delta of 1e-5. With --local: what the "
    "noise would give each of B's pictures between nodes.",
    click.FloatRange(0.01, 8),
    default=1.0,
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
    "Pictures of the same things in both domains, by the same file names, that the calibration is fitted to.",
    click.Path(file_okay=False, path_type=Path),
    nargs=2,
)
@option(
    "--contrast",
    "Of a tone without --anchors: whether light in A is light in B (same), or dark (inverted).",
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
    pictures, given["contrast"] = given.pop("pictures"), given["contrast"] or ""
    request, hint = ddib_fed.CalibrationRequest(**given), "leave it out; ddib calibrate --help"
    if peer is not None:
        options.refuse_idle(("epsilon", "out"), "is not for --peer", hint=hint)
        named = {"pictures": pictures, "anchors": request.anchors, "from": existing}
        if len(sources := [f"--{name}" for name, value in named.items() if value]) > 1:
            raise UsageError(
                f"{sources[0]} and {sources[1]} contradict each other", hint="leave one of them out"
            )
        if len(pictures) > 1:
            raise UsageError("--peer takes one --pictures: this node's own", hint="leave the other one out")
        known = None if existing is None else ddib_fed.Calibration.open(existing)
        own = next(iter(pictures), None)
        _agree(replace(request, pictures=own, existing=known), peer, config_path, yes=yes)
    elif local is not None:
        options.refuse_idle(("yes", "config_path"), "is not for --local", hint=hint)
        if existing is not None:
            idle = ("kind", "contrast", "days", "seed", "force", "epsilon")
            options.refuse_idle(idle, "is not for --from, which has a calibration already", hint=hint)
        if (count := len(pictures)) not in {0, 2}:
            raise UsageError(
                f"--pictures is given {count} times; it names A's pictures and then B's",
                hint="--pictures A_FOLDER --pictures B_FOLDER",
            )
        if request.anchors is not None:
            options.refuse_idle(("pictures", "epsilon"), "is for aggregates, not for --anchors")
        first, second = pictures or (None, None)
        request = replace(request, pictures=first, target_pictures=second, epsilon=epsilon)
        _make(request, local, out, existing)


# The ways of `ddib calibrate` itself


def _make(
    request: ddib_fed.CalibrationRequest, local: tuple[str, str], out: Path, existing: Path | None
) -> None:
    """Make a calibration of two models (--local), measure its dial, write it, and print its figures."""
    if out.exists():
        raise AlreadyExists(f"{out} exists", hint="name another file with --out, or remove this one")
    if existing is not None:
        calibration = ddib_fed.Calibration.open(existing)
    else:
        with console(stderr=True).status(f"fitting the {request.kind}"):
            calibration = ddib_fed.calibrate(*local, request, threads=usual_threads(), on_note=options.note)
    calibration.save(out)
    rows, usable = list[Any](), True
    if calibration.alone is not None:
        try:
            with console(stderr=True).status("measuring the dial"):
                rows, dial = ddib_fed.measure_dial(
                    calibration,
                    *local,
                    pictures=request.pictures,
                    anchors=request.anchors,
                    threads=usual_threads(),
                )
            calibration = calibration.model_copy(update={"dial": dial})
            out.unlink()
            calibration.save(out)
        except Cancelled:
            say(f"{out} is written; its dial was not measured", err=True)
            raise
        except CalibrationModel:
            usable = False
        except DdibError as error:
            say(f"the dial was not measured: {error.detail}", err=True)
    model, other = local
    if not usable and calibration.kind != "rotation":
        data = ["--images", "PICTURES"] if Path(model).is_dir() else ["--domain", model]
        following = ["model", "train", *data, "--init", model, "--calibration", str(out), "--steps", "600"]
        following += ["--out", f"{calibration.source.domain}-calibrated"]
    else:
        following = ["translate", "PICTURES", "--source", model, "--target", other, "--calibration", str(out)]
        following += ["--out", "calibrated"]

    def text() -> None:
        show_calibration(calibration)
        show_dial(rows, calibration)
        say(f"written      {out}", "next:", f"  ddib {shlex.join(following)}")

    emit(calibration, text)


def show_dial(rows: Sequence[Any], calibration: ddib_fed.Calibration) -> None:
    """Print the table over the dial, and the proposed setting."""
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
    is_map = calibration.dial.blend == 1.0
    said = "the map alone, for which no latent crosses" if is_map else calibration.dial
    say(f"proposed     {said}; measured on {min(row.pictures for row in rows)} pictures")
    if rows[0].read is not None:
        say(
            f"             read: PSNR of what a read-out of {rows[0].pairs} pairs makes of other latents: a",
            "             lower bound, which rises with the number of pairs (SECURITY.md has figures of 512)",
        )
    if rows[0].surrogate is not None:
        say("             leak: PSNR read from a latent, by the model's privacy report")


def _agree(request: ddib_fed.CalibrationRequest, target: str, config_path: Path, *, yes: bool) -> None:
    """Fetch the peer's aggregate (--peer), fit with own pictures, show, ask, sign and send."""
    node = ddib_fed.Node.open(config_path)
    with console(stderr=True).status(f"fitting the {request.kind}"):
        proposal, crossed = node.calibrations.propose(target, request, on_note=options.note)
    institution = proposal.target.institution
    show_calibration(proposal)
    say(
        f"would leave  {len(proposal.canonical)} bytes of calibration with the numbers and figures above, and this "
        f"node's signature and certificate, to {institution}; no picture and no part of one",
        err=True,
    )
    _confirm("Sign this calibration and send it?", yes=yes)
    signed, more = node.calibrations.send(proposal)
    crossed |= more
    say(f"crossed      {', '.join(f'{name} {count} bytes' for name, count in crossed.items())}")
    _say_sent(proposal, node, complete=signed.complete)
    outcome(
        sha256=signed.sha256,
        state="signed" if signed.complete else "pending",
        crossed=crossed,
        calibration=proposal.model_dump(mode="json", exclude_none=True),
    )


# The commands of the group


@calibrate.command(
    short_help="Publish a noised histogram for peers.",
    epilog="\b\nExample:\n  ddib calibrate publish --pictures pictures --config south/node.toml",
)
@options.for_node
@OWN_PICTURES
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
def publish(node: ddib_fed.Node, pictures: str | None, force: bool, yes: bool, **how: Any) -> None:
    """Publish one noised histogram of this target's pictures for peers that calibrate.

    It shows what would leave and asks. Admitted peers get it only while [policy] calibration lists a kind.
    """
    notes: list[str] = []
    with console(stderr=True).status("counting pictures"):
        aggregate = node.calibrations.aggregate(
            pictures, replace=force, on_note=lambda *texts: notes.extend(texts), **how
        )
    say(*aggregate.describe().split("\n"), *notes)
    if node.calibrations.published():
        say(f"together     {node.calibrations.together(aggregate)}, with what was published before")
    _confirm("May admitted peers have this?", yes=yes)
    path = node.calibrations.publish(aggregate, replace=force)
    say(f"published    {path}; the noise was drawn once, every peer gets the same bytes")
    if not node.config.policy.calibration:
        say(f'nobody gets it yet: [policy] calibration = ["rotation"] in {node.config.path}, then restart it')
    content = aggregate.model_dump(mode="json", exclude={"counts"})
    outcome(sha256=aggregate.sha256, bytes=len(aggregate.canonical), **content)


@calibrate.command(
    short_help="Measure the dial of an agreed calibration.",
    epilog="\b\nExample:\n  ddib calibrate dial west.example/relief --pictures pictures --config east/node.toml",
)
@options.for_node
@click.argument("target", metavar="INSTITUTION/DOMAIN")
@OWN_PICTURES
@option(
    "--anchors A_DIR B_DIR",
    "Instead pictures of the same things in both domains, by the same file names: then the truth counts.",
    click.Path(file_okay=False, path_type=Path),
    nargs=2,
)
@option("--limit N", "Pictures that are measured, at most.", click.IntRange(4), default=24)
@YES
@options.PROFILE
def dial(
    node: ddib_fed.Node, target: str, pictures: str | None, yes: bool, profile_path: Path | None, **how: Any
) -> None:
    """Measure share, temperature and blend under the calibration that is agreed on, and propose a setting.

    Own pictures are translated there and back by jobs of this node, at each share that its policy allows. The setting
    that is proposed becomes part of the calibration, which both operators sign again: jobs that name no share use it.
    """
    agreed, config = node.calibrations.agreed(target), node.config
    if how["anchors"] is not None:
        options.refuse_idle(("pictures",), "is not for --anchors")
    with (
        ddib_fed.Client.for_command(profile_path) as client,
        console(stderr=True).status("measuring the dial"),
    ):
        rows, proposed = ddib_fed.measure_dial(
            agreed,
            node.model(),
            target,
            client=client,
            pictures=pictures or config.train.pictures(config.folder),
            least_share=config.policy.least_share,
            **how,
        )
    dialled = agreed.dialled(proposed, datetime.now(UTC))
    show_dial(rows, dialled)
    lines({"sha256": dialled.sha256.hex()})
    if {row.dial.share for row in rows} == {1.0}:
        say("no share below 1 was measured: [policy] least_share in node.toml of both nodes allows it")
    outcome_of = {"dial": proposed.model_dump(), "rows": [asdict(row) for row in rows]}
    if proposed == agreed.dial:
        say("the calibration has this setting already")
        outcome(sha256=agreed.sha256.hex(), state="signed", **outcome_of)
        return
    _confirm("Sign the calibration with this setting and send it?", yes=yes)
    signed = node.calibrations.send(dialled)[0]
    _say_sent(signed.calibration, node, complete=signed.complete)
    outcome(sha256=signed.sha256, state="signed" if signed.complete else "pending", **outcome_of)


@calibrate.command(
    short_help="Sign what a peer proposed to this target.",
    epilog="\b\nExample:\n  ddib calibrate accept 1f3b5c7d9e0a --config south/node.toml",
)
@options.for_node
@NAME
@option("--force", "Also if its figures are refused.")
@YES
def accept(node: ddib_fed.Node, name: str, force: bool, yes: bool) -> None:
    """Sign a calibration that a peer has proposed to this target.

    DIGEST is its SHA-256, or the first 8 or more digits. The source's signature, the units of this node's model, the
    aggregate that it published, and the policy are checked first. The figures are those that the source measured.
    """
    proposed = node.calibrations.get(name).calibration
    show_calibration(proposed)
    if not force:
        node.calibrations.check_figures(proposed)
    _confirm("Sign this calibration?", yes=yes)
    signed = node.calibrations.accept(name, force=force)
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
@options.for_node
@NAME
def send(node: ddib_fed.Node, name: str) -> None:
    """Send a proposed calibration to its target again, and store the target's signature when it comes."""
    signed = node.calibrations.send(name)[0]
    _say_sent(signed.calibration, node, complete=signed.complete)
    target = signed.calibration.target.institution
    outcome(sha256=signed.sha256, target=target, agreed=signed.complete)


@calibrate.command(name="list", short_help="List those of this node.")
@options.for_node
def list_(node: ddib_fed.Node) -> None:
    """List the calibrations of this node, the newest first."""
    calibrations, stored, published = (
        node.calibrations,
        node.calibrations.list(),
        node.calibrations.published(),
    )

    def text() -> None:
        rows = [
            [each.sha256[:12], each.kind, f"{each.source} to {each.target}", each.dial, each.state,
             f"{each.expires:%Y-%m-%d}"]
            for each in stored
        ]  # fmt: skip
        if stored:
            print_table("", ["!calibration", "kind", "from, to", "dial", "state", "expires"], rows)
        else:
            say("no calibrations yet: ddib calibrate --peer INSTITUTION/DOMAIN")
        if warnings := [f"{each.sha256[:12]}: {each.warning}" for each in stored if each.warning]:
            say(*warnings)
        aggregates = [
            [each.sha256[:12], each.time[:10], f"{each.counted} {each.unit}s", f"{each.epsilon:g}",
             f"{each.delta:g}", ", ".join(each.peers) or "none"]
            for each in published
        ]  # fmt: skip
        if published:
            columns = ["!aggregate", "published", "over", ">epsilon", ">delta", "peers that have it"]
            print_table("", columns, aggregates)
            say(f"together     {calibrations.together()}, also if the peers compare what they have")

    emit({"calibrations": stored, "published": published}, text)
    for problem in calibrations.problems():
        say(f"not read: {problem}", err=True)


@calibrate.command(
    short_help="Show one, and verify its signatures.",
    epilog="\b\nExample:\n  ddib calibrate show 1f3b5c7d9e0a --out calibration.json",
)
@options.for_node
@NAME
@option(
    "--out FILE",
    "Also write it with its signatures, e.g. for `ddib model train --calibration`; an existing file is kept.",
)
def show(node: ddib_fed.Node, name: str, out: Path | None) -> None:
    """Show a calibration of this node, and verify its signatures."""
    calibrations = node.calibrations
    stored = calibrations.get(name)
    if out is not None:
        stored.save(out)
    row = next(each for each in calibrations.list() if each.sha256 == stored.sha256.hex())
    signatures = calibrations.signatures(stored)

    def text() -> None:
        show_calibration(stored.calibration)
        state = f"{row.state}, here since {stored.added:%Y-%m-%d %H:%M} UTC"
        lines(listed("", {"state": state, "signatures": signatures, "written": out}))

    content = stored.calibration.model_dump(mode="json", exclude_none=True)
    emit({**asdict(row), "signatures": signatures, "calibration": content}, text)


@calibrate.command(short_help="Stop using one.")
@options.for_node
@NAME
def remove(node: ddib_fed.Node, name: str) -> None:
    """Stop using a calibration; new contracts with it are refused at once.

    It is kept, so that results made with it can be explained, and the peer cannot bring it back. A second time its
    file is deleted too.
    """
    removed = node.calibrations.remove(name)
    gone = not removed.active
    say(f"{removed.short} is deleted" if gone else f"{removed.short} is no longer used, without a restart")
    outcome(removed=removed.sha256, deleted=gone)


# What is shown and asked


def _say_sent(calibration: ddib_fed.Calibration, node: ddib_fed.Node, *, complete: bool) -> None:
    short, institution = calibration.sha256.hex()[:12], calibration.target.institution
    if complete:
        say(f"agreed       both institutions have signed {short}", *how_jobs_use(calibration, node))
        return
    say(
        f"proposed     {short} waits for the operator of {institution}, who runs there:",
        f"  ddib calibrate accept {short} --config node.toml",
        "then, here:",
        f"  ddib calibrate send {short} --config {shlex.quote(str(node.config.path))}",
    )


def _confirm(question: str, *, yes: bool) -> None:
    """Raise unless the operator agrees."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint="look at what is shown above, then add --yes")
    if not options.confirm(question):
        raise Cancelled("not confirmed; nothing left and nothing was signed", hint="the same command again")


def show_calibration(calibration: ddib_fed.Calibration) -> None:
    """Print what a calibration is, how it was made, and what it does, a line each."""
    making, effect = calibration.made, calibration.effect
    anchored = making.method == "anchors"
    theirs = f"an aggregate over {making.target_pictures} {making.target_unit}s of the target"
    if not making.aggregate_sha256:
        theirs = f"one that was not {calibration.target.institution}'s; the figures are of those"
    crossed = "nothing but the calibration itself"
    if making.crossed_bytes:
        where = "" if calibration.target.institution else "nothing in one process; between nodes "
        crossed = f"{where}{size(making.crossed_bytes)} of aggregate, once"
    if making.epsilon is not None and making.delta is not None:
        crossed += (
            f", with noise: epsilon {making.epsilon:g}, delta {making.delta:g} for each {making.target_unit}"
        )
    before, after = effect.distance_before, effect.distance
    of = "mean squared, each anchor by a map of the others" if anchored else "of the colours to the target's"
    lines(
        {
            "calibration": f"{calibration.kind}, {calibration.source} to {calibration.target}",
            "made from": f"{making.anchors} anchors, pictures of the same things in both domains"
            if anchored
            else f"{making.source_pictures} pictures of the source, and {theirs}",
            "error" if anchored else "distance": f"{before} without it, {after} with it: {of}",
            "gain" if anchored else "margin": f"{effect.margin}, as a share of that without it",
            **{name: str(figure) for name, figure in effect.figures.items()},
            **({"contrast": f"{making.contrast}, as its operators say"} if making.contrast else {}),
            "crosses": crossed,
            "dial": str(calibration.dial),
            "expires": f"{calibration.expires:%Y-%m-%d}",
            "sha256": calibration.sha256.hex(),
            **({"forced": "its figures were refused, and --force took it"} if effect.forced else {}),
        }
    )


def how_jobs_use(calibration: ddib_fed.Calibration, node: ddib_fed.Node) -> tuple[str, ...]:
    """Return what a source does, once both have signed, so that its jobs use it: lines for its operator."""
    short, target, config = calibration.sha256.hex()[:12], calibration.target.institution, node.config
    if node.calibrations.usable(calibration):
        return (f"jobs to {target} use it from now on; ddib translate --calibration none leaves it out",)
    file, model = config.folder / f"{short}.json", config.paths.bundle
    images = config.train.pictures(config.folder) or "PICTURES"
    which = "--images" if images == "PICTURES" or Path(images).is_absolute() else "--domain"
    trained = config.folder / f"{model.name}-{short}"
    train = ["--init", str(model), "--calibration", str(file), "--out", str(trained)]
    return (
        f"jobs to {target} use it once this node's model is trained with it:",
        f"  ddib calibrate show {short} {shlex.join(['--out', str(file), '--config', str(config.path)])}",
        f"  ddib model train {shlex.join([which, images, *train])}",
        f'then [model] bundle = "{trained.name}" in {config.path}, and restart the node',
    )
