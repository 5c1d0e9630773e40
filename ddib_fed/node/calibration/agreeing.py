"""The operator's acts on calibrations, on the machine of the node: sign and send, publish, accept, take out of use.

Each act is in the node's audit log before it has any effect. A running node sees it at once, because it reads the same
files.
"""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import TYPE_CHECKING

from ddib_fed.bridge.calibration.judgement import judge
from ddib_fed.bridge.calibration.record import Calibration, units_digest
from ddib_fed.errors import CalibrationIneffective, PolicyDenied, StateConflict, Unauthenticated
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.calibration.checks import check_terms
from ddib_fed.node.calibration.peer import CalibrationPeer
from ddib_fed.node.calibration.proposals import Target, countersign
from ddib_fed.node.calibration.published import find_published, keep_published
from ddib_fed.node.certificates import not_accepted, own_credentials
from ddib_fed.node.model import load_hosted
from ddib_fed.trust.audit.log import note
from ddib_fed.trust.calibrations.signing import SignedCalibration, sign
from ddib_fed.trust.calibrations.store import CalibrationStore, Place, Stored, place_of

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.aggregates import Aggregate
    from ddib_fed.node.config import NodeConfig, Role
    from ddib_fed.trust.pki import Credentials


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
        config.paths.audit,
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
    other = _other(config, stored.signed.calibration)
    _note(config, "calibration_removed", stored.signed, other, forgotten=int(forget))
    store = CalibrationStore(config.paths.calibrations)
    if forget:
        store.remove(stored.sha256)
    else:
        store.deactivate(stored.sha256)


def _other(config: NodeConfig, calibration: Calibration) -> str:
    own = config.node.institution
    return (
        calibration.target.institution
        if calibration.source.institution == own
        else calibration.source.institution
    )


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
        config.paths.audit,
        act,
        peer=peer,
        calibration=signed.sha256.hex(),
        kind=calibration.kind,
        expires=calibration.expires.isoformat(),
        **more,
    )
