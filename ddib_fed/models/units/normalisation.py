"""Normalisation: pictures in [-1, 1] and points to a network's units (colour space, mean, deviation) and back.

`undo` is the inverse of `apply` for every valid picture; with a map of channels that folds, where it does not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from ddib_fed.models.units.channel_map import ChannelMap

Positive = Annotated[FiniteFloat, Field(gt=0.0)]
Floats = npt.NDArray[np.floating]
Colours = Literal["rgb", "opponent"]
BLACK = 0.02
"""Added to red, green and blue in [0, 1], so that black has a hue, which is grey."""


class Normalisation(BaseModel):
    """Data are (raw - mean) / std; pictures have been mapped to [-1, 1] before, and their colours to `colours`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: FiniteFloat | tuple[FiniteFloat, ...] = 0.0
    std: Positive | tuple[Positive, ...] = 1.0
    colours: Colours = "rgb"
    calibrated: ChannelMap | None = None

    @property
    def plain(self) -> Normalisation:
        return self.model_copy(update={"calibrated": None})

    @property
    def channels(self) -> set[int]:
        """The numbers of channels that it supports; empty if one number serves all."""
        found = {len(part) for part in (self.mean, self.std) if isinstance(part, tuple)}
        found |= {3} if self.colours != "rgb" else set()
        return found | (set() if self.calibrated is None else {self.calibrated.channels})

    def fields(self) -> dict[str, Any]:
        """JSON values; what earlier releases did not have is left out at its default, so that digests stay."""
        found = self.model_dump(mode="json", exclude_none=True)
        if self.colours == "rgb":
            del found["colours"]
        return found

    def apply(self, raw: Floats) -> Floats:
        """From raw data (N, D) or (N, C, H, W), any float dtype, to the network's units: float32."""
        mean, std = self._numbers(raw.ndim)
        data = (self.recoloured(raw) - mean) / std
        return (data if self.calibrated is None else self.calibrated.apply(data)).astype(np.float32)

    def undo(self, data: Floats) -> Floats:
        """The inverse of `apply`, float32."""
        mean, std = self._numbers(data.ndim)
        raw = (data if self.calibrated is None else self.calibrated.undo(data)) * std + mean
        return (raw if self.colours == "rgb" else from_opponent(raw)).astype(np.float32)

    def mapped(self, raw: Floats) -> Floats:
        return raw.astype(np.float32) if self.calibrated is None else self.plain.undo(self.apply(raw))

    def recoloured(self, raw: Floats) -> Floats:
        return raw if self.colours == "rgb" else opponent(raw)

    def _numbers(self, ndim: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        parts = (np.asarray(part, dtype=np.float64) for part in (self.mean, self.std))
        mean, std = (part.reshape(-1, *(1,) * (ndim - 2)) if part.ndim else part for part in parts)
        return mean, std

    @model_validator(mode="after")
    def _agrees(self) -> Normalisation:
        if 0 in self.channels or len(self.channels) > 1:
            raise ValueError("mean, std, colours and calibrated are for different numbers of channels")
        return self


def opponent(rgb: Floats) -> Floats:
    """Lightness and two opponent chromaticities of pictures (N, 3, ...) in [-1, 1]."""
    red, green, blue = (np.maximum(rgb[:, i], -1.0) / 2 + (0.5 + BLACK) for i in range(3))
    total = red + green + blue
    return np.stack(
        [np.sqrt(total / 3), (blue - red) / total, (2 * green - red - blue) / (2 * total)], axis=1
    )


def from_opponent(found: Floats) -> Floats:
    """The inverse of `opponent`; lightness below 0 counts as 0."""
    total = 3 * np.maximum(found[:, 0], 0.0) ** 2
    green = total * (1 + 2 * found[:, 2]) / 3
    both, difference = total - green, total * found[:, 1]
    return np.stack([(both - difference) / 2, green, (both + difference) / 2], axis=1) * 2 - (1 + 2 * BLACK)
