"""Makes the record of a calibration: from the target's aggregate and the source's pictures, or from anchors.

Whoever has a `Calibration` from here has one whose figures were accepted, or one that says that it was forced.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ddib_fed.bridge.calibration.aggregates import Aggregate
from ddib_fed.bridge.calibration.fitting import anchors as anchored
from ddib_fed.bridge.calibration.fitting.proposal import Proposal
from ddib_fed.bridge.calibration.fitting.unpaired import MOST_PICTURES, propose
from ddib_fed.bridge.calibration.record import CalibratedSide, Calibration, Kind, Making, units_digest
from ddib_fed.errors import ShapeMismatch, UsageError
from ddib_fed.metrics.pictures import Pictures, picture_rule
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.runs.calibration.pictures import Anchors


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a calibration."""

    kind: Kind
    source: CalibratedSide
    target: CalibratedSide
    days: int
    command: str
    seed: int = 0
    force: bool = False


def side(manifest: Manifest, institution: str = "") -> CalibratedSide:
    """One side of a calibration, from its model's manifest."""
    return CalibratedSide(
        institution=institution,
        domain=manifest.domain,
        units_sha256=units_digest(manifest.normalisation),
    )


def check_models(source: Manifest, target: Manifest, kind: Kind, *, anchored: bool) -> None:
    """Return if a calibration of this kind can be made for two models, before any picture is read."""
    for manifest in (source, target):
        picture_rule(manifest)
    if source.sample_shape != target.sample_shape:
        raise ShapeMismatch(
            f"{source.name} is of {source.sample_shape}, {target.name} of {target.sample_shape}",
            hint="a calibration is for two models of one size and number of channels",
        )
    channels = source.sample_shape[0]
    if channels != (1 if kind == "tone" else 3):
        raise UsageError(
            f"a {kind} is not for pictures of {channels} channel{'s' * (channels > 1)}, as {source.name} has them",
            hint="--kind rotation or colour-map" if channels > 1 else "--kind tone --anchors A_DIR B_DIR",
        )
    if kind == "tone" and not anchored:
        raise UsageError(
            "a tone is fitted to anchors: nothing in a histogram of grey tells a contrast from its negative",
            hint="--kind tone --anchors A_DIR B_DIR; docs/calibration.md",
        )


def from_aggregate(
    pictures: Pictures, normalisation: Normalisation, aggregate: Aggregate, wanted: Wanted
) -> Calibration:
    """A calibration from the source's pictures and what the target published."""
    found = propose(pictures, normalisation, aggregate, wanted.kind, seed=wanted.seed, force=wanted.force)
    making = Making(
        method="aggregates",
        source_pictures=min(len(pictures), MOST_PICTURES),
        target_pictures=aggregate.counted,
        target_unit=aggregate.unit,
        aggregate_sha256=aggregate.sha256.hex(),
        crossed_bytes=len(aggregate.canonical),
        epsilon=aggregate.epsilon,
        delta=aggregate.delta,
        command=wanted.command,
        created=_now(),
    )
    return _recorded(found, making, wanted)


def from_anchors(anchors: Anchors, units: tuple[Normalisation, Normalisation], wanted: Wanted) -> Calibration:
    """A calibration from pictures of the same things in both domains; nothing crosses for it."""
    found = anchored.fit(
        anchors.source, anchors.target, units, wanted.kind, seed=wanted.seed, force=wanted.force
    )
    making = Making(method="anchors", anchors=len(anchors.names), command=wanted.command, created=_now())
    return _recorded(found, making, wanted)


def _recorded(found: Proposal, making: Making, wanted: Wanted) -> Calibration:
    return Calibration(
        kind=wanted.kind,
        source=wanted.source,
        target=wanted.target,
        map=found.map,
        made=making,
        effect=found.effect,
        expires=making.created + timedelta(days=wanted.days),
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
