"""One picture's latent as a row of figures, which are compared with those of latents that the model is known to make.

bands     log of the mean power of the cosine coefficients in each ring of frequencies, all channels together
aspect    log of the ratio of the power that varies more across to the power that varies more down
channels  log of the least and of the largest eigenvalue of the channels' covariance
bulk      log of the distance between the quartiles, in units of that of N(0, 1)
shape     skewness, asinh of the excess kurtosis, log of the Kolmogorov-Smirnov distance of the standardised numbers
          from N(0, 1)
blocks    standard deviation, over blocks of 8 x 8 pixels, of the log of the variance in a block
patches   log of the mean |correlation| of two pixels in patches of 8 x 8 (arXiv 2410.23530)
picture   only where the picture is known: the correlation of latent and picture over all numbers, and the mean of
          their correlations in each ring, of coarse and of fine structure
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddib_fed.diffusion.gaussianity import PATCH, measure
from ddib_fed.networks.spectrum import cosines

RINGS = (0.0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 1.0, 1.5)
"""Edges of the rings in units of the highest frequency of a side."""
FIRST_FINE = RINGS.index(1 / 2)
LEAST_SIDE = 16
"""Of pictures that have a profile: smaller ones leave rings empty."""
QUARTILES = 2 * 0.674489750196
"""Their distance in N(0, 1)."""
TINY = 1e-12
ALONE = (
    *(f"band {low:.3g} to {high:.3g}" for low, high in pairwise(RINGS)),
    "aspect",
    "channels, least",
    "channels, largest",
    "bulk",
    "skewness",
    "kurtosis",
    "distance from N(0, 1)",
    "blocks",
    "patches",
)
"""Names of the figures of a latent alone."""
PAIR_NAMES = ("picture", "picture, coarse", "picture, fine")
"""Names of the figures that need the picture."""
NAMES = (*ALONE, *PAIR_NAMES)


def profile(latent: Tensor, picture: Tensor | None = None, *, correlation: float | None = None) -> Tensor:
    """The figures of one latent."""
    z = latent.detach().cpu().double()
    waves = cosines(z)
    found = [*_spectrum(waves), *_channels(z), *_shape(z), _blocks(z)]
    found.append(_log(measure(latent[None]).correlation if correlation is None else correlation))
    if picture is not None:
        x = picture.detach().cpu().double()
        found += [_correlation(z - z.mean(), x - x.mean()), *_ring_correlations(waves, cosines(x))]
    return torch.tensor(found, dtype=torch.float64)


def _spectrum(waves: Tensor) -> list[float]:
    means, _ = _places(*waves.shape[1:])
    *rings, across, down = (means @ waves.square().mean(0).flatten()).tolist()
    return [*map(_log, rings), _log(across) - _log(down)]


def _channels(z: Tensor) -> list[float]:
    rows = z.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    found = np.linalg.eigvalsh((rows @ rows.T / rows.shape[1]).numpy())
    return [_log(float(found[0])), _log(float(found[-1]))]


def _shape(z: Tensor) -> list[float]:
    ordered = np.sort(z.numpy(), axis=None)
    count = len(ordered)
    quartiles = float(ordered[(3 * count) // 4] - ordered[count // 4])
    unit = (ordered - ordered.mean()) / max(float(ordered.std(ddof=1)), TINY)
    below = torch.special.ndtr(torch.from_numpy(unit)).numpy()
    after = below - _steps(count)
    distance = max(float(np.abs(after).max()), float(np.abs(after - 1 / count).max()))
    squares = unit * unit
    kurtosis = float((squares * squares).mean()) - 3.0
    return [
        _log(quartiles / QUARTILES),
        float((squares * unit).mean()),
        math.asinh(kurtosis),
        _log(distance),
    ]


@lru_cache(maxsize=16)
def _steps(count: int) -> npt.NDArray[np.float64]:
    return np.arange(count, dtype=np.float64) / count


def _blocks(z: Tensor) -> float:
    blocks = z.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3)
    return float(blocks.var(-1).clamp_min(TINY).log().std())


def _ring_correlations(z: Tensor, x: Tensor) -> tuple[float, float]:
    _, sums = _places(*z.shape[1:])
    products = torch.stack([z * x, z.square(), x.square()], dim=-1).sum(0).flatten(0, 1)
    each = [
        both / size if (size := math.sqrt(of_z * of_x)) > TINY else 0.0
        for both, of_z, of_x in (sums @ products).tolist()
    ]
    coarse, fine = each[:FIRST_FINE], each[FIRST_FINE:]
    return sum(coarse) / len(coarse), sum(fine) / len(fine)


def _correlation(z: Tensor, x: Tensor) -> float:
    size = float(z.norm() * x.norm())
    return float((z * x).sum()) / size if size > TINY else 0.0


def _log(value: float) -> float:
    return math.log(max(value, TINY))


@lru_cache(maxsize=16)
def _places(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Matrices that act on the coefficients of a channel, flattened (H x W)."""
    down = (torch.arange(height, dtype=torch.float64) / height)[:, None].expand(height, width)
    across = (torch.arange(width, dtype=torch.float64) / width)[None, :].expand(height, width)
    radius = (down.square() + across.square()).sqrt()
    rings = [(low <= radius) & (radius < high) for low, high in pairwise(RINGS)]
    masks = torch.stack([*rings, across > down, down > across]).flatten(1).double()
    return masks / masks.sum(1, keepdim=True), masks[: len(rings)]
