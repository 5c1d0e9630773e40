"""A calibration as it is agreed on, signed, stored and named in contracts.

Its digest is SHA-256 over the canonical JSON (RFC 8785) of all fields; `signed` adds signatures and verifies them.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    model_validator,
)

from ddib_fed.errors import CalibrationForeign, CalibrationInvalid, CalibrationModel, CalibrationUnits
from ddib_fed.files import canonical_json, parse_json, read_small, write_file
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.names import is_domain, is_institution
from ddib_fed.protocol.contract import CalibrationTerms

Kind = Literal["rotation", "tone", "colour-map"]
"""What the map is: an orthogonal change of the channels, a curve of grey, a map of colours."""
KINDS: tuple[Kind, ...] = ("rotation", "tone", "colour-map")
RETRAINED: frozenset[Kind] = frozenset({"tone", "colour-map"})
"""Kinds that need the source's model trained on its mapped pictures."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Place = tuple[str, str]
"""An institution and a domain."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibratedSide(_Section):
    """One side: its institution (empty in one process), domain, and digest of its model's plain units."""

    institution: str = Field(default="", max_length=253)
    domain: str = Field(max_length=64)
    units_sha256: Sha256

    @property
    def place(self) -> Place:
        return self.institution, self.domain

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
        target_pictures: That the target's aggregate is taken over, or groups of them; `target_unit` says which.
        aggregate_sha256: Of the aggregate that crossed; empty where none did, for a map that was brought in a file.
        crossed_bytes: Bytes that crossed before the calibration itself; in one process, that would have.
        epsilon, delta: Of one of the target's units; None where nothing noised crossed.
        command: The command that repeats it, without names of files and folders: the other institution reads it.
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


class Effect(_Section):
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
    """What both institutions sign: the source applies the map to its own pictures, it leads to the target's units."""

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
        return hashlib.sha256(self.canonical).digest()

    @property
    def terms(self) -> CalibrationTerms:
        return CalibrationTerms(self.sha256, self.kind, int(self.expires.timestamp()))

    @property
    def institutions(self) -> frozenset[str]:
        return frozenset({self.source.institution, self.target.institution})

    def side(self, side: Literal["source", "target"]) -> CalibratedSide:
        return self.source if side == "source" else self.target

    def expired(self, now: datetime | None = None) -> bool:
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


def leg_map(calibration: Calibration | None, source: Manifest) -> ChannelMap | None:
    """The map for `Leg.calibration`: that of a rotation; None where the model's own units have it, or there is none.

    Raises:
        CalibrationModel: The source's model cannot encode under the calibration, or without one, as it is trained now.
    """
    held = source.normalisation.calibrated
    if calibration is not None and calibration.kind in RETRAINED:
        if held != calibration.map:
            why = "was not trained with it" if held is None else "was trained with the map of another one"
            raise _unusable(
                source,
                f"the {calibration.kind} {calibration.sha256.hex()[:12]} needs a source model trained with it, and "
                f"{source.name} {why}",
                "ddib model train --init OWN --calibration FILE --out NEW, then serve NEW",
            )
        return None
    if held is not None:
        raise _unusable(
            source,
            f"{source.name} was trained with the map of a calibration, and this translation has "
            + ("none" if calibration is None else f"a {calibration.kind}"),
            "ddib calibrate list shows a node's calibrations, --calibration FILE names one in one process; or use the "
            "model from before that training",
        )
    return None if calibration is None else calibration.map


def fits(calibration: Calibration, source: Manifest) -> bool:
    """Whether a model can encode under a calibration as it is trained now; `leg_map` says why not."""
    try:
        leg_map(calibration, source)
    except CalibrationModel:
        return False
    return True


def map_between(calibration: Calibration | None, source: Manifest, target: Manifest) -> ChannelMap | None:
    """As `leg_map`, for two models in one process: the calibration must be between their domains and in their units."""
    if calibration is not None:
        check_models(calibration, source, target)
        check_target(target)
    return leg_map(calibration, source)


def check_target(target: Manifest) -> None:
    """Return if a model can decode what was encoded under a calibration: the map leads to its plain units."""
    if target.normalisation.calibrated is not None:
        raise _unusable(
            target,
            f"{target.name} was trained with the map of a calibration, and latents under another one lead to its units "
            "without that map",
            "decode by the model from before that training; ddib model show MODEL lists the map",
        )


def check_models(calibration: Calibration, source: Manifest, target: Manifest) -> None:
    """Return if a calibration is between two models' domains, and in their units without a calibration."""
    found = calibration.source.domain, calibration.target.domain
    if found != (source.domain, target.domain):
        raise CalibrationForeign(
            f"the calibration leads from {found[0]} to {found[1]}, not from {source.domain} to {target.domain}",
            hint=f"ddib calibrate --local {source.domain} {target.domain}",
            facts={"source": found[0], "target": found[1]},
        )
    for side, manifest in ((calibration.source, source), (calibration.target, target)):
        units = units_digest(manifest.normalisation)
        if side.units_sha256 != units:
            raise CalibrationUnits(
                f"the calibration was made for a model of {side.domain} with the units {side.units_sha256[:12]}; "
                f"{manifest.name} has {units[:12]}",
                hint="calibrate again with this model: ddib calibrate --local A B",
                facts={"model": manifest.name},
            )


def _unusable(model: Manifest, detail: str, remedy: str) -> CalibrationModel:
    return CalibrationModel(detail, hint=remedy, facts={"model": model.name, "remedy": remedy})


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file, or of the shipped model of this name; signatures beside it are not verified here."""
    content = None
    if not path.exists():
        from ddib_fed.models.bundle import shipped_calibration  # loads torch, which a file does not need

        content = shipped_calibration(str(path))
    content = content or read_small(path, hint="ddib calibrate makes one")
    try:
        found = parse_json(content)
        inner = found.get("calibration", found) if isinstance(found, dict) else found
        return Calibration.model_validate_json(json.dumps(inner))
    except ValueError as error:
        raise CalibrationInvalid(f"{path} is no calibration: {first_problem(error)}") from error


def first_problem(error: ValueError) -> str:
    """Where the first thing lies that is wrong with what somebody sent or wrote, and what it is."""
    if not isinstance(error, ValidationError):
        return f"it is not JSON ({error})"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write it as JSON with one field on a line; its digest is of the canonical form, whatever the file's."""
    text = json.dumps(calibration.model_dump(mode="json", exclude_none=True), indent=2)
    write_file(path, text.encode() + b"\n", overwrite=False)
