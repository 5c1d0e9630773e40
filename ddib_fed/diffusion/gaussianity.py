"""Statistics of a latent, and whether they are those of white noise N(0, I).

    mean, standard deviation, excess kurtosis over all numbers;
    correlation: points, the largest |correlation| of two coordinates over the samples;
                 pictures, the mean |correlation| of two pixels in 8 x 8 patches (arXiv 2410.23530), volumes in 4^3,
                 each patch of each channel being one sample.

A picture's latent must be white by itself. Of points, any subset of the domain may be translated: every single latent
must be plausible under N(0, I), by the tail bound of the chi-square distribution (Laurent and Massart, 2000, lemma 1):

    P(|z|^2 >= D + 2 sqrt(D t) + 2 t) <= exp(-t)

A bound is a fixed allowance, plus `SPREADS` standard errors of true noise of the same count. Passing shows that the
encoder ran properly; it does not show privacy.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddib_fed.errors import LatentNotGaussian

PATCH_NUMBERS = 64  # of a patch: 8 x 8 pixels, or 4 x 4 x 4 voxels
# Allowances for one picture's latent at any size: somewhat more than the widest that the shipped models
# leave on test pictures. Correlation tells a picture from a latent; the others catch what is out of all proportion.
MEAN_ALLOWANCE = 0.15
LOG_STD_ALLOWANCE = 0.56
LARGEST_STD = 10.0
"""Masks among the training pictures of a model that was trained for four minutes have up to 6.5."""
LIGHT_TAILS, HEAVY_TAILS = -0.6, 30.0
"""Excess kurtosis, at least and at most: an edge that a model has not learned is a few large numbers among many."""
CORRELATION_ALLOWANCE = 0.2
# The same where a linear map encodes in part, measured where it encodes alone: a picture's own contrast and its edges
# are left in them. Of
# 169 test and 1,798 held-out crops, .44 to 1.8 and 35; of relief .44 to 2.2 and 27. Correlation needs no more.
STRUCTURED_LOG_STD, STRUCTURED_TAILS = 1.1, 60.0
SPREADS = 6.0
# Samples from which on the statistic means something.
MIN_FOR_STD = 16
MIN_FOR_KURTOSIS = 256
MIN_FOR_CORRELATION = 64
# A set of true noise of any size is refused once in exp(20) = 5e8 sets.
TAIL = 20.0


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    mean: float
    std: float
    kurtosis: float
    correlation: float
    count: int


def measure(latent: Tensor) -> LatentStatistics:
    """Statistics of a latent (N, D) of points or (N, C, *sides) of pictures or volumes, finite, any floating dtype."""
    z = latent.detach().double()
    mean = z.mean()
    centred = z - mean
    variance = centred.square().mean()
    fourth = centred.square().square().mean()
    kurtosis = float(fourth / variance.square() - 3.0) if variance > 0 else 0.0
    return LatentStatistics(float(mean), float(variance.sqrt()), kurtosis, _correlation(z), z.numel())


def examine(latent: Tensor, *, structured: bool = False) -> LatentStatistics:
    """Measure a latent and refuse one that no encoder would make: see the module for points and pictures."""
    statistics = measure(latent)
    if latent.ndim == 2:
        _check_points(latent)
    else:
        check(statistics, structured=structured)
    return statistics


def _check_points(latent: Tensor) -> None:
    count, dim = latent.shape
    tail = math.log(count) + TAIL
    bound = math.sqrt(dim + 2.0 * math.sqrt(dim * tail) + 2.0 * tail)
    radii = latent.detach().double().norm(dim=1)
    beyond = int((~(radii <= bound)).sum())  # NaN is beyond every bound
    if beyond:
        raise LatentNotGaussian(
            f"{beyond} of {count} points have latents further out than {bound:.1f}, up to {radii.max():.1f}",
            hint="are the points in the units of the domain that the model was trained on? ddib model show tells which",
            facts={
                "points_beyond": beyond,
                "points": count,
                "radius": f"{radii.max():.4g}",
                "bound": f"{bound:.4g}",
            },
        )


def check(statistics: LatentStatistics, *, structured: bool = False) -> None:
    """Raise LatentNotGaussian unless the statistics are of white noise, within the allowances."""
    count = statistics.count
    spread = SPREADS / math.sqrt(count)
    log_std, heavy_tails = (
        (STRUCTURED_LOG_STD, STRUCTURED_TAILS) if structured else (LOG_STD_ALLOWANCE, HEAVY_TAILS)
    )
    mean, tails = MEAN_ALLOWANCE + spread, spread * math.sqrt(24.0)
    bounds = {"mean": (-mean, mean)}
    if count >= MIN_FOR_STD:
        bounds["std"] = math.exp(-log_std - spread / math.sqrt(2.0)), LARGEST_STD
    if count >= MIN_FOR_KURTOSIS:
        bounds["kurtosis"] = LIGHT_TAILS - tails, heavy_tails + tails
    if count >= MIN_FOR_CORRELATION:
        bounds["correlation"] = -1.0, CORRELATION_ALLOWANCE + 2.0 * spread
    own = {name: getattr(statistics, name) for name in bounds}
    beyond = {name: value for name, value in own.items() if not bounds[name][0] <= value <= bounds[name][1]}
    if beyond:
        said = (
            f"{n} is {v:.3g}, {bounds[n][0]:.3g} to {bounds[n][1]:.3g} is allowed" for n, v in beyond.items()
        )
        raise LatentNotGaussian(
            "; ".join(said),
            hint="is the input of the domain that the model was trained on? ddib model show tells which",
            facts={name: f"{value:.4g}" for name, value in beyond.items()},
        )


def patches_of(z: Tensor) -> Tensor:
    """The patches of each channel of z (..., *sides) with 2 or 3 sides, one under the other: (patches, numbers)."""
    axes = 3 if z.ndim == 5 else 2
    numbers = 1
    for axis in range(z.ndim - axes, z.ndim):
        side = min(round(PATCH_NUMBERS ** (1 / axes)), z.shape[axis])
        z, numbers = z.unfold(axis, side, side), numbers * side
    return z.reshape(-1, numbers)


def _correlation(z: Tensor) -> float:
    """As in the module: the largest of two coordinates of points, the mean of two pixels in patches of others."""
    points = z.ndim < 4
    rows = z if points else patches_of(z)
    if rows.shape[0] < MIN_FOR_CORRELATION // 2 or rows.shape[1] < 2:
        return 0.0
    centred = rows - rows.mean(dim=0)
    scale = centred.norm(dim=0)
    unit = centred / torch.where(scale > 0, scale, 1.0)  # 0 for a column that is constant
    matrix = unit.T @ unit
    above = torch.triu_indices(matrix.shape[0], matrix.shape[0], offset=1)
    correlations = matrix[above[0], above[1]].abs()
    return float(correlations.max() if points else correlations.mean())
