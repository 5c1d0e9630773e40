"""Whether a model's samples are of its domain: their distance from held-out pictures, beside two of real ones.

distance    unbiased MMD^2 with the cubic kernel (`features`) of n samples from the held-out pictures, on the 112
            numbers of the late blocks, each in deviations of the held-out pictures and cut off at 4: else one that
            hardly moves over them is all of it
usual       the median of the same distance of n training pictures, over random choices of them: above 0 where
            held-out pictures are another region or another year
floor       its 95 % quantile
texture     the distance of textures: n training pictures whose Fourier phases were replaced by those of noise; they
            keep the domain's mean, spectrum and colours, and none of its structure
to_texture  the distance of the samples from these textures
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddib_fed.evaluation.features import Matrix, cubic_kernel, features
from ddib_fed.evaluation.metrics import Pictures

SAMPLES = 64
"""Samples that are drawn for the verdict."""
FEWEST = 16
"""Held-out pictures from which on there is a verdict; twice as many training pictures."""
MOST_HELD_OUT, MOST_TRAIN = 192, 256
CHOICES = 200
QUANTILE = 0.95
HALF = 0.5
"""Share of texture that must be told from real pictures for a verdict."""
CUT = 4.0
SEED = 20260817
_FIGURES = ("distance", "usual", "floor", "texture", "to_texture", "count", "held_out")
Level = Literal["of the domain", "near", "not yet", "unclear"]


@dataclass(frozen=True, slots=True)
class SampleVerdict:
    """How far samples are from held-out pictures; squared mean discrepancies, about 0 for equal distributions."""

    distance: float
    usual: float
    floor: float
    texture: float
    to_texture: float
    samples: int
    held_out: int

    @classmethod
    def of_figures(cls, figures: Mapping[str, float]) -> SampleVerdict | None:
        """The verdict that a manifest's figures of training hold; None where there is none."""
        found = [value for name in _FIGURES if (value := figures.get(f"samples_{name}")) is not None]
        if len(found) < len(_FIGURES):
            return None
        distance, usual, floor, texture, to_texture, count, held_out = map(float, found)
        return cls(distance, usual, floor, texture, to_texture, int(count), int(held_out))

    def figures(self) -> dict[str, float]:
        """As figures of training in a manifest."""
        values = zip(_FIGURES, astuple(self), strict=True)
        return {f"samples_{name}": round(float(value), 5) for name, value in values}

    @property
    def share(self) -> float:
        room = self.texture - self.usual
        return math.sqrt(max(0.0, self.distance - self.usual) / room) if room > 0 else math.inf

    @property
    def level(self) -> Level:
        if self.floor - self.usual >= (self.texture - self.usual) * HALF**2:
            return "unclear"
        if self.distance <= self.floor:
            return "of the domain"
        return "near" if self.distance < self.to_texture else "not yet"

    def sentence(self, steps: int) -> str:
        told = {
            "of the domain": "samples cannot be told from held-out pictures",
            "near": f"samples are near your domain, but can be told from it: as if {self.share:.0%} were texture",
            "not yet": "samples are not of your domain yet",
            "unclear": "samples cannot be judged: textures of the domain's spectrum are about as near as its pictures",
        }
        return (
            f"{steps:,} steps: {told[self.level]} (distance {self.distance:.3g}; real pictures reach {self.floor:.3g}, "
            f"textures of the same spectrum {self.texture:.3g})"
        )


def judge_samples(
    samples: Pictures, held_out: Pictures, train: Pictures, weights: NDArray[np.float64] | None = None
) -> SampleVerdict | None:
    """The verdict on samples (n, C, H, W) in [-1, 1]; None where there are too few pictures, or C is not 1 or 3."""
    if len(held_out) < FEWEST or len(train) < 2 * FEWEST or len(samples) < 2:
        return None
    if samples.shape[1] not in {1, 3}:
        return None
    rng = np.random.default_rng(SEED)
    kept = np.sort(rng.permutation(len(train))[:MOST_TRAIN])
    pool, real = train[kept], held_out[:: -(-len(held_out) // MOST_HELD_OUT)]
    chances = None if weights is None else weights[kept] / weights[kept].sum()
    count = min(len(samples), len(pool) // 2)
    seen = [features(each).late for each in (real, pool, textures(pool[:count], rng), samples[:count])]
    reference, others, texture, drawn = (_cut(each, seen[0]) for each in seen)
    null = [
        _discrepancy(others[rng.choice(len(others), count, replace=False, p=chances)], reference)
        for _ in range(CHOICES)
    ]
    return SampleVerdict(
        distance=_discrepancy(drawn, reference),
        usual=float(np.median(null)),
        floor=float(np.quantile(null, QUANTILE)),
        texture=_discrepancy(texture, reference),
        to_texture=_discrepancy(drawn, texture),
        samples=count,
        held_out=len(real),
    )


def textures(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Pictures (N, C, H, W) with the phases of noise, one noise for all channels: same spectrum, mean and colours."""
    noise = np.fft.rfft2(rng.standard_normal((len(pictures), 1, *pictures.shape[2:])))
    phases = noise / np.maximum(np.abs(noise), 1e-12)
    phases[..., 0, 0] = 1.0
    spectrum = np.fft.rfft2(pictures.astype(np.float64))
    made = np.fft.irfft2(spectrum * phases, s=pictures.shape[2:])
    return np.clip(made, -1.0, 1.0).astype(np.float32)


def _cut(rows: Matrix, reference: Matrix) -> Matrix:
    scaled = (rows - reference.mean(axis=0)) / (reference.std(axis=0) + 1e-9)
    found: Matrix = np.clip(scaled, -CUT, CUT)
    return found


def _discrepancy(first: Matrix, second: Matrix) -> float:
    within = 0.0
    for rows in (first, second):
        kernel = cubic_kernel(rows, rows)
        within += (kernel.sum() - np.trace(kernel)) / (len(rows) * (len(rows) - 1))
    return float(within - 2.0 * cubic_kernel(first, second).mean())
