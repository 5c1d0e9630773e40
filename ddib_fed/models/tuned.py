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

from ddib_fed.diffusion.levels.learned import Coordinates, LearnedLegs, LearnedSteps, Stage
from ddib_fed.errors import BundleInvalid
from ddib_fed.models.catalogue import STEPS_FILE

MAX_STEPS_BYTES = 1 << 22
MAX_LEGS = 64
MAX_LEARNED = 64
"""Evaluations of a leg that can be learned; with more the default grid is as good as exact."""
MAX_LAMBDA = 30.0
LEAST_STEP = 1e-4
"""In lambda, between two levels: below, the weights of an order-5 step lose all digits."""
Small = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
