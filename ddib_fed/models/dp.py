"""The differential privacy of a model's training samples, as the manifest states it: what a run with DP-SGD spent.

Two training sets are neighbours when one has one sample more; augmented and differently noised, it is the same sample.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DifferentialPrivacy(BaseModel):
    """What was spent, and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Literal["sample"] = "sample"
    epsilon: float = Field(gt=0, le=1e6)
    delta: float = Field(gt=0, lt=1)
    noise_multiplier: float = Field(gt=0, le=1e7)
    clip: float = Field(gt=0, allow_inf_nan=False)
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    draws: int = Field(default=1, ge=1)
    accountant: Literal["prv", "rdp"] = "prv"
    initial: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    def __str__(self) -> str:
        return (
            f"epsilon {self.epsilon:.4g} at delta {self.delta:g} for each training {self.unit}, by the accountant "
            f"{self.accountant}: {self.steps} steps, noise multiplier {self.noise_multiplier:.4g}, clip {self.clip:g}, "
            f"sampling rate {self.sampling_rate:.4g}, {self.draws} draws of a sample"
        )
