"""The files beside a model's weights: learned steps, the gate's bounds and the privacy report.

Each names the weights that it belongs to and is no part of the manifest: the model's digest stays when one is written.
A file may come from anywhere: its size, every count and every number are bounded before use.
"""

import hashlib
import json
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ddib_fed.diffusion.schedule import Coordinates, LearnedLegs, LearnedSteps, Stage
from ddib_fed.errors import BundleInvalid
from ddib_fed.files import first_problem
from ddib_fed.models.catalogue import STEPS_FILE
from ddib_fed.record import Frozen

Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]


class Sidecar(Frozen):
    file: ClassVar[str]
    max_bytes: ClassVar[int] = 1 << 18
    again: ClassVar[str]  # the command that writes the file anew

    format_version: Literal[1] = 1
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    command: str = Field(default="", max_length=2000)

    @classmethod
    def parse(cls, data: bytes, weights_sha256: str, source: str) -> Self:
        """The content of a file, checked; `source` names the model in errors."""
        hint = f"{cls.again}, or remove {cls.file}"
        try:
            parsed = cls.model_validate_json(data)
        except ValidationError as error:
            where, problem = first_problem(error)
            raise BundleInvalid(
                f"{source}: {cls.file}: {where or 'content'}: {problem}", hint=hint
            ) from error
        if parsed.weights_sha256 != weights_sha256:
            raise BundleInvalid(f"{source}: {cls.file} belongs to other weights", hint=hint)
        return parsed

    def values(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def text(self) -> bytes:
        return (json.dumps(self.values(), indent=1) + "\n").encode()

    def digest(self) -> str:
        canonical = json.dumps(self.values(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


class PictureAllowances(Frozen):
    """Between which numbers the figures of one picture's latent may lie."""

    names: tuple[Annotated[str, Field(max_length=40)], ...] = Field(min_length=1, max_length=64)
    low: tuple[Finite, ...]
    high: tuple[Finite, ...]

    @model_validator(mode="after")
    def _fits(self) -> "PictureAllowances":
        if {len(self.low), len(self.high)} != {len(self.names)}:
            raise ValueError(f"{len(self.names)} figures need as many bounds")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("a lower bound is above the upper one")
        return self


class SetAllowances(Frozen):
    """How far the figures of a set of points may be from those of N(0, I), for sets of one size."""

    count: int = Field(ge=2, le=1 << 20)
    slope_low: Finite
    slope_high: Finite
    shift: Positive
    dimension: Finite


class Allowances(Sidecar):
    """What the latents of the model's own pictures look like."""

    file = "gate.json"
    again = "measure it again with ddib model measure"

    soften_sigma: float = Field(ge=0.0, le=1.0)
    measured: int = Field(ge=1)
    checked: int = Field(ge=0)
    beyond: int = Field(ge=0)
    pictures: PictureAllowances

    def figures(self) -> dict[str, Any]:
        """Return JSON values for people: the measurement, without the bounds of a latent."""
        shown = {"measured", "checked", "beyond", "soften_sigma", "command"}
        return {"digest": self.digest(), **self.model_dump(mode="json", include=shown)}


Short = Annotated[str, Field(max_length=64)]


class Figure(Frozen):
    """A figure with its 95 % interval over samples."""

    value: Finite
    low: Finite
    high: Finite

    def __str__(self) -> str:
        interval = "" if self.low == self.high else f" ({self.low:.3g} to {self.high:.3g})"
        return f"{self.value:.3g}{interval}"


class Reading(Frozen):
    soften_sigma: Finite
    depth: Finite
    share: Finite
    correlation: Figure
    found_by_correlation: Figure
    surrogate: Short
    read: Figure
    found_by_reading: Figure


class Membership(Frozen):
    """How well training samples are distinguished from others: areas under the curve, 0.5 for a guess."""

    soften_sigma: Finite
    members: int = Field(ge=1)
    others: int = Field(ge=1)
    norm: Figure
    loss: Figure


class Copies(Frozen):
    """How near what a model draws is to its training pictures, over their distance from the mean picture."""

    drawn: int = Field(ge=1)
    samples: Figure
    held_out: Figure
    near: Figure


class PrivacyReport(Sidecar):
    file = "privacy.json"
    again = "attack again with ddib privacy report"

    sample_kind: Literal["point", "picture"]
    calibration: Short = ""
    known: int = Field(ge=1)
    attacked: int = Field(ge=1)
    readings: tuple[Reading, ...] = Field(max_length=64)
    membership: tuple[Membership, ...] = Field(default=(), max_length=8)
    copies: Copies | None = None


MAX_LEGS = 64
MAX_LEARNED = 64  # evaluations of a leg that can be learned; with more the default grid is as good as exact
MAX_LAMBDA = 30.0
LEAST_STEP = 1e-4  # in lambda, between two levels: below, the weights of an order-5 step lose all digits
Small = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]


class Errors(Frozen):
    """Distances of end points from the converged reference, over held-out samples, in units of the state."""

    mean: Small
    low: Small
    high: Small
    median: Small
    p99: Small


class TunedLeg(Frozen):
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
    def _falls(self) -> "TunedLeg":
        if len(self.lams) != self.evaluations + 1:
            raise ValueError(f"{self.evaluations} evaluations have {self.evaluations + 1} levels")
        if any(high - low < LEAST_STEP for high, low in pairwise(self.lams)):
            raise ValueError(f"lambda must fall by at least {LEAST_STEP} at each step")
        return self

    @property
    def key(self) -> tuple[str, float, int]:
        return self.stage, self.sigma, self.evaluations

    def steps(self) -> LearnedSteps:
        return LearnedSteps(self.stage, self.evaluations, self.sigma, self.order, self.coordinates, self.lams)


class Tuned(Sidecar):
    file = STEPS_FILE
    max_bytes = 1 << 22
    again = "learn them again with ddib model tune"

    legs: tuple[TunedLeg, ...] = Field(default=(), max_length=MAX_LEGS)

    @model_validator(mode="after")
    def _each_once(self) -> "Tuned":
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

    def with_legs(self, legs: tuple[TunedLeg, ...], command: str) -> "Tuned":
        """Replace legs of the same direction, softening and number by `legs`."""
        new = {leg.key for leg in legs}
        kept = [leg for leg in self.legs if leg.key not in new]
        every = sorted([*kept, *legs], key=lambda leg: leg.key)
        return Tuned(weights_sha256=self.weights_sha256, command=command, legs=tuple(every))
