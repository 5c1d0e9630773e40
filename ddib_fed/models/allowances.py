"""What a model's own latents of pictures look like: gate.json beside the weights.

It is measured when the model is trained, or by `ddib model gate`. It names the weights that it belongs to and is no
part of the manifest, whose digest contracts and calibrations name: it changes which latents the owner computes again
before they go, and not what the model computes. The file may come from anywhere: its size and every number are bounded
before use.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddib_fed.errors import BundleInvalid

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
