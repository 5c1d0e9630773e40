"""Figures of pictures and volumes, of points and of latents, and how much of a source's structure a translation kept.

MSE   mean((a - b)^2), pictures in [-1, 1]
PSNR  10 log10(2^2 / MSE) dB
SSIM  Wang et al. (2004) as scikit-image has it, on intensities (x + 1) / 2: windows of side 7, mean over channels
edge correlation     Pearson's r of the two gradient magnitudes (central differences of luma)
differs              under a calibration, which says what colours become: share of the pixels whose class, of two,
                     is another than that of the source's mapped picture
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed import datasets
from ddib_fed.data.fitting import LUMA, PictureRule, check_fit
from ddib_fed.data.folder import expand, load, scan
from ddib_fed.errors import InputError, SettingsInvalid, ShapeMismatch, UsageError
from ddib_fed.models.units import Normalisation, PictureMap

if TYPE_CHECKING:
    from torch import Tensor

    from ddib_fed.diffusion.gaussianity import LatentStatistics
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.models.manifest import Manifest, StructureThresholds

Pictures = NDArray[np.float32]  # (N, C, H, W), or (N, C, D, H, W) of volumes, in [-1, 1], C being 1 or 3
Points = NDArray[np.floating]
Figures = NDArray[np.float64]  # (N,)

RANGE = 2.0
MOST_PSNR = 120.0
"""The PSNR of equal pictures, instead of infinity: JSON has none, and float32 does not resolve more."""
WINDOW = 7


class Similarity(NamedTuple):
    """Figures of corresponding pictures, each (N,) float64."""

    psnr: Figures
    ssim: Figures
    mse: Figures


def compare(pictures: Pictures, truth: Pictures) -> Similarity:
    errors = mse(pictures, truth)
    return Similarity(to_psnr(errors), ssim(pictures, truth), errors)


def mse(pictures: Pictures, truth: Pictures) -> Figures:
    _check_pair(pictures, truth)
    gaps = (np.subtract(a, b, dtype=np.float64) for a, b in zip(pictures, truth, strict=True))
    return np.array([np.square(gap, out=gap).mean() for gap in gaps])


def psnr(pictures: Pictures, truth: Pictures) -> Figures:
    return to_psnr(mse(pictures, truth))


def to_psnr(errors: Figures) -> Figures:
    """Return the PSNR in dB of each MSE in [-1, 1]."""
    least = RANGE**2 / 10 ** (MOST_PSNR / 10)
    figures: Figures = 10.0 * np.log10(RANGE**2 / np.maximum(errors, least))
    return figures


def ssim(pictures: Pictures, truth: Pictures) -> Figures:
    _check_pair(pictures, truth)
    if min(pictures.shape[2:]) < WINDOW:
        raise ShapeMismatch(f"SSIM needs sides of at least {WINDOW} pixels, not {pictures.shape[2:]}")
    from skimage.metrics import structural_similarity

    how: dict[str, Any] = {"win_size": WINDOW, "data_range": 1.0, "channel_axis": 0}
    pairs = zip(pictures, truth, strict=True)
    scaled = ([(np.asarray(each, np.float64) + 1.0) / 2.0 for each in pair] for pair in pairs)
    return np.array([structural_similarity(*pair, **how) for pair in scaled])  # type: ignore[no-untyped-call]


def spread(figures: Figures) -> dict[str, float]:
    low, high = float(figures.min()), float(figures.max())
    return {"median": float(np.median(figures)), "mean": float(figures.mean()), "min": low, "max": high}


def _check_pair(pictures: Pictures, truth: Pictures) -> None:
    """Raise ShapeMismatch unless two stacks have one shape (N, C, *sides)."""
    if pictures.shape != truth.shape or pictures.ndim not in {4, 5} or 0 in pictures.shape:
        raise ShapeMismatch(
            f"two stacks of pictures of one shape (N, C, H, W) are expected, not {pictures.shape} and {truth.shape}"
        )


def to_channels(pictures: Pictures, channels: int) -> Pictures:
    """Return pictures (N, C, *sides) with 1 or 3 channels: colour becomes grey by luma, grey is repeated."""
    have = pictures.shape[1] if pictures.ndim >= 4 else 0
    if have not in {1, 3} or channels not in {1, 3}:
        raise ShapeMismatch(f"pictures of shape {pictures.shape} cannot be brought to {channels} channels")
    if have == channels:
        return pictures
    if channels == 3:
        return np.repeat(pictures, 3, axis=1)
    grey = np.einsum("nc...,c->n...", pictures, np.asarray(LUMA, pictures.dtype))
    return np.ascontiguousarray(grey[:, None])


def picture_rule(manifest: Manifest) -> PictureRule:
    """Return the rule for files of a model of pictures; raise UsageError for any other model."""
    if manifest.sample_kind != "picture":
        raise UsageError(
            f"{manifest.name} is a model of {manifest.sample_kind}s, not of pictures",
            hint="ddib model show MODEL says what a model is of",
        )
    return file_rule(manifest)


def file_rule(manifest: Manifest) -> PictureRule:
    """Return the rule for files of a model of pictures, or of volumes with their slices one under another."""
    from ddib_fed.models.manifest import PictureFormat  # torch, which a client lacks

    channels, *rows, width = manifest.sample_shape
    form = manifest.picture or PictureFormat()  # without it in the manifest, 8-bit files are resized
    return PictureRule(channels, math.prod(rows), width, form.fit, form.low, form.high, form.bits)


NEAREST = 5
_EPSILON = 1e-12
COMPARED = 16


def hits_by_pixels(translated: Pictures, truth: Pictures, *, nearest: int = NEAREST) -> NDArray[np.bool_]:
    _check_pair(translated, truth)
    return ranks(_flat(translated), _flat(truth)) < nearest


def ranks(asked: NDArray[np.floating], answers: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the number of candidates (N, D) at least as near to query i (N, D) as candidate i, without it; (N,)."""
    a, b = np.asarray(asked, np.float64), np.asarray(answers, np.float64)
    distances = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2.0 * (a @ b.T)
    partner = np.diagonal(distances)[:, None]
    slack = _EPSILON * np.maximum(1.0, np.abs(partner))
    return np.asarray((distances <= partner + slack).sum(axis=1) - 1)


def _flat(pictures: Pictures) -> NDArray[np.float64]:
    rows = np.asarray(pictures, np.float64).reshape(*pictures.shape[:2], -1)
    return np.asarray((rows - rows.mean(axis=2, keepdims=True)).reshape(len(pictures), -1))


def reduced(pictures: Pictures) -> Pictures:
    """Return pictures (N, C, H, W) as rows of means of blocks of pixels, (N, D)."""
    count, channels, height, width = pictures.shape
    block = max(1, min(height, width) // COMPARED)
    cut = pictures[:, :, : height // block * block, : width // block * block]
    means = cut.reshape(count, channels, height // block, block, width // block, block).mean((3, 5))
    return np.asarray(means.reshape(count, -1), np.float32)


def nearest(some: Pictures, others: Pictures) -> NDArray[np.float64]:
    """Return the distance of each row (N, D) to the nearest of others (M, D), over that to their mean; (N,)."""
    if some.ndim != 2 or some.shape[1:] != others.shape[1:] or not len(some) or not len(others):
        raise ShapeMismatch(f"rows {some.shape} beside {others.shape}")
    mean = others.mean(0)
    centred, squares = others - mean, np.square(others - mean).sum(1)
    distances = np.empty(len(some))
    for number, row in enumerate(some - mean):
        norm = float(np.square(row).sum())
        gap = float((squares - 2 * (centred @ row)).min()) + norm
        distances[number] = np.sqrt(max(gap, 0.0) / max(norm, 1e-6))
    return distances


SLICED_POINTS = 10_000
PROJECTIONS = 256
PROJECTION_SEED = 20220316
FLOOR_PAIRS = 10
POOL_POINTS = 200_000
POOL_SEED = 987_654_321


def cycle_error(original: Points, returned: Points) -> dict[str, float]:
    """Return median, mean, 99th percentile and maximum of |original - returned| over rows of (N, ...) arrays."""
    if original.shape != returned.shape or len(original) == 0:
        raise ShapeMismatch(f"cannot compare points of shape {original.shape} with {returned.shape}")
    gap = (np.asarray(original, np.float64) - np.asarray(returned, np.float64)).reshape(len(original), -1)
    error = np.linalg.norm(gap, axis=1)
    figures = {
        "median": np.median(error),
        "mean": error.mean(),
        "p99": np.quantile(error, 0.99),
        "max": error.max(),
    }
    return {name: float(figure) for name, figure in figures.items()}


def sliced_w2(a: Points, b: Points) -> float:
    """Return the sliced 2-Wasserstein distance between the clouds (N, D) and (M, D)."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or 0 in a.shape or 0 in b.shape:
        raise ShapeMismatch(f"two clouds (N, D) with the same D are expected, not {a.shape} and {b.shape}")
    count = min(SLICED_POINTS, len(a), len(b))
    thinned = []
    for seed, points in enumerate((a, b), start=PROJECTION_SEED + 1):
        chosen = np.random.default_rng(seed).permutation(len(points))[:count]
        thinned.append(np.asarray(points if len(points) == count else points[chosen], np.float64).T)
    directions = np.random.default_rng(PROJECTION_SEED).normal(size=(PROJECTIONS, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, PROJECTIONS, 32):
        first, second = (np.sort(directions[start : start + 32] @ each, axis=1) for each in thinned)
        total += float(np.square(first - second).sum())
    return float(np.sqrt(total / (PROJECTIONS * count)))


def sliced_w2_floor(pool: Points, count: int) -> float:
    """Return the mean distance of two draws of `count` points from one pool (N, D)."""
    rng = np.random.default_rng(POOL_SEED)
    pairs = (rng.integers(0, len(pool), (2, count)) for _ in range(FLOOR_PAIRS))
    return float(np.mean([sliced_w2(pool[first], pool[second]) for first, second in pairs]))


@lru_cache(maxsize=32)
def domain_sliced_w2_floor(domain: str, count: int = SLICED_POINTS) -> float:
    return sliced_w2_floor(datasets.draw(domain, POOL_POINTS, POOL_SEED), count)


def reference_points(domain: str, count: int) -> NDArray[np.float32]:
    return datasets.draw(domain, count, POOL_SEED, step=1)


def distances_to_domain(cloud: Points, domain: str) -> dict[str, float]:
    """Return the distance of a cloud (N, 2) from as many independent points of a synthetic domain."""
    count = min(len(cloud), SLICED_POINTS)
    distance, least = sliced_w2(cloud, reference_points(domain, count)), domain_sliced_w2_floor(domain, count)
    return {"sliced_w2": distance, "sliced_w2_floor": least, "points": count}


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

    return measure(torch.randn(shape, generator=torch.Generator().manual_seed(410_23530)))


def by_frequency(
    latents: NDArray[np.float32], originals: NDArray[np.float32], penalty: float
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Fit a reader of pictures from latents to pairs of both (N, C, *sides) in the model's units.

    For each frequency x = m_x + W (z - m_z) over the channels, W (C, C) by ridge regression.
    """
    import torch  # which a client lacks

    from ddib_fed.networks.spectrum import cosines, pictures

    axes, rows, last = latents.ndim - 2, (0, 1), (-2, -1)
    z, x = (cosines(torch.from_numpy(each).double(), axes) for each in (latents, originals))
    centres = z.mean(0), x.mean(0)
    seen, wanted = ((each - mean).movedim(rows, last) for each, mean in zip((z, x), centres, strict=True))
    second = seen.mT @ seen
    size = penalty * second.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-9
    second = second + size[..., None, None] / len(latents) ** 0.5 * torch.eye(z.shape[1], dtype=z.dtype)
    weights = torch.linalg.solve(second, seen.mT @ wanted)

    def inverse(latents: NDArray[np.float32]) -> NDArray[np.float32]:
        waves = cosines(torch.from_numpy(latents).double(), axes) - centres[0]
        answer = (waves.movedim(rows, last) @ weights).movedim(last, rows) + centres[1]
        return pictures(answer, axes).float().numpy()

    return inverse


CHANCE_QUANTILE = 0.95
"""On the test crops of the shipped maps this marks 94 % of unrelated pairs and 8 % of true ones."""
CHANCE_PAIRS = 2_000
LEAST_DIFFERS = 0.05
"""As much differs in good translations; pairs of nearly black slices do not differ at all."""
MOST_OF_CLASSES, MOST_CLUSTERED, MOST_ROUNDS = 400, 200_000, 50  # pictures, pixels, rounds of two-means
_BLOCK_PIXELS = 1 << 22
"""Pairs are measured in blocks, because large pictures would fill the memory as floats."""


@dataclass(frozen=True, slots=True)
class Structure:
    """Preserved structure: edge correlation (N,) of pictures, and which pixels differ, (N, H, W)."""

    edge_correlation: Figures
    differs: NDArray[np.bool_] | None = None


def structure(
    source: Pictures,
    translated: Pictures,
    mapping: PictureMap | None = None,
    thresholds: StructureThresholds | None = None,
) -> Structure:
    """Compare edges of pictures (N, C, *sides) in [-1, 1] with those of their translations.

    With a mapping also mark the pixels whose class, of the two of the thresholds, is not the mapped source's.
    """
    before, after = _luma(source), _luma(translated)
    if before.shape != after.shape or 0 in before.shape:
        raise ShapeMismatch(f"sources of shape {source.shape} have no translations of {translated.shape}")
    differs = None
    if mapping is not None and thresholds is not None and thresholds.classes:
        centres = mapping.map.apply(np.array(thresholds.classes)[..., None])[..., 0]
        units = mapping.source.apply(source), mapping.target.apply(translated)
        differs = classes(mapping.map.apply(units[0]), centres) != classes(units[1], centres)
    return Structure(np.array([_edge_correlation(a, b) for a, b in zip(before, after, strict=True)]), differs)


def classes(units: NDArray[np.floating], centres: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the nearest of the centres (K, C) to each pixel, a mean of 3 x 3, of (N, C, H, W): (N, H, W)."""
    height, width = units.shape[2:]
    padded = np.pad(units, [(0, 0), (0, 0), (1, 1), (1, 1)], mode="edge")
    near = sum(padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9.0
    gaps = [np.square(near - each[:, None, None]).sum(axis=1) for each in centres]
    return np.asarray(np.argmin(gaps, axis=0))


def two_classes(units: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return two centres (2, C) of the pixels of pictures (N, C, H, W), by the two-means of Lloyd (1982)."""
    pixels = np.moveaxis(units, 1, -1).reshape(-1, units.shape[1]).astype(np.float64)
    pixels = pixels[:: -(-len(pixels) // MOST_CLUSTERED)]
    centred = pixels - pixels.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    return min((_two_means(pixels, centred @ axis > 0.0) for axis in axes), key=lambda pair: pair[0])[1]


def _two_means(pixels: NDArray[np.float64], first: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    """Return the sum of squares and the centres after Lloyd's rounds from a division of pixels (N, C)."""
    spent, centres = np.inf, np.stack([pixels.mean(0)] * 2)
    for _ in range(MOST_ROUNDS):
        if first.all() or not first.any():
            break
        centres = np.stack([pixels[first].mean(0), pixels[~first].mean(0)])
        gaps = np.stack([np.square(pixels - each).sum(1) for each in centres])
        before, spent = spent, float(gaps.min(0).sum())
        if spent >= before * (1.0 - 1e-6):
            break
        first = gaps[0] < gaps[1]
    return spent, centres


def calibrate_by_chance(
    some: NDArray[Any], others: NDArray[Any], *, units: Normalisation
) -> StructureThresholds:
    """Return thresholds from unrelated pictures: the level of a translation that lost its picture."""
    from ddib_fed.models.manifest import StructureThresholds

    if len(some) == 0 or len(others) == 0 or some.shape[1:] != others.shape[1:]:
        raise ShapeMismatch(f"pictures of shape {some.shape} make no pairs with those of {others.shape}")
    centres = two_classes(units.plain.apply(expand(others[:: -(-len(others) // MOST_OF_CLASSES)])))
    drawn = np.random.default_rng(0).integers(0, len(some) * len(others), CHANCE_PAIRS)
    first, second = np.unravel_index(np.unique(drawn), (len(some), len(others)))
    block = max(1, _BLOCK_PIXELS // int(np.prod(some.shape[1:])))
    blocks = []
    for start in range(0, len(first), block):
        a, b = expand(some[first[start : start + block]]), expand(others[second[start : start + block]])
        kept = structure(a, units.mapped(b))
        other = classes(units.plain.apply(a), centres) != classes(units.plain.apply(b), centres)
        blocks.append(np.stack([kept.edge_correlation, other.mean((1, 2))]))
    edges, others = np.concatenate(blocks, axis=1)
    return StructureThresholds(
        edge_correlation=round(float(np.quantile(edges, CHANCE_QUANTILE)), 4),
        count=len(first),
        classes=tuple(tuple(round(float(value), 4) for value in centre) for centre in centres),
        differs=max(LEAST_DIFFERS, round(float(np.quantile(others, 1.0 - CHANCE_QUANTILE)), 4)),
    )


def doubtful(kept: Structure, thresholds: StructureThresholds) -> NDArray[np.bool_]:
    if kept.differs is not None:
        return np.asarray(kept.differs.mean((1, 2)) > thresholds.differs)
    return kept.edge_correlation < thresholds.edge_correlation


def sharpness(pictures: Pictures) -> Figures:
    """Return the mean change of luma from pixel to pixel, over all axes, (N,)."""
    luma = _luma(pictures)
    steps = (np.abs(np.diff(luma, axis=axis)).reshape(len(luma), -1) for axis in range(1, luma.ndim))
    return np.asarray(np.mean([step.mean(axis=1) for step in steps], axis=0))


def _luma(pictures: Pictures) -> NDArray[np.float64]:
    return np.asarray(to_channels(pictures, 1)[:, 0], np.float64)


def _edge_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    first, second = (np.hypot(*np.gradient(grey, axis=(-2, -1))).ravel() for grey in (a, b))
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale > 0 else 0.0


FEWEST = 8
MOST = 4_000
"""`CHANCE_PAIRS` pairs need no more pictures, spread over the folder."""


def put_thresholds(
    model: Path, images: Path, *, skip_bad: bool = False, progress: Callable[[int, int], None] | None = None
) -> Bundle:
    """Measure the thresholds on pictures of the model's domain, and write them into its manifest."""
    from ddib_fed.models.bundle import amend_bundle, load_bundle  # torch, which a client lacks

    manifest = load_bundle(model).manifest
    if manifest.sample_kind != "picture" or manifest.role != "generator":
        raise SettingsInvalid(
            f"{model} is no model that generates pictures: it has no thresholds of structure",
            hint="name the folder of a model of pictures; `ddib model show MODEL` says what one is",
        )
    rule = picture_rule(manifest)
    entries = scan(
        images,
        skip_bad=skip_bad,
        check=lambda picture: check_fit(picture, rule, windows=True),
        progress=progress,
    ).entries
    if len(entries) < FEWEST:
        raise InputError(
            f"{images} has {len(entries)} pictures; at least {FEWEST} are needed",
            hint="add pictures of the domain",
        )
    pictures = load(entries[:: -(-len(entries) // MOST)], rule)
    thresholds = calibrate_by_chance(pictures[::2], pictures[1::2], units=manifest.normalisation)
    return amend_bundle(model, structure=thresholds)
