"""Decides whether a node uses a calibration: stored, signed by both, of the right names, units and an allowed kind.

Every use passes `usable_calibration`, also one of a calibration that was accepted before: a peer may have been removed
since, the model replaced, or the policy changed.
"""

from __future__ import annotations

from datetime import UTC, datetime

from ddib_fed.bridge.calibration.record import Calibration, Kind
from ddib_fed.errors import (
    CalibrationForeign,
    CalibrationKindDenied,
    CalibrationUnits,
    CalibrationUnknown,
)
from ddib_fed.node.config import PolicySection
from ddib_fed.node.role import NodeContext
from ddib_fed.trust.calibrations.signing import RECALIBRATE, Side, verify
from ddib_fed.trust.calibrations.store import Place, place_of


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
