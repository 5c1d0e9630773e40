"""Whether a set of points lies as densely as N(0, I) does, over whatever part of the space it fills.

A user may translate any part of a domain, and the latents of a part fill a part of the space. Within
that part they are as dense as N(0, I), up to a factor: log p(z) = c - |z|^2 / 2. So the density around each point, from
the distance r_k to its k-th neighbour, is regressed on its place,
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ddib_fed.models.allowances import SetAllowances

SIZES = (64, 128, 256, 512, 1024)
"""Points that are looked at, evenly over the rows: the largest of these numbers that the set has."""
MOST_DIMENSIONS = 8
"""Above, a thousand points have no neighbours to speak of, and a set is judged point by point alone."""
NEIGHBOUR = 8
REPEATED = 0.5
"""Largest share of points that may lie on another one."""
FEWEST = 8
"""Points from which on repeated ones count."""
DRAWS = 24
TOGETHER = 256
"""Points whose distances to all others are in memory at once."""
_ONE_AT_A_TIME = threading.Lock()
"""Sets of many streams are measured in turn: side by side they take memory for each, and the cores from the engine."""


@dataclass(frozen=True, slots=True)
class SetFigures:
    """What was measured of a set of points."""

    count: int
    slope: float
    shift: float
    dimension: float

    def beyond(self, allowed: SetAllowances) -> dict[str, tuple[float, float]]:
        """Figures that are out of their bounds, by name, each with the bound; NaN is out of every bound."""
        least = {"slope": allowed.slope_low, "dimension": allowed.dimension}
        most = {"slope": allowed.slope_high, "shift": allowed.shift}
        low = {name: (getattr(self, name), bound) for name, bound in least.items()}
        high = {name: (getattr(self, name), bound) for name, bound in most.items()}
        return {name: pair for name, pair in low.items() if not pair[0] >= pair[1]} | {
            name: pair for name, pair in high.items() if not pair[0] <= pair[1]
        }


def repeated_share(latent: Tensor) -> float:
    """Share of the points (N, D) that lie on another one; 0 of fewer than `FEWEST`."""
    if len(latent) < FEWEST:
        return 0.0
    return 1.0 - len(torch.unique(latent.detach(), dim=0)) / len(latent)


def set_figures(latent: Tensor) -> SetFigures | None:
    """The figures of a set (N, D) of finite points, hardly any repeated."""
    count = max((size for size in SIZES if size <= len(latent)), default=0)
    if not count or latent.shape[1] > MOST_DIMENSIONS:
        return None
    rows = torch.linspace(0, len(latent) - 1, count, dtype=torch.float64).round().long()
    with _ONE_AT_A_TIME:
        slope, error, shift, shift_error, dimension = _density(latent.detach()[rows].double())
        usual, usual_dimension = _noise(count, latent.shape[1])
    return SetFigures(count, (slope - usual) / error, shift / shift_error, dimension / usual_dimension)


def allowance_for(count: int, allowances: Iterable[SetAllowances]) -> SetAllowances | None:
    return next((each for each in allowances if each.count == count), None)


def _density(z: Tensor) -> tuple[float, float, float, float, float]:
    """s, its standard error, |b|, the largest standard error of b, and the local dimension, of (N, D) float64."""
    count, dim = z.shape
    closest = (
        torch.cdist(part, z).topk(4 * NEIGHBOUR + 1, dim=1, largest=False).values
        for part in torch.split(z, TOGETHER)
    )
    nearest = torch.cat(list(closest)).clamp_min(1e-12)
    near, far = nearest[:, NEIGHBOUR], nearest[:, 4 * NEIGHBOUR]
    density = -dim * near.log()
    seen = torch.cat([torch.ones(count, 1, dtype=z.dtype), z, -z.square().sum(1, keepdim=True) / 2], dim=1)
    gram = torch.linalg.pinv(seen.T @ seen, hermitian=True)
    found = gram @ (seen.T @ density)
    variance = (density - seen @ found).square().sum() / (count - dim - 2)
    errors = (NEIGHBOUR * variance * gram.diagonal()).clamp_min(1e-12).sqrt()
    spread = float((far / near).log().mean())
    dimension = math.log(4.0) / spread if spread > 0 else math.inf
    return (
        float(found[-1]),
        float(errors[-1]),
        float(found[1:-1].norm()),
        float(errors[1:-1].max()),
        dimension,
    )


@lru_cache(maxsize=64)
def _noise(count: int, dim: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(dim)
    sets = (torch.randn(count, dim, generator=generator, dtype=torch.float64) for _ in range(DRAWS))
    found = [_density(z) for z in sets]
    return sum(each[0] for each in found) / DRAWS, sum(each[4] for each in found) / DRAWS
