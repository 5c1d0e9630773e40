"""Makes a calibration, with a peer's node or of two models in this process, and measures one."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import numpy as np

from ddib_fed.calibration.aggregate import DELTA, Aggregate
from ddib_fed.calibration.fit import judge
from ddib_fed.calibration.record import (
    RETRAINED,
    CalibratedSide,
    Calibration,
    Kind,
    check_models,
    read_calibration,
    units_digest,
    write_calibration,
)
from ddib_fed.cli import options
from ddib_fed.cli.calibrate_showing import confirmed, how_jobs_use, interval, show_calibration
from ddib_fed.cli.options import open_model, usual_threads
from ddib_fed.data.fitting import PictureRule
from ddib_fed.data.shipped import SHIPPED
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine import arrays
from ddib_fed.engine.local_party import open_party
from ddib_fed.errors import (
    AlreadyExists,
    CalibrationIneffective,
    CalibrationKindDenied,
    InputError,
    ModelNotFound,
    UsageError,
)
from ddib_fed.evaluation.metrics import picture_rule
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.catalogue import shipped_names
from ddib_fed.models.units import Normalisation
from ddib_fed.names import is_domain, is_institution
from ddib_fed.networks.placement import torch_threads
from ddib_fed.terminal import bar, console, emit, number, outcome, print_table, say
from ddib_fed.training import calibrating
from ddib_fed.training.sources import spaced

EVALUATED = 32
"""Most pictures that `--evaluate` translates."""


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """What a calibration is to be made of; `pictures` are this side's and, in one process, the target's."""

    kind: Kind
    pictures: tuple[str, ...]
    anchors: tuple[Path, Path] | None
    days: int
    seed: int
    force: bool


class _Target(Protocol):
    """The other side: a `CalibrationPeer`, or a model in this process."""

    def aggregate(self) -> Aggregate: ...

    def units(self) -> Normalisation: ...

    def picture_rule(self, shape: tuple[int, ...]) -> PictureRule: ...


@dataclass(frozen=True, slots=True)
class _LocalTarget:
    """A target's model in this process. Nothing leaves: noise that the seed repeats shows what would."""

    bundle: Bundle
    pictures: str | None
    epsilon: float
    seed: int

    def aggregate(self) -> Aggregate:
        counted = calibrating.count_pictures(self.bundle, self.pictures, epsilon=self.epsilon)
        for line in counted.notes:
            say(line, err=True)
        # Another stream than the search's.
        return counted.noised(self.epsilon, DELTA, np.random.default_rng((self.seed, 1)))

    def units(self) -> Normalisation:
        return self.bundle.manifest.normalisation.plain

    def picture_rule(self, shape: tuple[int, ...]) -> PictureRule:
        del shape
        return picture_rule(self.bundle.manifest)


def _fitted(
    asked: CalibrateOptions,
    command: str,
    bundle: Bundle,
    own: CalibratedSide,
    to: tuple[str, str],
    target: _Target,
) -> Calibration:
    """A calibration from anchors, or from own pictures and the target's aggregate; `to`: institution and domain."""
    units = bundle.manifest.normalisation.plain
    command = f"ddib calibrate {command} --kind {asked.kind} --seed {asked.seed}"

    def wanted(sha256: str) -> calibrating.CalibrationRequest:
        other = CalibratedSide(institution=to[0], domain=to[1], units_sha256=sha256)
        how = " --anchors" if asked.anchors is not None else ""
        return calibrating.CalibrationRequest(
            asked.kind, own, other, asked.days, command + how, asked.seed, asked.force
        )

    if asked.anchors is not None:
        theirs = target.units()
        rules = picture_rule(bundle.manifest), target.picture_rule(bundle.manifest.sample_shape)
        anchors = calibrating.anchors_of(rules, asked.anchors)
        with console(stderr=True).status(f"fitting the {asked.kind} to {len(anchors.names)} anchors"):
            return calibrating.from_anchors(anchors, (units, theirs), wanted(units_digest(theirs)))
    aggregate = target.aggregate()
    say(*aggregate.describe().split("\n"), err=True)
    pictures = calibrating.domain_pictures(bundle, asked.pictures[0] if asked.pictures else None).train
    with console(stderr=True).status(f"fitting the {asked.kind} to {len(pictures)} own pictures"):
        return calibrating.from_aggregate(pictures, units, aggregate, wanted(aggregate.units_sha256))


def make(asked: CalibrateOptions, local: tuple[str, str], *, epsilon: float, out: Path) -> None:
    """`--local`: make a calibration of two models, write it, and print what is known of it."""
    if out.exists():
        raise AlreadyExists(f"{out} exists", hint="name another file with --out, or remove this one")
    _own, others = two_folders(asked.pictures)
    if asked.anchors is not None:
        idle = ("pictures", "epsilon")
        options.refuse_idle(idle, "is for aggregates, not for --anchors", hint="leave it out")
    source, target = (open_model(name) for name in local)
    first, second = source.manifest, target.manifest
    calibrating.check_models(first, second, asked.kind, anchored=asked.anchors is not None)
    command = f"--local {shlex.join((first.domain, second.domain))}"
    command += "" if asked.anchors is not None else f" --epsilon {epsilon:g}"
    there = _LocalTarget(target, others, epsilon, asked.seed)
    with torch_threads(usual_threads()):
        found = _fitted(asked, command, source, calibrating.side(first), ("", second.domain), there)
    write_calibration(found, out)
    model, other = map(shlex.quote, local)
    file, domain = shlex.quote(str(out)), found.source.domain
    following = (
        f"ddib translate PICTURES --source {model} --target {other} --calibration {file} --out calibrated"
    )
    if found.kind in RETRAINED:
        own = f"--domain {domain}" if domain in SHIPPED and model == domain else "--images PICTURES"
        more = f"--calibration {file} --steps 600 --out {shlex.quote(domain)}-calibrated"
        following = f"ddib model train {own} --init {model} {more}"

    def text() -> None:
        show_calibration(found)
        say(f"written      {out}", "next:", f"  {following}")

    emit(found, text)


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


def agree(
    asked: CalibrateOptions, peer_name: str, config_path: Path, *, existing: Path | None, yes: bool
) -> None:
    """`--peer`: fetch the peer's aggregate, fit with own pictures, show, ask, sign, send and store."""
    from ddib_fed.node.calibration_peer import CalibrationPeer
    from ddib_fed.node.calibrations import allow, require_role, send
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.role import load_hosted

    institution, _, domain = peer_name.partition("/")
    if not is_institution(institution) or not is_domain(domain):
        raise UsageError(
            f"{peer_name!a} is not INSTITUTION/DOMAIN",
            hint="e.g. --peer south.example/relief; ddib peer list",
        )
    config = NodeConfig.load(config_path)
    require_role(config, "source", "ddib calibrate --peer")
    if existing is None and asked.kind not in config.policy.calibration:
        raise CalibrationKindDenied(
            f"policy.calibration of {config.path} does not list {asked.kind}",
            hint=f"{allow(asked.kind, config.policy)} in {config.path}, then restart the node",
        )
    if not asked.pictures and (named := config.train.pictures(config.folder)) is not None:
        asked = replace(asked, pictures=(str(named),))
    bundle = load_hosted(config)
    own = CalibratedSide(
        institution=config.node.institution,
        domain=config.model.domain,
        units_sha256=units_digest(bundle.manifest.normalisation),
    )
    with CalibrationPeer(config, institution, domain) as peer:
        if existing is not None:
            made = _existing(existing, asked, own, (institution, domain))
        else:
            made = _fitted(asked, f"--peer {peer_name}", bundle, own, (institution, domain), peer)
        show_calibration(made)
        say(
            f"would leave  {len(made.canonical)} bytes of calibration with the numbers and figures above, and this "
            f"node's signature and certificate, to {institution}; no picture and no part of one",
            err=True,
        )
        confirmed("Sign this calibration and send it?", yes=yes)
        signed = send(config, made, peer, now=datetime.now(UTC))
    short = signed.short
    say(f"crossed      {', '.join(f'{name} {count} bytes' for name, count in peer.crossed.items())}")
    if signed.complete:
        say(f"agreed       both institutions have signed {short}", *how_jobs_use(signed.calibration, config))
    else:
        say(
            f"proposed     {short} waits for the operator of {institution}, who runs there:",
            f"  ddib calibrate accept {short} --config node.toml",
            "then, here:",
            f"  ddib calibrate send {short} --config {shlex.quote(str(config.path))}",
        )
    outcome(
        sha256=signed.sha256,
        state="signed" if signed.complete else "pending",
        crossed=peer.crossed,
        calibration=made.model_dump(mode="json", exclude_none=True),
    )


def _existing(file: Path, asked: CalibrateOptions, own: CalibratedSide, to: tuple[str, str]) -> Calibration:
    """The map of a calibration in a file, proposed with the figures that it has; the peer checks its own units."""
    from ddib_fed.node.calibrations import refuse_doubtful

    found = read_calibration(file)
    if found.source.units_sha256 != own.units_sha256:
        raise InputError(
            f"{file} was made for a model of other units than that of this node",
            hint="make one for this model, or leave out --from",
        )
    if not asked.force:
        refuse_doubtful(found)
    made = found.made
    if found.target.institution != to[0]:
        nothing = {"aggregate_sha256": "", "crossed_bytes": 0, "epsilon": None, "delta": None}
        made = made.model_copy(update=nothing)
    target = CalibratedSide(institution=to[0], domain=to[1], units_sha256=found.target.units_sha256)
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=asked.days)
    return found.model_copy(update={"source": own, "target": target, "made": made, "expires": ends})


def evaluate(asked: CalibrateOptions, file: Path, local: tuple[str, str] | None, *, evaluations: int) -> None:
    """`--evaluate`: print what is known of a calibration, from pictures that it was not fitted to."""
    calibration, anchors = read_calibration(file), asked.anchors
    source, target = _models(calibration, local)
    ways, folders = _ways(calibration, source, target), two_folders(asked.pictures)
    own, other = map(calibrating.domain_pictures, (source, target), folders)
    units = source.manifest.normalisation.plain, target.manifest.normalisation.plain
    rows = [calibrating.colour_distance(own.train, other.train, calibration.map, units)]
    truth = (
        calibrating.shipped_truth(source, target, EVALUATED)
        if anchors is None
        else calibrating.anchors_of((picture_rule(source.manifest), picture_rule(target.manifest)), anchors)
    )
    given = truth.source if truth is not None else spaced(own.held_out, EVALUATED)
    said = f"{len(given)} held-out pictures; their true translations are not known."
    if ways is None:
        said = (
            "The source's model was not trained with this map, so only the map itself is measured. "
            "`ddib model train --init MODEL --calibration FILE` trains it."
        )
    else:
        with bar("translating") as show:
            stages = calibrating.there_and_back(
                given,
                ways,
                arrays.ArraySettings(SolverSettings(evaluations=evaluations), seed=asked.seed),
                on_progress=lambda done, total: show(done, total, ""),
            )
        rows += calibrating.unpaired(given, stages)
        if truth is not None:
            rows += calibrating.paired(stages, calibrating.map_alone(given, calibration.map, units), truth)
            places = "test pictures of places that neither model was trained on"
            said = f"{len(given)} {'anchors' if anchors else places}, whose true translations are known."
    notes = [said, "Intervals of 95 %. `map alone`: the channels mapped, without any network."]
    columns = ["figure", ">without", ">with", ">gain", "", ">map alone"]

    def text() -> None:
        show_calibration(calibration)
        say()
        table = [
            [
                row.name,
                *("" if each is None else number(each.value) for each in (row.without, row.calibrated)),
                "" if row.gain is None else interval(row.gain),
                row.verdict,
                "" if row.alone is None else number(row.alone.value),
            ]
            for row in rows
        ]
        print_table("Without and with it", columns, table)
        say(*notes)

    values = {"calibration": calibration, "sha256": calibration.sha256, "figures": rows, "notes": notes}
    emit(values, text)
    if not asked.force:
        _refuse(calibration, rows)


def _models(calibration: Calibration, local: tuple[str, str] | None) -> tuple[Bundle, Bundle]:
    """The two models, checked to be those that the calibration is for."""
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


def _ways(calibration: Calibration, source: Bundle, target: Bundle) -> calibrating.Ways | None:
    """The models of the comparison; None if the source's model would have to be trained with the map first."""
    retrained, domain = calibration.kind in RETRAINED, calibration.source.domain
    if retrained and source.manifest.normalisation.calibrated is None:
        return None
    decoder, party = (open_party(model, threads=usual_threads()) for model in (target, source))
    if not retrained:
        return calibrating.Ways(decoder, party, calibration.map, party)
    # Beside it the source's model before it was trained with the map, if that ships.
    plain = open_party(open_model(domain), threads=usual_threads()) if domain in shipped_names() else None
    return calibrating.Ways(decoder, party, None, plain)


def _refuse(calibration: Calibration, rows: list[calibrating.Compared]) -> None:
    """With a truth, a calibration must gain in PSNR or SSIM and lose in neither; else colours must come nearer."""
    judged = [row for row in rows if row.judges and row.verdict] or rows[:1]
    verdicts = [row.verdict for row in judged]
    if "better" not in verdicts or "worse" in verdicts:
        gains = "; ".join(
            f"{row.name} {interval(row.calibrated) if row.gain is None else f'changes by {interval(row.gain)}'}"
            for row in judged
        )
        raise CalibrationIneffective(
            f"the calibration is not better than none: {gains}",
            hint="calibrate from anchors (--anchors A_DIR B_DIR), or use it anyway with --force",
        )
    if judged == rows[:1]:
        judge(calibration.effect)
