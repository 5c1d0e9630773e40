"""The calibrations of a node in a few words, for `check`, the operator and the log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from ddib_fed.bridge.calibration.applied import leg_map
from ddib_fed.bridge.calibration.record import Calibration
from ddib_fed.errors import CalibrationModel, RefusedError
from ddib_fed.models.manifest import Manifest
from ddib_fed.trust.calibrations.signing import verify
from ddib_fed.trust.calibrations.store import CalibrationStore, Place, Stored, place_of
from ddib_fed.trust.peers import PeerStore, Snapshot

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig

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
    return [_look(config, stored, snapshot, moment) for stored in store.list() if stored.active]


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


def _look(config: NodeConfig, stored: Stored, peers: Snapshot, now: datetime) -> Overview:
    calibration, state = stored.signed.calibration, stored.state(now)
    warning = ""
    if state == "active":
        state, warning = _usable(config, stored, peers, now)
    elif state == "expired":
        warning = f"it ended at {calibration.expires:%Y-%m-%d}: ddib calibrate --peer makes a new one"
    elif calibration.target.institution == config.node.institution:
        warning = f"it waits for you: ddib calibrate accept {stored.sha256.hex()[:12]}"
    source, target = (
        f"{side.institution}/{side.domain}" for side in (calibration.source, calibration.target)
    )
    return Overview(
        stored.sha256.hex(), calibration.kind, source, target, state, calibration.expires, warning
    )


def _usable(config: NodeConfig, stored: Stored, peers: Snapshot, now: datetime) -> tuple[str, str]:
    """State and warning of one that both have signed."""
    calibration = stored.signed.calibration
    try:
        verify(stored.signed, pins=peers.pins, withdrawn=peers.withdrawn, now=now)
    except RefusedError as error:
        return "refused", error.detail
    if calibration.kind not in config.policy.calibration:
        return "refused", f"policy.calibration does not list {calibration.kind}"
    left = calibration.expires - now
    if left <= SOON:
        return "active", f"it ends at {calibration.expires:%Y-%m-%d}, in {left.days} days"
    return "active", ""
