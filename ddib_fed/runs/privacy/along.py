"""Latents of several depths, all read off one way to full depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.bridge.model import DomainModel
from ddib_fed.diffusion import solvers
from ddib_fed.diffusion.bridge import soften
from ddib_fed.diffusion.levels.grids import Grid, grid_of, make_grid
from ddib_fed.diffusion.plans import lambda_at

Array = NDArray[np.float32]
Latents = dict[float, Array]
"""By depth, each (N, *sample_shape)."""
TOGETHER = 16
"""Pictures that are integrated together."""


def latents_along(
    model: DomainModel,
    x: Array,
    *,
    depths: Sequence[float] = (),
    encoder: str = "ode",
    evaluations: int = 24,
    sigma: float = 0.0,
    seed: int = 0,
) -> Latents:
    """Latents of samples in the model's units: of full depth (1.0), and at `depths` on the way, at exactly
    that level.
    """
    schedule = model.bundle.schedule
    start = None if sigma == 0.0 else -math.log(sigma)
    levels = list(make_grid(schedule, "default", evaluations, lambda_max=start).levels)
    at: dict[int, float] = {}
    for depth in depths:
        lam = lambda_at(schedule, depth)
        free = (i for i in range(1, len(levels) - 1) if i not in at)
        nearest = min(free, key=lambda i: abs(levels[i].lam - lam))
        levels[nearest], at[nearest] = schedule.level(lam), depth
    grid = grid_of(schedule, tuple(levels))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    found: dict[float, list[Tensor]] = {depth: [] for depth in (*depths, 1.0)}
    size = TOGETHER if model.is_picture else 4_096
    for part in torch.split(soften(torch.from_numpy(x), sigma, noise), size):
        for depth, z in _along(part, grid, model, encoder, at):
            found[depth].append(z)
    return {depth: torch.cat(parts).numpy() for depth, parts in found.items()}


def _along(
    x: Tensor, grid: Grid, model: DomainModel, encoder: str, at: dict[int, float]
) -> Iterator[tuple[float, Tensor]]:
    """The states of one integration at the nodes `at`, by the depths that they are at, and its end."""
    denoiser, solver = model.denoiser(encoder=encoder), solvers.unipc(x, grid, order=3)
    cond = model.condition(None, len(x))
    with torch.no_grad():
        query = next(solver)
        for node in range(len(grid) + 1):
            if node in at:
                yield at[node], query.x.clone()
            try:
                query = solver.send(denoiser(query.x, query.level, cond))
            except StopIteration as end:
                yield 1.0, end.value
                return
