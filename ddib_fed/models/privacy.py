"""What attacks on a model's own latents and samples found: privacy.json beside the weights, by `ddib privacy report`.

It names the weights that were attacked and is no part of the manifest (decision 0066). The file may come from anywhere:
its size and every number are bounded before use.
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
    """What is read from latents of one kind.

    Attributes:
        soften_sigma: Noise level before encoding.
        depth: 1 for latents of full depth.
        encoder: By which they were made.
        correlation: Of a latent with its sample.
        found_by_correlation: Share of latents that correlate most with their own sample of all candidates.
        surrogate: Which inverter, fitted to other samples and their latents, did best.
        read: What it reads: of pictures PSNR in dB, of points the root mean square error in deviations of the data.
        found_by_reading: Share whose nearest candidate, of what is read, is the right one.
        model_read: As `read`, decoded by another model of the domain, trained by the attacker; None where none was.
        found_by_model: As `found_by_reading`, of that.
    """

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
    """How well training samples are distinguished from others: areas under the curve, 0.5 for a guess.

    Attributes:
        soften_sigma: Noise level before encoding.
        members: Training samples that were judged.
        others: Samples that the model was not trained on.
        norm: By the norm of the latent, by whoever receives it.
        loss: By the loss of the model, by whoever holds it.
    """

    soften_sigma: Number
    members: int = Field(ge=1)
    others: int = Field(ge=1)
    norm: Figure
    loss: Figure


class Copies(_Frozen):
    """How near what a model draws is to its training pictures, over their distance from the mean picture.

    Attributes:
        drawn: Pictures that were drawn.
        samples: Median distance of a drawn picture to the nearest training picture.
        held_out: The same of pictures that the model was not trained on.
        near: Share of drawn pictures that are nearer than 99 in 100 held-out pictures.
    """

    drawn: int = Field(ge=1)
    samples: Figure
    held_out: Figure
    near: Figure


class PrivacyReport(_Frozen):
    """The content of privacy.json.

    Attributes:
        format_version: Of this form.
        weights_sha256: Of the weights that were attacked, hex.
        command: The command that attacked.
        sample_kind: Of the model.
        calibration: Kind of calibration that the model was trained with; empty for none. A rotation needs no model of
            its own, and its latents are the plain ones, rotated by a matrix that both nodes know.
        known: Samples, with their latents, that the attacker has.
        attacked: Latents that were attacked, and candidates of which each is one.
        surrogate_s: Seconds that the attacker's model was trained; 0 for none.
        readings: By kind of latent.
        membership: Empty without training data.
        copies: Of a model of pictures; None without training data.
    """

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
        """The file."""
        return (json.dumps(self.values(), indent=1) + "\n").encode()

    def values(self) -> dict[str, Any]:
        """JSON values."""
        return self.model_dump(mode="json")


def parse_privacy(data: bytes, weights_sha256: str, source: str) -> PrivacyReport:
    """The report in `data`, checked.

    Args:
        data: Content of privacy.json.
        weights_sha256: Of the model's weights.
        source: Name of the bundle, for errors.

    Raises:
        BundleInvalid: Not such a file, a number is out of range, or it belongs to other weights.
    """
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
