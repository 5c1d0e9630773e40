"""`ddib calibrate --peer`: agree on a calibration with another institution's node."""

from __future__ import annotations

import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.cli.calibrate.asking import confirmed
from ddib_fed.cli.calibrate.showing import how_jobs_use, show_calibration
from ddib_fed.cli.output import print_json
from ddib_fed.errors import CalibrationKindDenied, InputError, UsageError
from ddib_fed.names import is_domain, is_institution
from ddib_fed.terminal import console, say

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.record import CalibratedSide, Calibration, Kind
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.node.calibration.peer import CalibrationPeer
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.runs.calibration.making import Wanted
    from ddib_fed.trust.calibrations.signing import SignedCalibration


@dataclass(frozen=True, slots=True)
class Asked:
    """What `ddib calibrate --peer` was asked for."""

    institution: str
    domain: str
    kind: Kind
    pictures: str | None
    anchors: tuple[Path, Path] | None
    existing: Path | None
    days: int
    seed: int
    force: bool
    yes: bool


def split_peer(text: str) -> tuple[str, str]:
    """Institution and domain of INSTITUTION/DOMAIN."""
    institution, _, domain = text.partition("/")
    if not is_institution(institution) or not is_domain(domain):
        raise UsageError(
            f"{text!a} is not INSTITUTION/DOMAIN", hint="e.g. --peer south.example/relief; ddib peer list"
        )
    return institution, domain


def run(config_path: Path, asked: Asked, output_format: str) -> None:
    """Fetch the peer's aggregate, fit with own pictures, show, ask, sign, send and store."""
    from ddib_fed.node.calibration.agreeing import require_role, send
    from ddib_fed.node.calibration.peer import calling
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.model import load_hosted

    config = NodeConfig.load(config_path)
    require_role(config, "source", "ddib calibrate --peer")
    _refuse_kind(config, asked)
    bundle, now = load_hosted(config), datetime.now(UTC).replace(microsecond=0)
    with calling(config, asked.institution, asked.domain) as peer:
        if asked.existing is not None:
            made = _existing(asked.existing, asked, config, bundle, now)
        elif asked.anchors is not None:
            made = _from_anchors(asked.anchors, asked, config, bundle, peer)
        else:
            made = _from_aggregate(asked, config, bundle, peer)
        with redirect_stdout(sys.stderr if output_format == "json" else sys.stdout):
            _show_leaving(made, asked)
        confirmed("Sign this calibration and send it?", yes=asked.yes)
        signed = send(config, made, peer, now=datetime.now(UTC))
        if output_format == "json":
            print_json(
                {"sha256": signed.sha256, "state": _state(signed), "crossed": peer.crossed, **_plain(made)}
            )
            return
        _show_outcome(signed, peer, config)


def _refuse_kind(config: NodeConfig, asked: Asked) -> None:
    """Before anything crosses: is the kind allowed here?"""
    from ddib_fed.node.calibration.checks import allow

    if asked.existing is None and asked.kind not in config.policy.calibration:
        raise CalibrationKindDenied(
            f"policy.calibration of {config.path} does not list {asked.kind}",
            hint=f"{allow(asked.kind, config.policy)} in {config.path}, then restart the node",
        )


def _from_aggregate(asked: Asked, config: NodeConfig, bundle: Bundle, peer: CalibrationPeer) -> Calibration:
    """A calibration from the peer's aggregate and own pictures."""
    from ddib_fed.runs.calibration.making import from_aggregate
    from ddib_fed.runs.calibration.pictures import domain_pictures

    aggregate = peer.aggregate()
    say(*aggregate.describe().split("\n"), err=True)
    pictures = domain_pictures(bundle, asked.pictures or config.train.pictures(config.folder)).train
    wanted = _wanted(asked, config, bundle, aggregate.units_sha256)
    with console(stderr=True).status(f"fitting the {asked.kind} to {len(pictures)} own pictures"):
        return from_aggregate(pictures, bundle.manifest.normalisation.plain, aggregate, wanted)


def _from_anchors(
    folders: tuple[Path, Path], asked: Asked, config: NodeConfig, bundle: Bundle, peer: CalibrationPeer
) -> Calibration:
    """A calibration from pictures of the same things that this institution holds in both modalities."""
    from ddib_fed.bridge.calibration.record import units_digest
    from ddib_fed.metrics.pictures import picture_rule
    from ddib_fed.runs.calibration.making import from_anchors
    from ddib_fed.runs.calibration.pictures import anchors_of

    units = bundle.manifest.normalisation.plain, peer.units()
    anchors = anchors_of(
        (picture_rule(bundle.manifest), peer.picture_rule(bundle.manifest.sample_shape)), folders
    )
    wanted = _wanted(asked, config, bundle, units_digest(units[1]))
    with console(stderr=True).status(f"fitting the {asked.kind} to {len(anchors.names)} anchors"):
        return from_anchors(anchors, units, wanted)


def _wanted(asked: Asked, config: NodeConfig, bundle: Bundle, theirs: str) -> Wanted:
    from ddib_fed.runs.calibration.making import Wanted

    how = "" if asked.anchors is None else " --anchors"
    command = f"ddib calibrate --peer {asked.institution}/{asked.domain} --kind {asked.kind} --seed {asked.seed}{how}"
    sides = _sides(asked, config, bundle, theirs)
    return Wanted(asked.kind, *sides, asked.days, command, asked.seed, asked.force)


def _existing(file: Path, asked: Asked, config: NodeConfig, bundle: Bundle, now: datetime) -> Calibration:
    """The map of a calibration in a file, proposed with the figures that it has; the peer checks its own units."""
    from ddib_fed.bridge.calibration.files import read_calibration
    from ddib_fed.node.calibration.agreeing import refuse_doubtful

    found = read_calibration(file)
    source, target = _sides(asked, config, bundle, found.target.units_sha256)
    if found.source.units_sha256 != source.units_sha256:
        raise InputError(
            f"{file} was made for a model of other units than that of this node",
            hint="make one for this model, or leave out --from",
        )
    if not asked.force:
        refuse_doubtful(found)
    made = found.made
    if found.target.institution != asked.institution:
        nothing = {"aggregate_sha256": "", "crossed_bytes": 0, "epsilon": None, "delta": None}
        made = made.model_copy(update=nothing)
    ends = now + timedelta(days=asked.days)
    return found.model_copy(update={"source": source, "target": target, "made": made, "expires": ends})


def _sides(
    asked: Asked, config: NodeConfig, bundle: Bundle, theirs: str
) -> tuple[CalibratedSide, CalibratedSide]:
    """Both sides, by their names as nodes."""
    from ddib_fed.bridge.calibration.record import CalibratedSide, units_digest

    own = CalibratedSide(
        institution=config.node.institution,
        domain=config.model.domain,
        units_sha256=units_digest(bundle.manifest.normalisation),
    )
    return own, CalibratedSide(institution=asked.institution, domain=asked.domain, units_sha256=theirs)


def _show_leaving(made: Calibration, asked: Asked) -> None:
    """What would leave, before it does."""
    show_calibration(made)
    say(
        f"would leave  {len(made.canonical)} bytes of calibration with the numbers and figures above, and this node's "
        f"signature and certificate, to {asked.institution}; no picture and no part of one",
        err=True,
    )


def _show_outcome(signed: SignedCalibration, peer: CalibrationPeer, config: NodeConfig) -> None:
    crossed = ", ".join(f"{name} {count} bytes" for name, count in peer.crossed.items())
    say(f"crossed      {crossed}")
    short, target = signed.sha256.hex()[:12], signed.calibration.target.institution
    if signed.complete:
        say(f"agreed       both institutions have signed {short}", *how_jobs_use(signed.calibration, config))
        return
    say(
        f"proposed     {short} waits for the operator of {target}, who runs there:",
        f"  ddib calibrate accept {short} --config node.toml",
        "then, here:",
        f"  ddib calibrate send {short} --config {shlex.quote(str(config.path))}",
    )


def _state(signed: SignedCalibration) -> str:
    return "signed" if signed.complete else "pending"


def _plain(made: Calibration) -> dict[str, object]:
    return {"calibration": made.model_dump(mode="json", exclude_none=True)}
