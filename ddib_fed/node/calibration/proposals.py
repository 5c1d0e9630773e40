"""A peer's proposal of a calibration at the target: what is checked before it is kept, and before it is signed.

The figures of a proposal are what the source measured with its own pictures; the target cannot measure them, because
no picture crosses. It can check that the proposal is from the peer, for its own model, made from the aggregate that it
published or from nothing of it, of an allowed kind, and of a bounded life. So a person signs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from ddib_fed.bridge.calibration.record import Calibration
from ddib_fed.errors import CalibrationForeign, CalibrationInvalid, CalibrationSigner
from ddib_fed.node.calibration.checks import check_terms
from ddib_fed.node.config import PolicySection
from ddib_fed.trust.calibrations.signing import SignedCalibration, refuse_expired, sign, verify, verify_side
from ddib_fed.trust.calibrations.store import Place, place_of
from ddib_fed.trust.identity import Identity
from ddib_fed.trust.peers import Snapshot
from ddib_fed.trust.pki import Credentials

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.aggregates import Aggregate

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
