"""What attacks on a model's own latents and samples found: privacy.json beside the weights, by `ddib privacy report`.

It names the weights that were attacked and is no part of the manifest, whose digest contracts name.
The file may come from anywhere: its size and every number are bounded before use.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed.errors import BundleInvalid

PRIVACY_FILE = "privacy.json"
MAX_PRIVACY_BYTES = 1 << 18
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Short = Annotated[str, Field(max_length=64)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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
