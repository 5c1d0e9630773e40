"""The operator's acts on calibrations, on the machine of the node: sign and send, publish, accept, take out of use.

Each act is in the node's audit log before it has any effect. A running node sees it at once, because it reads the same
files.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from ddib_fed.calibration.fit import judge
from ddib_fed.calibration.record import Calibration, Kind, leg_map, units_digest
from ddib_fed.calibration.signed import (
    RECALIBRATE,
    CalibrationStore,
    Place,
    Side,
    SignedCalibration,
    Stored,
    place_of,
    refuse_expired,
    sign,
    verify,
    verify_side,
)
from ddib_fed.errors import (
    AggregateNotFound,
    AlreadyExists,
    CalibrationForeign,
    CalibrationIneffective,
    CalibrationInvalid,
    CalibrationKindDenied,
    CalibrationModel,
    CalibrationSigner,
    CalibrationUnits,
    CalibrationUnknown,
    ConfigError,
    DdibError,
    InputError,
    PolicyDenied,
    RefusedError,
    StateConflict,
    Unauthenticated,
)
from ddib_fed.files import private_folder, read_small, write_file
from ddib_fed.models.manifest import Manifest
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.calibration_peer import CalibrationPeer
from ddib_fed.node.certificates import not_accepted, own_credentials
from ddib_fed.node.config import PolicySection
from ddib_fed.node.model import load_hosted
from ddib_fed.node.role import NodeContext
from ddib_fed.security.audit import note, parsed
from ddib_fed.security.audit_reading import lines_of
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import PeerStore, Snapshot
from ddib_fed.security.pki import Credentials

if TYPE_CHECKING:
    from ddib_fed.calibration.aggregate import Aggregate
    from ddib_fed.node.config import NodeConfig, Role


def usable_calibration(
    node: NodeContext, sha256: bytes, *, source: Place, target: Place, side: Side, now: datetime | None = None
) -> Calibration:
    """The stored calibration of a digest, if this node may use it now."""
    stored = node.calibrations.find(sha256)
    if stored is None or not stored.active:
        gone = "is not stored here" if stored is None else "was taken out of use here"
        raise CalibrationUnknown(
            f"the calibration {sha256.hex()[:12]} {gone}",
            hint="ddib calibrate list",
            facts={"calibration": sha256.hex()},
        )
    check_terms(
        stored.signed.calibration,
        source=source,
        target=target,
        side=side,
        units=node.units_sha256,
        policy=node.config.policy,
    )
    peers = node.peers.snapshot()
    return verify(stored.signed, pins=peers.pins, withdrawn=peers.withdrawn, now=now or datetime.now(UTC))


def check_terms(
    calibration: Calibration, *, source: Place, target: Place, side: Side, units: str, policy: PolicySection
) -> None:
    """Return if a calibration is between these domains, in this node's units, and of an allowed kind."""
    found = place_of(calibration.source), place_of(calibration.target)
    if found != (source, target):
        raise CalibrationForeign(
            f"the calibration leads from {_text(found[0])} to {_text(found[1])}, not from {_text(source)} to "
            f"{_text(target)}",
            hint=RECALIBRATE,
            facts={"source": _text(found[0]), "target": _text(found[1])},
        )
    own = calibration.source if side == "source" else calibration.target
    if own.units_sha256 != units:
        raise CalibrationUnits(
            f"the calibration was made for a model of {_text(place_of(own))} with the units {own.units_sha256[:12]}; "
            f"the model there now has {units[:12]}",
            hint=RECALIBRATE,
            facts={"side": side},
        )
    if calibration.kind not in policy.calibration:
        raise CalibrationKindDenied(
            f"a calibration of the kind {calibration.kind}, where policy.calibration allows "
            f"{', '.join(policy.calibration) or 'none'}",
            hint=f"{allow(calibration.kind, policy)} in node.toml of both nodes, then restart them",
            facts={"policy": "calibration", "kind": calibration.kind, "side": side},
        )


def allow(kind: Kind, policy: PolicySection) -> str:
    kinds = ", ".join(f'"{each}"' for each in (*policy.calibration, kind))
    return f"[policy] calibration = [{kinds}]"


def _text(place: Place) -> str:
    return "/".join(place)


SOON: Final = timedelta(days=14)
"""A calibration that ends within this time is warned of."""


@dataclass(frozen=True, slots=True)
class Overview:
    """One calibration of a node."""

    sha256: str
    kind: str
    source: str
    target: str
    state: str
    expires: datetime
    warning: str = ""


def overview(
    config: NodeConfig, store: CalibrationStore, peers: PeerStore, now: datetime | None = None
) -> list[Overview]:
    moment, snapshot = now or datetime.now(UTC), peers.snapshot()
    found = []
    for stored in store.list():
        if stored.active:
            calibration = stored.signed.calibration
            source, target = (_text(place_of(side)) for side in (calibration.source, calibration.target))
            state, warning = _state(config, stored, snapshot, moment)
            found.append(
                Overview(
                    stored.sha256.hex(), calibration.kind, source, target, state, calibration.expires, warning
                )
            )
    return found


def unusable_with(
    config: NodeConfig, store: CalibrationStore, source: Manifest, now: datetime | None = None
) -> tuple[str, ...]:
    """Why a source node refuses jobs with its model: a line for each target, or one for want of a calibration."""
    own, moment = (config.node.institution, config.model.domain), now or datetime.now(UTC)
    by_target: dict[Place, list[Calibration | None]] = {}
    for stored in store.list():
        calibration = stored.signed.calibration
        if stored.state(moment) == "active" and place_of(calibration.source) == own:
            by_target.setdefault(place_of(calibration.target), []).append(calibration)
    held = list(by_target.values()) or [[None]]
    problems = ([_misfit(calibration, source) for calibration in each] for each in held)
    return tuple(found[0] for found in problems if all(found))


def _misfit(calibration: Calibration | None, source: Manifest) -> str:
    try:
        leg_map(calibration, source)
    except CalibrationModel as error:
        return f"{error.detail}: {error.hint}"
    return ""


def _state(config: NodeConfig, stored: Stored, peers: Snapshot, now: datetime) -> tuple[str, str]:
    """The state of a calibration, and what its operator should know or do."""
    calibration, state = stored.signed.calibration, stored.state(now)
    if state == "expired":
        return state, f"it ended at {calibration.expires:%Y-%m-%d}: ddib calibrate --peer makes a new one"
    if state != "active":
        ours = calibration.target.institution == config.node.institution
        return state, f"it waits for you: ddib calibrate accept {stored.sha256.hex()[:12]}" if ours else ""
    try:
        verify(stored.signed, pins=peers.pins, withdrawn=peers.withdrawn, now=now)
    except RefusedError as error:
        return "refused", error.detail
    if calibration.kind not in config.policy.calibration:
        return "refused", f"policy.calibration does not list {calibration.kind}"
    left = calibration.expires - now
    return "active", f"it ends at {calibration.expires:%Y-%m-%d}, in {left.days} days" if left <= SOON else ""


PUBLISH = "ddib calibrate publish --config node.toml, on the target's node"


@dataclass(frozen=True, slots=True)
class Publication:
    """One aggregate that was published here, as the audit log has it, and the institutions that got it."""

    sha256: str
    time: str
    counted: int
    unit: str
    epsilon: float
    delta: float
    peers: tuple[str, ...]


def publications(config: NodeConfig) -> tuple[Publication, ...]:
    """Every aggregate that this node has published, the oldest first, by its audit log."""
    path = config.paths.store
    published: dict[str, dict[str, Any]] = {}
    peers: dict[str, dict[str, None]] = {}
    try:
        for record in (parsed(line) or {} for line in lines_of(path, '"aggregate_')):
            if record.get("act") == "aggregate_published":
                names = ("time", "counted", "unit", "epsilon", "delta")
                published[record["aggregate"]] = {name: record[name] for name in names}
            elif record.get("act") == "aggregate_served":
                institution = Identity.parse(record["peer"]).institution
                peers.setdefault(record["aggregate"], {})[institution] = None
    except FileNotFoundError:
        return ()
    except (KeyError, TypeError, DdibError) as error:
        raise ConfigError(
            f"{path} has a line on an aggregate that cannot be read, so what was published cannot be counted",
            hint=f"ddib audit verify --config {shlex.quote(str(config.path))}",
        ) from error
    return tuple(
        Publication(sha256=sha256, peers=tuple(peers.get(sha256, ())), **values)
        for sha256, values in published.items()
    )


def spent(published: Sequence[Publication | Aggregate]) -> str:
    """The privacy of all of them together, for one that is in each: epsilons and deltas add up, whoever
    compares them.
    """
    epsilon, delta = sum(each.epsilon for each in published), sum(each.delta for each in published)
    unit = "group" if all(each.unit == "group" for each in published) else "picture"
    whose = f" that is in all {len(published)}" if len(published) > 1 else ""
    return f"epsilon {epsilon:g}, delta {delta:g} for each {unit}{whose}"


def find_published(config: NodeConfig) -> Aggregate | None:
    """What is published; None if nothing is."""
    from ddib_fed.calibration.aggregate import read_aggregate

    path = config.paths.aggregate
    if not path.exists():
        return None
    try:
        return read_aggregate(read_small(path))
    except InputError as error:
        raise AggregateNotFound(f"{path} is damaged: {error.detail}", hint=f"{PUBLISH} --again") from error


def served_aggregate(config: NodeConfig, units_sha256: str) -> Aggregate:
    """What is published, if it is of the model that the node serves."""
    found = find_published(config)
    if found is None:
        raise AggregateNotFound(f"no aggregate of {config.model.domain} is published here", hint=PUBLISH)
    if found.units_sha256 != units_sha256 or found.domain != config.model.domain:
        raise CalibrationUnits(
            f"the aggregate in {config.paths.aggregate} is of {found.domain} in the units {found.units_sha256[:12]}; "
            f"the model of {config.model.domain} has {units_sha256[:12]}",
            hint=f"{PUBLISH} --again",
            facts={"side": "target"},
        )
    return found


def keep_published(config: NodeConfig, aggregate: Aggregate, *, again: bool = False) -> None:
    """Store an aggregate for serving; durable when this returns."""
    path = config.paths.aggregate
    if path.exists() and not again:
        raise AlreadyExists(
            f"an aggregate is published already ({path}); another draw of the noise costs epsilon again",
            hint="keep it, or add --again, e.g. after the pictures or the model have changed",
        )
    private_folder(path.parent)
    write_file(path, aggregate.canonical, private=True)


LONGEST_LIFE: Final = timedelta(days=731)
"""From now to the end of a calibration that is proposed."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a target compares a proposal with."""

    place: Place
    units_sha256: str
    policy: PolicySection
    peers: Snapshot
    published: Aggregate | None


def check_proposal(signed: SignedCalibration, target: Target, *, now: datetime) -> Identity:
    """The node that proposed a calibration, if this target may sign it."""
    calibration, peers = signed.calibration, target.peers
    institution = calibration.source.institution
    if institution not in peers.peers:
        raise CalibrationForeign(
            f"the calibration is of {institution or 'no institution'}, which is no peer of this node",
            hint="ddib peer list",
            facts={"source": institution},
        )
    check_terms(
        calibration,
        source=place_of(calibration.source),
        target=target.place,
        side="target",
        units=target.units_sha256,
        policy=target.policy,
    )
    refuse_expired(calibration, now)
    if calibration.expires > now + LONGEST_LIFE:
        raise CalibrationInvalid(
            f"the calibration would last until {calibration.expires:%Y-%m-%d}; at most {LONGEST_LIFE.days} days are "
            "allowed",
            facts={"limit_days": LONGEST_LIFE.days},
        )
    _check_making(calibration, target.published)
    signer = verify_side(signed, "source", pins=peers.pins, withdrawn=peers.withdrawn, now=now)
    if not peers.is_admitted_node(signer):
        raise CalibrationSigner(
            f"{signer} signed, and the admitted node of {institution} is {peers.peers[institution].identity}",
            hint="ddib peer list",
            facts={"side": "source"},
        )
    return signer


def countersign(
    signed: SignedCalibration, credentials: Credentials, target: Target, *, now: datetime
) -> SignedCalibration:
    """The proposal with this node's signature; all of it is verified once more, as at each use."""
    check_proposal(signed, target, now=now)
    own = sign(signed.calibration, "target", credentials, now=now)
    complete = signed.model_copy(update={"target": own})
    verify(complete, pins=target.peers.pins, withdrawn=target.peers.withdrawn, now=now)
    return complete


def _check_making(calibration: Calibration, published: Aggregate | None) -> None:
    """Return if a calibration is from nothing that crossed, or from what is published, and states its privacy so."""
    made = calibration.made
    if (made.aggregate_sha256, made.crossed_bytes, made.epsilon, made.delta) == ("", 0, None, None):
        return
    if published is None or made.aggregate_sha256 != published.sha256.hex():
        there = "none is" if published is None else f"{published.sha256.hex()[:12]} is"
        raise CalibrationInvalid(
            f"the calibration was made from the aggregate {made.aggregate_sha256[:12] or 'of no digest'}, and {there} "
            "published here",
            hint="the source calibrates again: ddib calibrate --peer INSTITUTION/DOMAIN",
            facts={"field": "aggregate_sha256"},
        )
    stated = made.target_pictures, made.target_unit, made.epsilon, made.delta, made.crossed_bytes
    counted = published.counted, published.unit
    if stated != (*counted, published.epsilon, published.delta, len(published.canonical)):
        raise CalibrationInvalid(
            "the calibration states other pictures, bytes, epsilon or delta than the aggregate that is published here",
            facts={"field": "made"},
        )


def own_place(config: NodeConfig) -> Place:
    return config.node.institution, config.model.domain


def require_role(config: NodeConfig, role: Role, what: str) -> None:
    """Return if the node has a role."""
    if role not in config.node.roles:
        raise PolicyDenied(
            f"{config.path} is of a node with the role {', '.join(config.node.roles)}, and {what} is for a {role}",
            hint="name the other node's node.toml with --config",
        )


def send(
    config: NodeConfig, calibration: Calibration, peer: CalibrationPeer, *, now: datetime
) -> SignedCalibration:
    """Sign a calibration as the source, store it, and send it; stored again with the target's signature if it came."""
    check_terms(
        calibration,
        source=own_place(config),
        target=place_of(calibration.target),
        side="source",
        units=units_digest(load_hosted(config).manifest.normalisation),
        policy=config.policy,
    )
    store = CalibrationStore(config.paths.calibrations)
    known = store.find(calibration.sha256)
    if known is not None and not known.active:
        raise StateConflict(
            f"the calibration {calibration.sha256.hex()[:12]} was taken out of use here",
            hint="ddib calibrate --peer INSTITUTION/DOMAIN makes another one",
        )
    signed = known.signed if known else None
    if signed is None or signed.source is None:
        source = sign(calibration, "source", _valid_credentials(config, now), now=now)
        signed = SignedCalibration(calibration=calibration, source=source)
        _note(config, "calibration_proposed", signed, calibration.target.institution)
        store.add(signed, now=now)
    answered = peer.propose(signed, now=now)
    if answered.complete and not signed.complete:
        _note(config, "calibration_signed", answered, calibration.target.institution, by="peer")
        store.add(answered, now=now)
    return answered


def publish(config: NodeConfig, aggregate: Aggregate, *, again: bool) -> None:
    """Keep an aggregate for the peers, who get it from now on."""
    note(
        config.paths.store,
        "aggregate_published",
        domain=aggregate.domain,
        aggregate=aggregate.sha256.hex(),
        bytes=len(aggregate.canonical),
        counted=aggregate.counted,
        unit=aggregate.unit,
        epsilon=aggregate.epsilon,
        delta=aggregate.delta,
    )
    keep_published(config, aggregate, again=again)


def accept(config: NodeConfig, stored: Stored, *, now: datetime, force: bool = False) -> SignedCalibration:
    """Sign a waiting proposal as the target."""
    calibration, state = stored.signed.calibration, stored.state(now)
    if state in {"active", "inactive"} or calibration.target.institution != config.node.institution:
        raise StateConflict(
            f"the calibration {stored.sha256.hex()[:12]} is {state}; only a proposal to this node can be accepted",
            hint="ddib calibrate list",
        )
    if not force:
        refuse_doubtful(calibration)
    target = Target(
        place=own_place(config),
        units_sha256=units_digest(load_hosted(config).manifest.normalisation),
        policy=config.policy,
        peers=peer_store(config).snapshot(),
        published=find_published(config),
    )
    complete = countersign(stored.signed, _valid_credentials(config, now), target, now=now)
    _note(config, "calibration_signed", complete, calibration.source.institution, by="operator")
    CalibrationStore(config.paths.calibrations).add(complete, now=now)
    return complete


def refuse_doubtful(calibration: Calibration) -> None:
    """Return if a calibration's figures show that it is right and were not overridden."""
    try:
        judge(calibration.effect)
    except CalibrationIneffective as error:
        error.hint = "ask for one from anchors; or look at the figures and add --force"
        raise
    if calibration.effect.forced:
        raise CalibrationIneffective(
            "the source made it with --force, although its figures were refused",
            hint="ask the source's operator why; then add --force",
        )


def take_out_of_use(config: NodeConfig, stored: Stored, *, forget: bool) -> None:
    """Stop using a calibration; with `forget` its file is removed, and the peer may propose it again."""
    source, target = (
        side.institution for side in (stored.signed.calibration.source, stored.signed.calibration.target)
    )
    other = target if source == config.node.institution else source
    _note(config, "calibration_removed", stored.signed, other, forgotten=int(forget))
    store = CalibrationStore(config.paths.calibrations)
    if forget:
        store.remove(stored.sha256)
    else:
        store.deactivate(stored.sha256)


def _valid_credentials(config: NodeConfig, now: datetime) -> Credentials:
    """The node's certificate and key, if others would accept what they sign now."""
    credentials = own_credentials(config)
    problem = not_accepted(credentials, now)
    if problem is not None:
        raise Unauthenticated(
            f"this node cannot sign: {problem}",
            hint=f"start the node, which renews it: {config.command} serve --config {shlex.quote(str(config.path))}",
        )
    return credentials


def _note(config: NodeConfig, act: str, signed: SignedCalibration, peer: str, **more: str | int) -> None:
    """Write to the audit log."""
    calibration = signed.calibration
    note(
        config.paths.store,
        act,
        peer=peer,
        calibration=signed.sha256.hex(),
        kind=calibration.kind,
        expires=calibration.expires.isoformat(),
        **more,
    )
