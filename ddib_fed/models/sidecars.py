"""Learned steps of a model on disk: steps.json beside the weights, written by `ddib model tune`.

It names the weights that it belongs to, and is no part of the manifest: neither the model's digest nor contracts and
calibrations that name it change when steps are learned, because they change how exactly the model's ODE is followed
and not the ODE. The file may come from anywhere: its size, every count and every number are bounded before use.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddib_fed.diffusion.grids import Coordinates, LearnedLegs, LearnedSteps, Stage
from ddib_fed.errors import BundleInvalid
from ddib_fed.models.catalogue import STEPS_FILE

GATE_FILE = "gate.json"
MAX_GATE_BYTES = 1 << 18
MAX_FIGURES = 64
Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PictureAllowances(_Frozen):
    """Between which numbers the figures of one picture's latent may lie."""

    names: tuple[Annotated[str, Field(max_length=40)], ...] = Field(min_length=1, max_length=MAX_FIGURES)
    low: tuple[Finite, ...]
    high: tuple[Finite, ...]

    @model_validator(mode="after")
    def _fits(self) -> PictureAllowances:
        if {len(self.low), len(self.high)} != {len(self.names)}:
            raise ValueError(f"{len(self.names)} figures need as many bounds")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("a lower bound is above the upper one")
        return self


class SetAllowances(_Frozen):
    """How far the figures of a set of points may be from those of N(0, I), for sets of one size."""

    count: int = Field(ge=2, le=1 << 20)
    slope_low: Finite
    slope_high: Finite
    shift: Positive
    dimension: Finite


class Allowances(_Frozen):
    """The content of gate.json."""

    format_version: Literal[1] = 1
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    soften_sigma: float = Field(ge=0.0, le=1.0)
    command: str = Field(default="", max_length=2000)
    measured: int = Field(ge=1)
    checked: int = Field(ge=0)
    beyond: int = Field(ge=0)
    pictures: PictureAllowances

    def text(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), indent=None, separators=(",", ":")) + "\n").encode()

    def digest(self) -> str:
        values = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def figures(self) -> dict[str, Any]:
        """JSON values for people: what was measured, and not the numbers that a latent is held against."""
        return {
            "digest": self.digest(),
            "measured": self.measured,
            "checked": self.checked,
            "beyond": self.beyond,
            "soften_sigma": self.soften_sigma,
            "command": self.command,
        }


def parse_allowances(data: bytes, weights_sha256: str, source: str) -> Allowances:
    """The allowances in `data`, checked."""
    again = f"measure them again with ddib model gate, or remove {GATE_FILE}"
    try:
        found = Allowances.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleInvalid(
            f"{source}: {GATE_FILE}: {where or 'content'}: {first['msg']}", hint=again
        ) from error
    if found.weights_sha256 != weights_sha256:
        raise BundleInvalid(f"{source}: {GATE_FILE} was measured with other weights", hint=again)
    return found


PRIVACY_FILE = "privacy.json"
MAX_PRIVACY_BYTES = 1 << 18
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Short = Annotated[str, Field(max_length=64)]


class Figure(_Frozen):
    """A figure with its 95 % interval over samples."""

    value: Number
    low: Number
    high: Number


class Reading(_Frozen):
    """What is read from latents of one kind."""

    soften_sigma: Number
    depth: Number
    encoder: Short
    correlation: Figure
    found_by_correlation: Figure
    surrogate: Short
    read: Figure
    found_by_reading: Figure
    model_read: Figure | None = None
    found_by_model: Figure | None = None


class Membership(_Frozen):
    """How well training samples are distinguished from others: areas under the curve, 0.5 for a guess."""

    soften_sigma: Number
    members: int = Field(ge=1)
    others: int = Field(ge=1)
    norm: Figure
    loss: Figure


class Copies(_Frozen):
    """How near what a model draws is to its training pictures, over their distance from the mean picture."""

    drawn: int = Field(ge=1)
    samples: Figure
    held_out: Figure
    near: Figure


class PrivacyReport(_Frozen):
    """The content of privacy.json."""

    format_version: Literal[1] = 1
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    command: str = Field(default="", max_length=2000)
    sample_kind: Literal["point", "picture"]
    calibration: Short = ""
    known: int = Field(ge=1)
    attacked: int = Field(ge=1)
    surrogate_s: Number = 0.0
    readings: tuple[Reading, ...] = Field(max_length=64)
    membership: tuple[Membership, ...] = Field(default=(), max_length=8)
    copies: Copies | None = None

    def text(self) -> bytes:
        return (json.dumps(self.values(), indent=1) + "\n").encode()

    def values(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def parse_privacy(data: bytes, weights_sha256: str, source: str) -> PrivacyReport:
    """The report in `data`, checked."""
    again = f"attack again with ddib privacy report, or remove {PRIVACY_FILE}"
    try:
        found = PrivacyReport.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleInvalid(
            f"{source}: {PRIVACY_FILE}: {where or 'content'}: {first['msg']}", hint=again
        ) from error
    if found.weights_sha256 != weights_sha256:
        raise BundleInvalid(f"{source}: {PRIVACY_FILE} is about other weights", hint=again)
    return found


MAX_STEPS_BYTES = 1 << 22
MAX_LEGS = 64
MAX_LEARNED = 64
"""Evaluations of a leg that can be learned; with more the default grid is as good as exact."""
MAX_LAMBDA = 30.0
LEAST_STEP = 1e-4
"""In lambda, between two levels: below, the weights of an order-5 step lose all digits."""
Small = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]


class Errors(_Frozen):
    """Distances of end points from the converged reference, over held-out samples, in units of the state."""

    mean: Small
    low: Small
    high: Small
    median: Small
    p99: Small


class TunedLeg(_Frozen):
    """Steps of one direction, with what they were measured to do."""

    stage: Stage
    evaluations: int = Field(ge=2, le=MAX_LEARNED)
    sigma: float = Field(default=0.0, ge=0.0, le=1.0)
    order: int = Field(ge=1, le=5)
    coordinates: Coordinates
    lams: tuple[Annotated[float, Field(ge=-MAX_LAMBDA, le=MAX_LAMBDA)], ...] = Field(
        max_length=MAX_LEARNED + 1
    )
    held_out: int = Field(ge=1)
    error: Errors
    default_error: Errors
    yardstick: int = Field(ge=2, le=10_000)
    yardstick_error: Errors
    reference_gap: Small

    @model_validator(mode="after")
    def _falls(self) -> TunedLeg:
        if len(self.lams) != self.evaluations + 1:
            raise ValueError(f"{self.evaluations} evaluations have {self.evaluations + 1} levels")
        if any(high - low < LEAST_STEP for high, low in pairwise(self.lams)):
            raise ValueError(f"lambda must fall by at least {LEAST_STEP} at each step")
        return self

    @property
    def key(self) -> tuple[str, float, int]:
        return self.stage, self.sigma, self.evaluations

    def steps(self) -> LearnedSteps:
        """Without the figures."""
        return LearnedSteps(self.stage, self.evaluations, self.sigma, self.order, self.coordinates, self.lams)


class Tuned(_Frozen):
    """The content of steps.json."""

    format_version: Literal[1] = 1
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    command: str = Field(default="", max_length=2000)
    legs: tuple[TunedLeg, ...] = Field(default=(), max_length=MAX_LEGS)

    @model_validator(mode="after")
    def _each_once(self) -> Tuned:
        if len({leg.key for leg in self.legs}) != len(self.legs):
            raise ValueError("two legs are of one direction, softening and number")
        return self

    @property
    def evaluations(self) -> tuple[int, ...]:
        """The numbers of evaluations that both directions have, rising."""
        both = (
            {leg.evaluations for leg in self.legs if leg.stage == stage} for stage in ("encode", "decode")
        )
        return tuple(sorted(set.intersection(*both)))

    def learned(self, model: str) -> LearnedLegs:
        return LearnedLegs(model, tuple(leg.steps() for leg in self.legs))

    def with_legs(self, legs: tuple[TunedLeg, ...], command: str) -> Tuned:
        """The same with `legs` in the place of those of the same direction, softening and number."""
        new = {leg.key for leg in legs}
        kept = [leg for leg in self.legs if leg.key not in new]
        every = sorted([*kept, *legs], key=lambda leg: leg.key)
        return Tuned(weights_sha256=self.weights_sha256, command=command, legs=tuple(every))

    def figures(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return self.model_dump(mode="json")

    def text(self) -> bytes:
        return (json.dumps(self.figures(), indent=1) + "\n").encode()

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hex: names exactly these steps."""
        return hashlib.sha256(
            json.dumps(self.figures(), sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()


def parse_tuned(data: bytes, weights_sha256: str, source: str) -> Tuned:
    """The steps in `data`, checked."""
    retune = f"learn them again with ddib model tune, or remove {STEPS_FILE}"
    try:
        tuned = Tuned.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleInvalid(
            f"{source}: {STEPS_FILE}: {where or 'content'}: {first['msg']}", hint=retune
        ) from error
    if tuned.weights_sha256 != weights_sha256:
        raise BundleInvalid(
            f"{source}: the steps in {STEPS_FILE} were learned for other weights", hint=retune
        )
    return tuned
