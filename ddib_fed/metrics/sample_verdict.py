"""Whether a model's samples are of its domain: their distance from held-out pictures, beside two of real ones.

    distance   kernel distance (`features.kernel_distance`) of n samples from the held-out pictures, on all 152 numbers,
               each cut off at 4 deviations of the held-out pictures: else one that hardly moves over them is all of it
    floor      the 95 % quantile of the same distance of n training pictures, over random choices of them
    texture    the distance of n training pictures whose Fourier phases were replaced by those of noise: they keep the
               domain's mean, spectrum and colours, and none of its structure

The rule. A squared mean discrepancy grows with the square of the share of foreign pictures: a set of which a part w is
texture and the rest real has w^2 of the texture's distance, so sqrt(distance / texture) reads as a share of texture.
Samples within the floor are of the domain: of training pictures one set in twenty is as far. From a share of a half on
they are not of the domain yet; in between they are near. Where the floor itself is at a half, nothing can be said:
there are too few pictures, or the domain is a texture. Both distances come from the domain's own pictures; the half is
a convention.

A network of ours starts as the Gaussian of its pictures' spectrum, so before it has learned anything its samples are
just such a texture. Pictures that a model repeats are not seen here (`Nearness` looks for them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddib_fed.metrics.features import Matrix, features, kernel_distance
from ddib_fed.metrics.pictures import Pictures

SAMPLES = 64
"""Samples that are drawn for the verdict."""
FEWEST = 16
"""Held-out pictures from which on there is a verdict; twice as many training pictures."""
MOST_HELD_OUT, MOST_TRAIN = 192, 256
CHOICES = 200
QUANTILE = 0.95
HALF = 0.5
CUT = 4.0
SEED = 20260817
Level = Literal["of the domain", "near", "not yet", "unclear"]


@dataclass(frozen=True, slots=True)
class SampleVerdict:
    """How far samples are from held-out pictures; squared mean discrepancies, about 0 for equal distributions.

    Attributes:
        distance: Of the samples.
        floor: Which training pictures exceed in one choice of twenty.
        texture: Of training pictures without their phases.
        samples: Samples that were judged.
        held_out: Pictures that they were compared with.
    """

    distance: float
    floor: float
    texture: float
    samples: int
    held_out: int

    @classmethod
    def of_figures(cls, figures: Mapping[str, float]) -> SampleVerdict | None:
        """The verdict that a manifest's figures of training hold; None where there is none."""
        names = ("distance", "floor", "texture", "count", "held_out")
        found = [figures.get(f"samples_{name}") for name in names]
        if any(value is None for value in found):
            return None
        distance, floor, texture, count, held_out = (float(value or 0.0) for value in found)
        return cls(distance, floor, texture, int(count), int(held_out))

    def figures(self) -> dict[str, float]:
        """As figures of training in a manifest."""
        return {
            "samples_distance": round(self.distance, 5),
            "samples_floor": round(self.floor, 5),
            "samples_texture": round(self.texture, 5),
            "samples_count": float(self.samples),
            "samples_held_out": float(self.held_out),
        }

    @property
    def share(self) -> float:
        """The share of texture that a set of real pictures as far away would have; at least 0."""
        return math.sqrt(max(0.0, self.distance) / self.texture) if self.texture > 0 else math.inf

    @property
    def level(self) -> Level:
        """By the module's rule."""
        if self.texture <= max(self.floor, 0.0) / HALF**2:
            return "unclear"
        if self.distance <= self.floor:
            return "of the domain"
        return "near" if self.share < HALF else "not yet"

    def sentence(self, steps: int) -> str:
        """The verdict in one sentence, with its figures."""
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
    """The verdict on samples (n, C, H, W) in [-1, 1]; None where there are too few pictures, or C is not 1 or 3.

    Args:
        samples: What the model draws.
        held_out: Pictures of the domain that it was not trained on, (M, C, H, W); at most 192 are read.
        train: Other pictures of the domain, (N, C, H, W); at most 256 are read.
        weights: How likely each of `train` is chosen, (N,), where samples have their classes in other shares than the
            pictures; None for all alike.

    Raises:
        ExtraMissing: The packages with the features' network are not installed.
        ShapeMismatch: Pictures of other sizes or channels.
    """
    if len(held_out) < FEWEST or len(train) < 2 * FEWEST or len(samples) < 2:
        return None
    if samples.shape[1] not in {1, 3}:
        return None
    rng = np.random.default_rng(SEED)
    kept = np.sort(rng.permutation(len(train))[:MOST_TRAIN])
    pool, real = train[kept], held_out[:: -(-len(held_out) // MOST_HELD_OUT)]
    chances = None if weights is None else weights[kept] / weights[kept].sum()
    count = min(len(samples), len(pool) // 2)
    seen = [features(each).joined for each in (real, pool, textures(pool[:count], rng), samples[:count])]
    reference, others, texture, drawn = (_cut(each, seen[0]) for each in seen)
    return SampleVerdict(
        distance=kernel_distance(drawn, reference),
        floor=_floor(others, reference, count, chances, rng),
        texture=kernel_distance(texture, reference),
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
    """Features (N, 152) within `CUT` deviations of the reference's."""
    centre, room = reference.mean(axis=0), CUT * reference.std(axis=0)
    return np.clip(rows, centre - room, centre + room)


def _floor(
    others: Matrix,
    reference: Matrix,
    count: int,
    chances: NDArray[np.float64] | None,
    rng: np.random.Generator,
) -> float:
    """The quantile of the distances of `count` of the others, over random choices."""
    distances = [
        kernel_distance(others[rng.choice(len(others), count, replace=False, p=chances)], reference)
        for _ in range(CHOICES)
    ]
    return float(np.quantile(distances, QUANTILE))
