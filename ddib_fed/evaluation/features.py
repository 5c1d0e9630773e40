"""The perceptual distance, by features of an ImageNet classifier, and the verdict on samples.

The verdict says whether a model's samples are of its domain: their distance from held-out pictures, beside two others.

distance    unbiased MMD^2 with k(x, y) = (x . y / D + 1)^3 (Binkowski et al., 2018) of n samples from the held-out
            pictures, on the 112 numbers of the late blocks, each in deviations of the held-out pictures and cut off
            at 4: else one that hardly moves over them is all of it
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
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ddib_fed.metrics import EARLY, LATE, Matrix, Pictures, classifier, features, outputs_of

if TYPE_CHECKING:
    from torch import Tensor

COMPARED = 0, 1, 3, 5  # the stem and the blocks whose outputs are compared position by position


def perceptual_distance(made: Tensor, real: Tensor) -> Tensor:
    """Return mean |f(made) - f(real)| / mean |f(real)| of the features `COMPARED` of pictures in [-1, 1], (N,)."""
    import torch

    network = classifier(str(real.device))
    with torch.no_grad():
        wanted = outputs_of(network, real.expand(-1, 3, -1, -1), EARLY)
    outputs = outputs_of(network, made.expand(-1, 3, -1, -1), EARLY)
    gaps = [
        (outputs[i] - wanted[i]).abs().flatten(1).mean(1) / wanted[i].abs().flatten(1).mean(1)
        for i in COMPARED
    ]
    return torch.stack(gaps).mean(0)


def cubic_kernel(a: Matrix, b: Matrix) -> Matrix:
    return np.asarray((a @ b.T / a.shape[1] + 1.0) ** 3)


SAMPLES = 64  # drawn for the verdict
FEWEST = 16  # held-out pictures for a verdict, and half as many as of training
MOST_HELD_OUT, MOST_TRAIN = 192, 256
CHOICES = 200
QUANTILE = 0.95
HALF = 0.5  # share of texture that must be told from real pictures for a verdict
CUT = 4.0
SEED = 20260817
Level = Literal["of the domain", "near", "not yet", "unclear"]


@dataclass(frozen=True, slots=True)
class SampleVerdict:
    """How far samples are from held-out pictures; squared mean discrepancies, about 0 for equal distributions."""

    distance: float
    usual: float
    floor: float
    texture: float
    to_texture: float
    count: float
    held_out: float

    @classmethod
    def of_figures(cls, figures: Mapping[str, float]) -> SampleVerdict | None:
        """Return the verdict in a manifest's figures of training; None if there is none."""
        values = [figures[key] for each in fields(cls) if (key := f"samples_{each.name}") in figures]
        return cls(*values) if len(values) == len(fields(cls)) else None

    def figures(self) -> dict[str, float]:
        return {f"samples_{name}": round(float(value), 5) for name, value in asdict(self).items()}

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
    """Judge samples (n, C, H, W) in [-1, 1]; None for too few pictures, or if C is not 1 or 3."""
    few = len(held_out) < FEWEST or len(train) < 2 * FEWEST or len(samples) < 2
    if few or samples.shape[1] not in {1, 3}:
        return None
    rng = np.random.default_rng(SEED)
    kept = np.sort(rng.permutation(len(train))[:MOST_TRAIN])
    pool, real = train[kept], held_out[:: -(-len(held_out) // MOST_HELD_OUT)]
    chances = None if weights is None else weights[kept] / weights[kept].sum()
    count = min(len(samples), len(pool) // 2)
    seen = [features(each, LATE) for each in (real, pool, textures(pool[:count], rng), samples[:count])]
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
        count=count,
        held_out=len(real),
    )


def textures(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Return pictures (N, C, H, W) with the phases of one noise for all channels: same spectrum and colours."""
    noise = np.fft.rfft2(rng.standard_normal((len(pictures), 1, *pictures.shape[2:])))
    phases = noise / np.maximum(np.abs(noise), 1e-12)
    phases[..., 0, 0] = 1.0
    spectrum = np.fft.rfft2(pictures.astype(np.float64))
    turned = np.fft.irfft2(spectrum * phases, s=pictures.shape[2:])
    return np.clip(turned, -1.0, 1.0).astype(np.float32)


def _cut(rows: Matrix, reference: Matrix) -> Matrix:
    scaled = (rows - reference.mean(axis=0)) / (reference.std(axis=0) + 1e-9)
    return np.asarray(np.clip(scaled, -CUT, CUT))


def _discrepancy(first: Matrix, second: Matrix) -> float:
    within = 0.0
    for rows in (first, second):
        kernel = cubic_kernel(rows, rows)
        within += (kernel.sum() - np.trace(kernel)) / (len(rows) * (len(rows) - 1))
    return float(within - 2.0 * cubic_kernel(first, second).mean())
