"""Whiteness of picture latents, compared with true noise measured in the same way.

A correlation that is estimated from few patches is not 0 for true noise either (0.0138 for 96 pictures of 48 pixels).
It is always reported with the same estimate for seeded noise of equal shape and count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ddib_fed.diffusion.gaussianity import LatentStatistics, measure

NOISE_SEED = 410_23530
WHITE_RATIO = 1.3
"""Patch correlation, in multiples of true noise's, up to which latents count as white."""


@dataclass(frozen=True, slots=True)
class Whiteness:
    """Latents beside noise."""

    latent: LatentStatistics
    noise: LatentStatistics

    @property
    def ratio(self) -> float:
        return self.latent.correlation / self.noise.correlation if self.noise.correlation > 0 else 0.0

    @property
    def white(self) -> bool:
        return self.ratio <= WHITE_RATIO


def whiteness(latents: Tensor) -> Whiteness:
    return Whiteness(measure(latents), noise_statistics(tuple(latents.shape)))


@lru_cache(maxsize=64)
def noise_statistics(shape: tuple[int, ...]) -> LatentStatistics:
    generator = torch.Generator().manual_seed(NOISE_SEED)
    return measure(torch.randn(shape, generator=generator))
