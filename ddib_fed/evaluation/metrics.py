"""MSE, PSNR and SSIM of two stacks of pictures, row by row.

MSE   mean((a - b)^2), pictures in [-1, 1]
PSNR  10 log10(2^2 / MSE) dB
SSIM  Wang et al. (2004) as scikit-image has it, on intensities (x + 1) / 2: 7 x 7 windows, mean over channels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data import synthetic
from ddib_fed.data.fitting import LUMA
from ddib_fed.errors import ShapeMismatch, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ddib_fed.data.fitting import PictureRule
    from ddib_fed.diffusion.gaussianity import LatentStatistics
    from ddib_fed.models.manifest import Manifest


Floats = NDArray[np.float32]
COMPARED = 16
"""Side to which pictures are reduced before they are compared."""


def reduced(pictures: Floats) -> Floats:
    """Pictures (N, C, H, W) as rows of means of blocks of pixels, (N, D)."""
    count, channels, height, width = pictures.shape
    block = max(1, min(height, width) // COMPARED)
    cut = pictures[:, :, : height // block * block, : width // block * block]
    means = cut.reshape(count, channels, height // block, block, width // block, block).mean((3, 5))
    rows: Floats = means.reshape(count, -1).astype(np.float32)
    return rows


def nearest(some: Floats, others: Floats) -> NDArray[np.float64]:
    """Distance of each row (N, D) to the nearest of others (M, D), over its distance to their mean; (N,)."""
    if some.ndim != 2 or some.shape[1:] != others.shape[1:] or not len(some) or not len(others):
        raise ShapeMismatch(f"rows {some.shape} beside {others.shape}")
    mean = others.mean(0)
    known, squares = others - mean, np.square(others - mean).sum(1)
    found = np.empty(len(some))
    for number, row in enumerate(some - mean):
        norm = float(np.square(row).sum())
        apart = float((squares - 2 * (known @ row)).min()) + norm
        found[number] = np.sqrt(max(apart, 0.0) / max(norm, 1e-6))
    return found


NOISE_SEED = 410_23530
WHITE_RATIO = 1.3
"""Patch correlation, in multiples of true noise's, up to which latents count as white."""


@dataclass(frozen=True, slots=True)
class Whiteness:
    latent: LatentStatistics
    noise: LatentStatistics

    @property
    def ratio(self) -> float:
        return self.latent.correlation / self.noise.correlation if self.noise.correlation > 0 else 0.0


def whiteness(latents: Tensor) -> Whiteness:
    from ddib_fed.diffusion.gaussianity import measure  # torch, which a client lacks

    return Whiteness(measure(latents), noise_statistics(tuple(latents.shape)))


@lru_cache(maxsize=64)
def noise_statistics(shape: tuple[int, ...]) -> LatentStatistics:
    import torch

    from ddib_fed.diffusion.gaussianity import measure

    generator = torch.Generator().manual_seed(NOISE_SEED)
    return measure(torch.randn(shape, generator=generator))


Pictures = NDArray[np.float32]
"""(N, C, H, W) in [-1, 1], C being 1 or 3."""
Figures = NDArray[np.float64]
"""(N,), one for each picture."""

RANGE = 2.0
MOST_PSNR = 120.0
"""The PSNR of equal pictures, instead of infinity: JSON has none, and float32 does not resolve more."""
WINDOW = 7
"""Side of SSIM's windows: pictures must be at least as large."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """Of corresponding pictures; each (N,) float64."""

    mse: Figures
    psnr: Figures
    ssim: Figures


def compare(pictures: Pictures, truth: Pictures) -> Similarity:
    errors = mse(pictures, truth)
    return Similarity(errors, to_psnr(errors), ssim(pictures, truth))


def mse(pictures: Pictures, truth: Pictures) -> Figures:
    check_pair(pictures, truth)
    gaps = (
        np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in zip(pictures, truth, strict=True)
    )
    return np.array([np.square(gap).mean() for gap in gaps])


def psnr(pictures: Pictures, truth: Pictures) -> Figures:
    return to_psnr(mse(pictures, truth))


def to_psnr(errors: Figures) -> Figures:
    """The PSNR in dB of each MSE in [-1, 1]."""
    least = RANGE**2 / 10 ** (MOST_PSNR / 10)
    figures: Figures = 10.0 * np.log10(RANGE**2 / np.maximum(errors, least))
    return figures


def ssim(pictures: Pictures, truth: Pictures) -> Figures:
    check_pair(pictures, truth)
    if min(pictures.shape[2:]) < WINDOW:
        raise ShapeMismatch(
            f"SSIM needs pictures of at least {WINDOW} x {WINDOW} pixels, not {pictures.shape[2:]}"
        )
    from skimage import metrics

    return np.array(
        [
            metrics.structural_similarity(  # type: ignore[no-untyped-call]
                (np.asarray(a, np.float64) + 1.0) / 2.0,
                (np.asarray(b, np.float64) + 1.0) / 2.0,
                win_size=WINDOW,
                data_range=1.0,
                channel_axis=0,
            )
            for a, b in zip(pictures, truth, strict=True)
        ]
    )


def spread(figures: Figures) -> dict[str, float]:
    return {
        "median": float(np.median(figures)),
        "mean": float(figures.mean()),
        "min": float(figures.min()),
        "max": float(figures.max()),
    }


def to_channels(pictures: Pictures, channels: int) -> Pictures:
    """Pictures (N, C, H, W) with the given number of channels: colour becomes grey by luma, grey is repeated."""
    have = pictures.shape[1] if pictures.ndim == 4 else 0
    if have not in {1, 3} or channels not in {1, 3}:
        raise ShapeMismatch(f"pictures of shape {pictures.shape} cannot be brought to {channels} channels")
    if have == channels:
        return pictures
    if channels == 3:
        return np.repeat(pictures, 3, axis=1)
    grey = np.einsum("nchw,c->nhw", pictures, np.asarray(LUMA, pictures.dtype))
    return np.ascontiguousarray(grey[:, None])


def picture_rule(manifest: Manifest) -> PictureRule:
    """The rule in a picture model's manifest for converting files to its input and back."""
    from ddib_fed.data.fitting import PictureRule
    from ddib_fed.models.manifest import PictureFormat

    if manifest.sample_kind != "picture":
        raise UsageError(
            f"{manifest.name} is a model of {manifest.sample_kind}s, not of pictures",
            hint="ddib model show MODEL says what a model is of",
        )
    channels, height, width = manifest.sample_shape
    form = manifest.picture or PictureFormat()  # without it in the manifest, 8-bit files are resized
    return PictureRule(
        channels=channels,
        height=height,
        width=width,
        fit=form.fit,
        low=form.low,
        high=form.high,
        bits=form.bits,
    )


def check_pair(pictures: Pictures, truth: Pictures) -> None:
    """Return if two stacks have one shape (N, C, H, W)."""
    if pictures.shape != truth.shape or pictures.ndim != 4 or 0 in pictures.shape:
        raise ShapeMismatch(
            f"two stacks of pictures of one shape (N, C, H, W) are expected, not {pictures.shape} and {truth.shape}"
        )


Points = NDArray[np.floating]

SLICED_POINTS = 10_000
PROJECTIONS = 256
PROJECTION_SEED = 20220316
FLOOR_PAIRS = 10
POOL_POINTS = 200_000
POOL_SEED = 987_654_321


def cycle_error(original: Points, returned: Points) -> dict[str, float]:
    """Median, mean, 99th percentile and maximum of |original - returned| over the rows of two (N, ...) arrays."""
    if original.shape != returned.shape or len(original) == 0:
        raise ShapeMismatch(f"cannot compare points of shape {original.shape} with {returned.shape}")
    gap = (np.asarray(original, np.float64) - np.asarray(returned, np.float64)).reshape(len(original), -1)
    error = np.linalg.norm(gap, axis=1)
    return {
        "median": float(np.median(error)),
        "mean": float(error.mean()),
        "p99": float(np.quantile(error, 0.99)),
        "max": float(error.max()),
    }


def sliced_w2(a: Points, b: Points, *, projections: int = PROJECTIONS) -> float:
    """Sliced 2-Wasserstein distance between the clouds (N, D) and (M, D)."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or 0 in a.shape or 0 in b.shape:
        raise ShapeMismatch(f"two clouds (N, D) with the same D are expected, not {a.shape} and {b.shape}")
    count = min(SLICED_POINTS, len(a), len(b))
    thinned = []
    for seed, points in enumerate((a, b), start=PROJECTION_SEED + 1):
        few = (
            points
            if len(points) == count
            else points[np.random.default_rng(seed).permutation(len(points))[:count]]
        )
        thinned.append(np.asarray(few, np.float64).T)
    directions = np.random.default_rng(PROJECTION_SEED).normal(size=(projections, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, projections, 32):
        first, second = (np.sort(directions[start : start + 32] @ each, axis=1) for each in thinned)
        total += float(np.square(first - second).sum())
    return float(np.sqrt(total / (projections * count)))


def sliced_w2_floor(pool: Points, count: int) -> float:
    """The mean distance of two draws of `count` points from the same (N, D)."""
    rng = np.random.default_rng(POOL_SEED)
    pairs = (rng.integers(0, len(pool), (2, count)) for _ in range(FLOOR_PAIRS))
    return float(np.mean([sliced_w2(pool[first], pool[second]) for first, second in pairs]))


@lru_cache(maxsize=32)
def domain_sliced_w2_floor(domain: str, count: int = SLICED_POINTS) -> float:
    return sliced_w2_floor(synthetic.draw(domain, POOL_POINTS, POOL_SEED), count)


def reference_points(domain: str, count: int) -> NDArray[np.float32]:
    return synthetic.draw(domain, count, POOL_SEED, step=1)


def distances_to_domain(cloud: Points, domain: str) -> dict[str, float]:
    """Distance of a cloud (N, 2) from a synthetic domain, measured to as many independent points of it."""
    count = min(len(cloud), SLICED_POINTS)
    return {
        "sliced_w2": sliced_w2(cloud, reference_points(domain, count)),
        "sliced_w2_floor": domain_sliced_w2_floor(domain, count),
        "points": count,
    }


NEAREST = 5
_EPSILON = 1e-12


def hits_by_pixels(translated: Pictures, truth: Pictures, *, nearest: int = NEAREST) -> NDArray[np.bool_]:
    check_pair(translated, truth)
    return ranks(_flat(translated), _flat(truth)) < nearest


def hits_by_features(
    translated: NDArray[np.floating], truth: NDArray[np.floating], *, nearest: int = NEAREST
) -> NDArray[np.bool_]:
    """Of each picture whether its partner is among the nearest, (N,)."""
    if translated.shape != truth.shape or translated.ndim != 2 or 0 in translated.shape:
        raise ShapeMismatch(
            f"features (N, D) of one shape are expected, not {translated.shape} and {truth.shape}"
        )
    centre, scale = truth.mean(axis=0), truth.std(axis=0) + _EPSILON
    return ranks((translated - centre) / scale, (truth - centre) / scale) < nearest


def ranks(asked: NDArray[np.floating], answers: NDArray[np.floating]) -> NDArray[np.int64]:
    """Number of candidates (N, D) at least as near to query i (N, D) as candidate i, without itself; (N,)."""
    a, b = np.asarray(asked, np.float64), np.asarray(answers, np.float64)
    distances = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2.0 * (a @ b.T)
    own = np.diagonal(distances)[:, None]
    slack = _EPSILON * np.maximum(1.0, np.abs(own))
    closer: NDArray[np.int64] = (distances <= own + slack).sum(axis=1) - 1
    return closer


def _flat(pictures: Pictures) -> NDArray[np.float64]:
    wide = np.asarray(pictures, np.float64)
    flat: NDArray[np.float64] = (wide - wide.mean(axis=(2, 3), keepdims=True)).reshape(len(pictures), -1)
    return flat
