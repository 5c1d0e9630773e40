"""A calibration as it is agreed on, signed, stored and named in contracts.

Its digest is SHA-256 over the canonical JSON (RFC 8785) of all fields but the signatures, which
`trust` adds and verifies.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    field_serializer,
    model_validator,
)

from ddib_fed.models.units.channel_map import ChannelMap
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.names import is_domain, is_institution
from ddib_fed.wire.canonical import canonical_json
from ddib_fed.wire.contracts.calibration import CalibrationTerms

Kind = Literal["rotation", "tone", "colour-map"]
"""What the map is: an orthogonal change of the channels, a curve of grey, a map of colours."""
KINDS: tuple[Kind, ...] = ("rotation", "tone", "colour-map")
RETRAINED: frozenset[Kind] = frozenset({"tone", "colour-map"})
"""Kinds that need the source's model trained on its mapped pictures."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibratedSide(_Section):
    """One side.

    Attributes:
        institution: Its DNS name; empty in one process.
        domain: Its domain.
        units_sha256: Digest of the units of its model before the calibration (`units_digest`).
    """

    institution: str = Field(default="", max_length=253)
    domain: str = Field(max_length=64)
    units_sha256: Sha256

    @model_validator(mode="after")
    def _named(self) -> CalibratedSide:
        if self.institution and not is_institution(self.institution):
            raise ValueError("the institution is no DNS name in lower case")
        if not is_domain(self.domain):
            raise ValueError("the domain is no name of a domain")
        return self


class Making(_Section):
    """How a calibration was made, and what crossed for it.

    Attributes:
        method: From noised aggregates of the target's pictures, or from anchors that both sides hold.
        source_pictures: Pictures of the source that were used.
        target_pictures: Pictures that the target's aggregate is taken over, or groups of them.
        target_unit: Which of the two; what epsilon and delta are for.
        anchors: Pairs of pictures of the same thing.
        aggregate_sha256: Of the aggregate that crossed; empty where none did, for a map that was brought in a file.
        crossed_bytes: Bytes that crossed before the calibration itself; in one process, that would have.
        epsilon: Of differential privacy of one of the target's units; None where nothing noised crossed.
        delta: The same.
        command: The command that repeats it, without names of files and folders: the other institution reads it.
        created: When.
    """

    method: Literal["aggregates", "anchors"]
    source_pictures: int = Field(default=0, ge=0)
    target_pictures: int = Field(default=0, ge=0)
    target_unit: Literal["picture", "group"] = "picture"
    anchors: int = Field(default=0, ge=0)
    aggregate_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    crossed_bytes: int = Field(default=0, ge=0)
    epsilon: float | None = Field(default=None, gt=0)
    delta: float | None = Field(default=None, gt=0, lt=1)
    command: str = Field(default="", max_length=2000, pattern=r"^[ -~]*$")
    created: AwareDatetime


class Figure(_Section):
    """One figure with its interval of 95 %, bootstrapped over pictures; equal bounds where there is none."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class Effect(_Section):
    """What is known of a calibration's effect."""

    distance_before: Figure
    distance: Figure
    margin: Figure
    figures: dict[Annotated[str, Field(pattern=r"^[a-z0-9_.-]{1,64}$")], Figure] = Field(
        default_factory=dict, max_length=32
    )
    forced: bool = False

    @field_serializer("forced")
    def _forced(self, value: bool) -> int:
        return int(value)  # canonical JSON has no booleans


class Calibration(_Section):
    """What both institutions sign.

    Attributes:
        format: Version of this layout.
        kind: What the map is.
        source: The side that applies it to its own pictures.
        target: The side whose units the map leads to.
        map: The numbers.
        made: How it was made.
        effect: What is known of its effect.
        expires: When it ends.
    """

    format: Literal[1] = 1
    kind: Kind
    source: CalibratedSide
    target: CalibratedSide
    map: ChannelMap
    made: Making
    effect: Effect
    expires: AwareDatetime

    @property
    def canonical(self) -> bytes:
        """The canonical JSON that is hashed and signed."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))

    @property
    def sha256(self) -> bytes:
        """Digest of `canonical`, 32 bytes."""
        return hashlib.sha256(self.canonical).digest()

    @property
    def terms(self) -> CalibrationTerms:
        """What a contract says of it."""
        return CalibrationTerms(self.sha256, self.kind, int(self.expires.timestamp()))

    def expired(self, now: datetime | None = None) -> bool:
        """Whether it has ended."""
        return self.expires <= (now or datetime.now(UTC))

    @model_validator(mode="after")
    def _fits(self) -> Calibration:
        rotated = self.map.rotation is not None
        if (self.kind == "rotation") != rotated or (self.kind == "tone") != (
            self.map.channels == 1 and not rotated
        ):
            raise ValueError(f"the map is not one of the kind {self.kind}")
        return self


def units_digest(units: Normalisation) -> str:
    """SHA-256, hex, of a model's units before a calibration: what a calibration's numbers are in."""
    return hashlib.sha256(plain_units(units)).hexdigest()


def plain_units(units: Normalisation) -> bytes:
    """The canonical JSON of a model's units before a calibration; `units_digest` is its digest."""
    return canonical_json(units.model_dump(mode="json", exclude_none=True, exclude={"calibrated"}))
