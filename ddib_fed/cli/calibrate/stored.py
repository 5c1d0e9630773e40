"""`ddib calibrate accept|send|list|show|remove`: the calibrations of this node."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.calibrate.asking import YES, confirmed
from ddib_fed.cli.calibrate.showing import how_jobs_use, show_calibration
from ddib_fed.cli.help import command
from ddib_fed.cli.output import moment, outcome, print_json, print_table
from ddib_fed.errors import RefusedError
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.node.calibration.published import Publication
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust.calibrations.signing import Side, SignedCalibration
    from ddib_fed.trust.calibrations.store import CalibrationStore, Stored

NAME = click.argument("name", metavar="DIGEST")


def _open(config_path: Path) -> tuple[NodeConfig, CalibrationStore]:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust.calibrations.store import CalibrationStore

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
    from ddib_fed.node.calibration import agreeing

    config, store = _open(config_path)
    stored = store.named(name)
    show_calibration(stored.signed.calibration)
    if not force:
        agreeing.refuse_doubtful(stored.signed.calibration)
    confirmed("Sign this calibration?", yes=yes)
    signed = agreeing.accept(config, stored, now=datetime.now(UTC), force=force)
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
    from ddib_fed.node.calibration import agreeing
    from ddib_fed.node.calibration.peer import calling

    config, store = _open(config_path)
    calibration = store.named(name).signed.calibration
    agreeing.require_role(config, "source", "ddib calibrate send")
    with calling(config, calibration.target.institution, calibration.target.domain) as peer:
        signed = agreeing.send(config, calibration, peer, now=datetime.now(UTC))
    short, target = signed.sha256.hex()[:12], calibration.target.institution
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
    from ddib_fed.node.calibration.published import publications

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
        _show_published(published)
    for problem in store.problems():
        say(f"not read: {problem}", err=True)


def _show_published(published: Sequence[Publication]) -> None:
    """What this node has published, to whom it went, and what it costs together."""
    from ddib_fed.node.calibration.published import spent

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
    say(f"together     {spent(published)}, also if the peers compare what they have")


def _row(stored: Stored, now: datetime) -> dict[str, str]:
    calibration = stored.signed.calibration
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
    from ddib_fed.files import write_file
    from ddib_fed.node.calibration.published import publications, spent
    from ddib_fed.trust.calibrations.signing import SIDES

    config, store = _open(config_path)
    stored = store.named(name)
    signed, now = stored.signed, datetime.now(UTC)
    if out is not None:
        write_file(out, signed.model_dump_json(indent=2, exclude_none=True).encode() + b"\n", overwrite=False)
    checked = {side: _checked(config, signed, side, now) for side in SIDES}
    if output_format == "json":
        content = signed.calibration.model_dump(mode="json", exclude_none=True)
        print_json({**_row(stored, now), "signatures": checked, "calibration": content})
        return
    show_calibration(signed.calibration)
    say(f"state        {stored.state(now)}, here since {stored.added:%Y-%m-%d %H:%M} UTC")
    if published := publications(config):
        say(f"published    {spent(published)}")
    for side, text in checked.items():
        say(f"signed       {side}: {text}")
    if out is not None:
        say(f"written      {out}")


def _checked(config: NodeConfig, signed: SignedCalibration, side: Side, now: datetime) -> str:
    """Who signed for a side and when, or what is wrong with the signature."""
    from ddib_fed.node.admitting import peer_store
    from ddib_fed.trust.calibrations.signing import verify_side

    peers = peer_store(config).snapshot()
    try:
        signer = verify_side(signed, side, pins=peers.pins, withdrawn=peers.withdrawn, now=now)
    except RefusedError as error:
        return f"{error.detail}  [{error.reason}]"
    signature = signed.signature_of(side)
    assert signature is not None
    return f"{signer}, {signature.signed_at:%Y-%m-%d %H:%M} UTC"


@command(short_help="Stop using one.")
@options.CONFIG
@NAME
@click.option("--forget", is_flag=True, help="Delete its file too; the peer may then propose it again.")
@options.OUTCOME
def remove(config_path: Path, name: str, forget: bool) -> None:
    """Stop using a calibration; new contracts with it are refused at once.

    It is kept, so that results made with it can be explained, and the peer cannot bring it back.
    """
    from ddib_fed.node.calibration import agreeing

    config, store = _open(config_path)
    stored = store.named(name)
    agreeing.take_out_of_use(config, stored, forget=forget)
    say(f"{stored.sha256.hex()[:12]} is no longer used, without a restart")
    outcome(removed=stored.sha256, forgotten=forget)
