"""One direction of a model with the samples it is tuned on, and where a converged solver takes them.

The rows that steps are learned from, those that choose between candidates, and those that the published errors are over
are three sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.bridge.model import DomainModel
from ddib_fed.diffusion.bridge import integrate, soften
from ddib_fed.diffusion.denoiser import Condition
from ddib_fed.diffusion.learned_solver import learned_solver
from ddib_fed.diffusion.levels.grids import Grid, make_grid
from ddib_fed.diffusion.levels.learned import LearnedSteps, Stage
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.errors import NotFinite
from ddib_fed.metrics.bootstrap import resample
from ddib_fed.models.tuned import Errors

Told = Callable[[int, int], None]
"""Told (done, in all)."""
YARDSTICK = SolverSettings()
"""What learned steps are held against: the default solver, grid and number."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples of one set."""

    x: Tensor
    cond: Condition
    end: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def chosen(self, which: Tensor) -> Rows:
        cond = None if self.cond is None else {key: value[which] for key, value in self.cond.items()}
        return Rows(self.x[which], cond, self.end[which])


@dataclass(frozen=True, slots=True)
class TuningLeg:
    """A leg that is to be tuned."""

    model: DomainModel
    stage: Stage
    sigma: float
    fit: Rows
    choose: Rows
    held_out: Rows
    reference_gap: float

    @property
    def ends(self) -> tuple[float, float]:
        """Lambda at the data end, and at the noise end."""
        schedule = self.model.bundle.schedule
        data = schedule.lambda_max if self.sigma == 0.0 else min(schedule.lambda_max, -math.log(self.sigma))
        return data, schedule.lambda_min

    def walked(self, steps: LearnedSteps) -> Grid:
        grid = steps.grid(self.model.bundle.schedule, *self.ends)
        return grid if self.stage == "encode" else grid.reversed()

    def learned_end(self, steps: LearnedSteps, rows: Rows) -> Tensor:
        solver = learned_solver(steps, rows.x, self.walked(steps), rows.cond, self.model.frame())
        return integrate(solver, self.model.denoiser())

    def default_end(self, settings: SolverSettings, rows: Rows) -> Tensor:
        """Where named settings take rows."""
        laid = plan(settings, self.model.bundle.schedule, soften_sigma=self.sigma)
        start = laid.encoder if self.stage == "encode" else laid.decoder
        return integrate(start(rows.x, rows.cond), self.model.denoiser())


def tuning_leg(
    model: DomainModel,
    stage: Stage,
    starts: tuple[Tensor, Tensor, Tensor],
    conds: tuple[Condition, Condition, Condition],
    *,
    sigma: float,
    evaluations: int,
    tell: Told,
) -> TuningLeg:
    """A leg with its reference computed."""
    bare = [Rows(x, cond, x) for x, cond in zip(starts, conds, strict=True)]
    ends = []
    for done, rows in enumerate(bare):
        tell(done, len(bare) + 1)
        ends.append(reference(model, stage, rows, sigma, evaluations))
    half = reference(model, stage, bare[1], sigma, evaluations // 2)
    tell(len(bare) + 1, len(bare) + 1)
    if not all(bool(torch.isfinite(end).all()) for end in ends):
        raise NotFinite(
            f"{model.manifest.name}: the reference of {stage} is not finite", hint="train the model again"
        )
    full = [Rows(rows.x, rows.cond, end) for rows, end in zip(bare, ends, strict=True)]
    gap = float(distances(half, ends[1]).mean())
    return TuningLeg(model, stage, sigma, full[0], full[1], full[2], gap)


def reference(model: DomainModel, stage: Stage, rows: Rows, sigma: float, evaluations: int) -> Tensor:
    """Where many small steps take rows: evenly in lambda in a spectral network's frame, else on the default grid."""
    schedule, frame = model.bundle.schedule, model.frame()
    name = "default" if frame is None else "uniform-lambda"
    start = None if sigma == 0.0 else -math.log(sigma)
    grid = make_grid(schedule, name, evaluations, lambda_max=start)
    lams = tuple(level.lam for level in grid.levels)
    steps = LearnedSteps(stage, evaluations, sigma, 3, "angle" if frame is None else "spectrum", lams)
    grid = grid if stage == "encode" else grid.reversed()
    return integrate(learned_solver(steps, rows.x, grid, rows.cond, frame), model.denoiser())


def softened(x: Tensor, sigma: float, seed: int) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return soften(x, sigma, noise.to(x))


def distances(found: Tensor, end: Tensor) -> Tensor:
    squares = (found.double() - end.double()).flatten(1).square()
    return (squares.sum(1) if found.ndim == 2 else squares.mean(1)).sqrt()


def errors(found: Tensor, end: Tensor) -> Errors:
    """Statistics of the distances, with an interval over samples. Not finite counts as the greatest error."""
    each: NDArray[np.float64] = np.nan_to_num(distances(found, end).cpu().numpy(), nan=1e6, posinf=1e6).clip(
        max=1e6
    )
    mean = resample(len(each)).mean(each)
    median, p99 = np.quantile(each, [0.5, 0.99])
    return Errors(
        mean=mean["value"], low=mean["low"], high=mean["high"], median=float(median), p99=float(p99)
    )
