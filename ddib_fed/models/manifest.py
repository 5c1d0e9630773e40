"""What a bundle says of itself: the fields of manifest.json, validated, and the digest over them.

The rule: a field that this release does not know is refused; so is a size that no model of ours could have,
before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from ddib_fed.diffusion.denoiser import Parameterisation, TimeInput
from ddib_fed.diffusion.schedule import ScheduleConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MlpConfig(_Frozen):
    """Arguments of `ResidualMLP`."""

    kind: Literal["mlp"] = "mlp"
    dim: int = Field(default=2, ge=1, le=4096)
    width: int = Field(default=160, ge=1, le=4096)
    blocks: int = Field(default=4, ge=1, le=64)
    embedding: int = Field(default=128, ge=1, le=4096)
    features: int = Field(default=64, ge=2, le=1024, multiple_of=2)


class SyntheticConfig(_Frozen):
    """Arguments of `SyntheticModel`, the public code's network for points."""

    kind: Literal["synthetic"] = "synthetic"
    in_channels: int = Field(default=2, ge=1, le=4096)
    out_channels: int = Field(default=2, ge=1, le=8192)
    num_channels: int = Field(default=256, ge=32, le=4096, multiple_of=32)
    num_res_blocks: int = Field(default=3, ge=1, le=64)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


NetworkConfig = Annotated[MlpConfig | SyntheticConfig, Field(discriminator="kind")]


class Normalisation(_Frozen):
    """Data are (raw - mean) / std."""

    mean: FiniteFloat = 0.0
    std: FiniteFloat = Field(default=1.0, gt=0.0)


class Training(_Frozen):
    """How the weights came to be.

    Attributes:
        command: The command that makes them again.
        seed: Its seed.
        steps: Optimiser steps.
        figures: What was measured, e.g. sliced_w2.
    """

    command: str = Field(default="", max_length=2000)
    seed: int = 0
    steps: int = Field(default=0, ge=0)
    figures: dict[str, FiniteFloat] = Field(default_factory=dict)


class Manifest(_Frozen):
    """The fields of manifest.json but its digest.

    Attributes:
        format_version: Of this form.
        name: Of the model.
        domain: What it translates from and to.
        sample_kind: "point" or "picture".
        sample_shape: (D,) for points, (channels, height, width) for pictures.
        network: Kind and constructor arguments.
        parameterisation: What the network predicts.
        time_input: How it is told the time.
        schedule: What it was trained on.
        normalisation: From raw data to the network's.
        value_range: Of the network's data, where they are bounded.
        soften_sigma: Noise level sigma / alpha to which data are softened before encoding.
        training: How it was made.
        created: Date, ISO 8601, or empty.
        parameters: Numbers in the weights.
        weights_sha256: Of model.safetensors, hex.
    """

    format_version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=100)
    domain: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    sample_kind: Literal["point", "picture"] = "point"
    sample_shape: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(min_length=1, max_length=4)
    network: NetworkConfig
    parameterisation: Parameterisation = "v"
    time_input: TimeInput = "lambda"
    schedule: ScheduleConfig = ScheduleConfig()
    normalisation: Normalisation = Normalisation()
    value_range: tuple[FiniteFloat, FiniteFloat] | None = None
    soften_sigma: float = Field(default=0.0, ge=0.0, le=1.0)
    training: Training = Training()
    created: str = Field(default="", max_length=40)
    parameters: int = Field(default=0, ge=0)
    weights_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _fits(self) -> Manifest:
        width = self.network.dim if isinstance(self.network, MlpConfig) else self.network.in_channels
        if self.sample_kind == "point" and self.sample_shape != (width,):
            raise ValueError(f"sample_shape {self.sample_shape} is not the network's ({width},)")
        return self

    def canonical(self) -> bytes:
        """The JSON that the digest is taken over: sorted keys, no spaces, UTF-8."""
        fields = self.model_dump(mode="json")
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        return hashlib.sha256(self.canonical()).hexdigest()
