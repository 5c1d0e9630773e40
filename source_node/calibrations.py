"""The calibration of a job: the active one for its target, unless the client wants none."""

from __future__ import annotations

from datetime import UTC, datetime

from ddib_fed.bridge.calibration.applied import fits
from ddib_fed.bridge.calibration.record import Calibration
from ddib_fed.errors import CalibrationRefused
from ddib_fed.node.calibration.checks import usable_calibration
from ddib_fed.node.role import NodeContext
from ddib_fed.trust.calibrations.store import Place
from ddib_fed.wire.contracts.calibration import CalibrationTerms
from ddib_fed.wire.contracts.contract import Contract
from source_node.jobs.records import JobSpec


def calibration_of(node: NodeContext, spec: JobSpec) -> Calibration | None:
    target = spec.target_institution, spec.target_domain
    return None if spec.no_calibration else _active(node, target)


def active_terms(node: NodeContext, target: Place) -> CalibrationTerms | None:
    """What `ddib domains` lists: the terms of the calibration that jobs use; None for none, or one that is refused."""
    try:
        found = _active(node, target)
    except CalibrationRefused:
        return None
    return None if found is None else found.terms


def recorded(contract: Contract) -> dict[str, str]:
    """What an item's record says of the contract's calibration: digest in hex and kind, empty for none."""
    terms = contract.calibration
    return {
        "calibration_sha256": "" if terms is None else terms.sha256.hex(),
        "calibration_kind": "" if terms is None else terms.kind,
    }


def _active(node: NodeContext, target: Place) -> Calibration | None:
    source, now = (node.config.node.institution, node.config.model.domain), datetime.now(UTC)
    held = node.calibrations.between(source, target)
    active = [stored for stored in held if stored.state(now) == "active"]
    ended = [stored for stored in held if stored.state(now) == "expired"]
    manifest = node.running_engine.model.manifest
    fitting = [stored for stored in active if fits(stored.signed.calibration, manifest)]
    stored = next(iter((*fitting, *active, *ended)), None)
    if stored is None:
        return None
    try:
        return usable_calibration(node, stored.sha256, source=source, target=target, side="source", now=now)
    except CalibrationRefused as error:
        error.hint = f"{error.hint}; ddib translate --no-calibration leaves it out"
        raise
