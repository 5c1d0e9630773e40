"""`ddib calibrate --peer`: agree on a calibration with another institution's node."""

from __future__ import annotations

import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.cli import options
from ddib_fed.cli.calibrate_showing import confirmed, how_jobs_use, interval, show_calibration, show_compared
from ddib_fed.cli.opening import open_model
from ddib_fed.cli.output import print_json
from ddib_fed.errors import (
    AlreadyExists,
    CalibrationIneffective,
    CalibrationKindDenied,
    InputError,
    ModelNotFound,
    UsageError,
)
from ddib_fed.names import is_domain, is_institution
from ddib_fed.terminal import bar, console, say

if TYPE_CHECKING:
    from ddib_fed.calibration.record import CalibratedSide, Calibration, Kind
    from ddib_fed.calibration.signed import SignedCalibration
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.node.calibration_peer import CalibrationPeer
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.training.calibrating import Anchors, Compared, Wanted, Ways


Folders = tuple[Path, Path]


def evaluate(
    *,
    evaluate: Path,
    local: tuple[str, str] | None,
    without: str | None,
    pictures: tuple[str, ...],
    anchors: Folders | None,
    count: int,
    evaluations: int,
    seed: int,
    threads: int,
    force: bool,
    output_format: str,
) -> None:
    """Print what is known of a calibration, from pictures that it was not fitted to."""
    from ddib_fed.calibration.record import read_calibration
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.engine.arrays import Asked
    from ddib_fed.training import calibrating
    from ddib_fed.training.calibrating import domain_pictures
    from ddib_fed.training.sources import spaced

    calibration = read_calibration(evaluate)
    source, target = _models(calibration, local)
    folders = two_folders(pictures)
    ways = _ways(calibration, source, target, without, threads)
    own, other = (
        domain_pictures(model, folder) for model, folder in zip((source, target), folders, strict=True)
    )
    units = source.manifest.normalisation.plain, target.manifest.normalisation.plain
    rows = [calibrating.colour_distance(own.train, other.train, calibration.map, units)]
    truth = _truth(source, target, anchors, count)
    given = truth.source if truth is not None else spaced(own.held_out, count)
    if ways is not None:
        with bar("translating") as show:
            stages = calibrating.there_and_back(
                given,
                ways,
                Asked(SolverSettings(evaluations=evaluations), seed=seed),
                on_progress=lambda done, total: show(done, total, ""),
            )
        rows += calibrating.unpaired(given, stages)
        if truth is not None:
            mapped = calibrating.map_alone(given, calibration.map, units)
            rows += calibrating.paired(stages, mapped, truth)
    _print(calibration, rows, _said(truth, anchors, len(given), ways), output_format)
    _refuse(calibration, rows, force=force)


def two_folders(pictures: tuple[str, ...]) -> tuple[str | None, str | None]:
    """What --pictures names of A and of B."""
    if not pictures:
        return None, None
    if len(pictures) != 2:
        raise UsageError(
            f"--pictures is given {len(pictures)} times; it names A's pictures and then B's",
            hint="--pictures A_FOLDER --pictures B_FOLDER",
        )
    return pictures[0], pictures[1]


def _models(calibration: Calibration, local: tuple[str, str] | None) -> tuple[Bundle, Bundle]:
    """The two models, checked to be those that the calibration is for."""
    from ddib_fed.calibration.record import check_models

    names = local or (calibration.source.domain, calibration.target.domain)
    try:
        source, target = (open_model(name) for name in names)
    except ModelNotFound as error:
        if local is not None:
            raise
        raise UsageError(
            f"no model of {names[0]} or {names[1]} ships, so both models have to be named",
            hint=f"ddib calibrate --evaluate FILE --local {names[0]}-MODEL {names[1]}-MODEL",
        ) from error
    check_models(calibration, source.manifest, target.manifest)
    return source, target


def _ways(
    calibration: Calibration, source: Bundle, target: Bundle, without: str | None, threads: int
) -> Ways | None:
    """The models of the comparison; None if the source's model would have to be trained with the map first."""
    from ddib_fed.calibration.record import RETRAINED
    from ddib_fed.engine.local_party import open_party
    from ddib_fed.training.calibrating import Ways

    decoder = open_party(target, threads=threads)
    if calibration.kind not in RETRAINED:
        if without is not None:
            raise UsageError("--without is for tone and colour-map", hint="leave --without out")
        party = open_party(source, threads=threads)
        return Ways(decoder, party, calibration.map, party)
    if source.manifest.normalisation.calibrated is None:
        return None
    before = without or (calibration.source.domain if _ships(calibration.source.domain) else None)
    plain = None if before is None else open_party(open_model(before), threads=threads)
    return Ways(decoder, open_party(source, threads=threads), None, plain)


def _ships(domain: str) -> bool:
    from ddib_fed.models.catalogue import shipped_names

    return domain in shipped_names()


def _truth(source: Bundle, target: Bundle, anchors: Folders | None, count: int) -> Anchors | None:
    from ddib_fed.training.calibrating import folder_anchors, shipped_truth

    if anchors is not None:
        return folder_anchors(source, target, anchors)
    return shipped_truth(source, target, count)


def _said(truth: Anchors | None, anchors: Folders | None, count: int, ways: Ways | None) -> list[str]:
    """What the figures are of."""
    said = []
    if ways is None:
        said.append(
            "The source's model was not trained with this map, so only the map itself is measured. "
            "`ddib model train --init MODEL --calibration FILE` trains it."
        )
    elif truth is None:
        said.append(f"{count} held-out pictures; their true translations are not known.")
    else:
        what = (
            "anchors" if anchors is not None else "test pictures of places that neither model was trained on"
        )
        said.append(f"{count} {what}, whose true translations are known.")
    said.append("Intervals of 95 %. `map alone`: the channels mapped, without any network.")
    return said


def _print(calibration: Calibration, rows: list[Compared], said: list[str], output_format: str) -> None:
    if output_format == "json":
        print_json({"calibration": calibration, "sha256": calibration.sha256, "figures": rows, "notes": said})
        return
    show_calibration(calibration)
    say()
    show_compared("Without and with it", rows)
    say(*said)


def _refuse(calibration: Calibration, rows: list[Compared], *, force: bool) -> None:
    """With a truth, a calibration must gain in PSNR or SSIM and lose in neither; else colours must come nearer."""
    from ddib_fed.calibration.fit import judge

    if force:
        return
    judged = [row for row in rows if row.judges and row.verdict] or rows[:1]
    verdicts = [row.verdict for row in judged]
    if "better" not in verdicts or "worse" in verdicts:
        gains = "; ".join(f"{row.name} {_signed(row)}" for row in judged)
        raise CalibrationIneffective(
            f"the calibration is not better than none: {gains}",
            hint="calibrate from anchors (--anchors A_DIR B_DIR), or use it anyway with --force",
        )
    if judged == rows[:1]:
        judge(calibration.effect)


def _signed(row: Compared) -> str:
    return interval(row.calibrated) if row.gain is None else f"changes by {interval(row.gain)}"


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
    from ddib_fed.node.calibration_peer import calling
    from ddib_fed.node.calibrations import require_role, send
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
    from ddib_fed.node.calibrations import allow

    if asked.existing is None and asked.kind not in config.policy.calibration:
        raise CalibrationKindDenied(
            f"policy.calibration of {config.path} does not list {asked.kind}",
            hint=f"{allow(asked.kind, config.policy)} in {config.path}, then restart the node",
        )


def _from_aggregate(asked: Asked, config: NodeConfig, bundle: Bundle, peer: CalibrationPeer) -> Calibration:
    """A calibration from the peer's aggregate and own pictures."""
    from ddib_fed.training.calibrating import domain_pictures, from_aggregate

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
    from ddib_fed.calibration.record import units_digest
    from ddib_fed.evaluation.metrics import picture_rule
    from ddib_fed.training.calibrating import anchors_of, from_anchors

    units = bundle.manifest.normalisation.plain, peer.units()
    anchors = anchors_of(
        (picture_rule(bundle.manifest), peer.picture_rule(bundle.manifest.sample_shape)), folders
    )
    wanted = _wanted(asked, config, bundle, units_digest(units[1]))
    with console(stderr=True).status(f"fitting the {asked.kind} to {len(anchors.names)} anchors"):
        return from_anchors(anchors, units, wanted)


def _wanted(asked: Asked, config: NodeConfig, bundle: Bundle, theirs: str) -> Wanted:
    from ddib_fed.training.calibrating import Wanted

    how = "" if asked.anchors is None else " --anchors"
    command = f"ddib calibrate --peer {asked.institution}/{asked.domain} --kind {asked.kind} --seed {asked.seed}{how}"
    sides = _sides(asked, config, bundle, theirs)
    return Wanted(asked.kind, *sides, asked.days, command, asked.seed, asked.force)


def _existing(file: Path, asked: Asked, config: NodeConfig, bundle: Bundle, now: datetime) -> Calibration:
    """The map of a calibration in a file, proposed with the figures that it has; the peer checks its own units."""
    from ddib_fed.calibration.record import read_calibration
    from ddib_fed.node.calibrations import refuse_doubtful

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
    from ddib_fed.calibration.record import CalibratedSide, units_digest

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


def make(
    *,
    local: tuple[str, str],
    kind: Kind,
    pictures: tuple[str, ...],
    anchors: Folders | None,
    epsilon: float,
    delta: float,
    days: int,
    seed: int,
    threads: int,
    out: Path,
    force: bool,
    output_format: str,
) -> None:
    """Make a calibration of two models, write it, and print what is known of it."""
    from ddib_fed.calibration.record import write_calibration
    from ddib_fed.networks.placement import torch_threads
    from ddib_fed.training.calibrating import Wanted, check_models, side

    if out.exists():
        raise AlreadyExists(f"{out} exists", hint="name another file with --out, or remove this one")
    folders = two_folders(pictures)
    if anchors is not None:
        options.refuse_idle(
            ("pictures", "epsilon", "delta"), "is for aggregates, not for --anchors", hint="leave it out"
        )
    source, target = (open_model(name) for name in local)
    check_models(source.manifest, target.manifest, kind, anchored=anchors is not None)
    how = "--anchors" if anchors is not None else f"--epsilon {epsilon:g} --delta {delta:g}"
    wanted = Wanted(
        kind,
        side(source.manifest),
        side(target.manifest),
        days,
        f"ddib calibrate --local {shlex.join(each.manifest.domain for each in (source, target))} "
        f"--kind {kind} --seed {seed} {how}",
        seed,
        force,
    )
    with torch_threads(threads), console(stderr=True).status(f"fitting the {kind}"):
        if anchors is not None:
            found = _local_from_anchors(source, target, anchors, wanted)
        else:
            found = _local_from_aggregate(source, target, folders, (epsilon, delta), wanted)
    write_calibration(found, out)
    if output_format == "json":
        print_json(found)
        return
    show_calibration(found)
    say(f"written      {out}", "next:", f"  {_next(found, local, out)}")


def _local_from_aggregate(
    source: Bundle,
    target: Bundle,
    folders: tuple[str | None, str | None],
    privacy: tuple[float, float],
    wanted: Wanted,
) -> Calibration:
    import numpy as np

    from ddib_fed.training.calibrating import count_pictures, domain_pictures, from_aggregate

    own, other = folders
    epsilon, delta = privacy
    counted = count_pictures(target, other, epsilon=epsilon)
    for line in counted.notes:
        say(line, err=True)
    # Nothing leaves: noise that the seed repeats shows what an aggregate of this epsilon would give.
    generator = np.random.default_rng((wanted.seed, 1))  # another stream than the search's
    aggregate = counted.noised(epsilon, delta, generator)
    pictures = domain_pictures(source, own).train
    return from_aggregate(pictures, source.manifest.normalisation, aggregate, wanted)


def _local_from_anchors(source: Bundle, target: Bundle, folders: Folders, wanted: Wanted) -> Calibration:
    from ddib_fed.training.calibrating import folder_anchors, from_anchors

    found = folder_anchors(source, target, folders)
    return from_anchors(found, (source.manifest.normalisation, target.manifest.normalisation), wanted)


def _next(found: Calibration, local: tuple[str, str], out: Path) -> str:
    """The command that uses a calibration."""
    from ddib_fed.calibration.record import RETRAINED

    first, second = (shlex.quote(name) for name in local)
    file = shlex.quote(str(out))
    if found.kind in RETRAINED:
        return (
            f"ddib model train {_data(found, first)} --init {first} --calibration {file} --steps 600 "
            f"--out {shlex.quote(found.source.domain)}-calibrated"
        )
    return f"ddib translate PICTURES --source {first} --target {second} --calibration {file} --out calibrated"


def _data(found: Calibration, model: str) -> str:
    from ddib_fed.data.shipped import SHIPPED

    domain = found.source.domain
    return f"--domain {domain}" if domain in SHIPPED and model == domain else "--images PICTURES"
