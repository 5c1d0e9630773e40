"""Learns the corrections of a leg's steps: first from exact paths, then through the solver.

    1. minimise  sum_i mean |a_i(f_i) - defect of predictor i| + |b_i(f_i) - defect of corrector i|   along exact paths
    2. minimise  log mean e + w mean log e,   e = |student - exact end|,   by gradients through the corrected solver

The first costs no evaluation of the model beyond the paths, but sees only exact histories; the second mends what the
student's own histories add. Points with great defects are drawn more often: the mean error is carried by the few whose
path bends between two levels. Corrections that do not lower the error of rows that were not learned from are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.corrections import DIFFERENCES, FEATURES, Corrections, features_of
from ddib_fed.diffusion.learned_solver import learned_solver
from ddib_fed.diffusion.levels.grids import Grid, make_grid
from ddib_fed.diffusion.levels.learned import LearnedSteps
from ddib_fed.diffusion.solvers import Solver, Weights, unipc, unipc_weights
from ddib_fed.training.tuning.legs import Rows, Told, TuningLeg, distances
from ddib_fed.training.tuning.search import objective

HALVINGS = 8
"""Steps of the exact path in each interval of the grid."""
TINY = 1e-7
MEDIAN_SHARE = 0.3
"""w: above, the few points of great error are left behind."""


@dataclass(frozen=True, slots=True)
class CorrectionEffort:
    """How much is spent on the corrections of one leg and number.

    Attributes:
        hidden: Units of each layer.
        fits: Gradients along exact paths.
        fit_batch: Points of each.
        rolls: Gradients through the solver.
        roll_batch: Points of each.
        rate: Adam's first learning rate along paths; through the solver a quarter of it.
        every: Gradients through the solver between two looks at the rows that decide.
    """

    hidden: int = 48
    fits: int = 2_000
    fit_batch: int = 1_024
    rolls: int = 300
    roll_batch: int = 400
    rate: float = 4e-3
    every: int = 20


@dataclass(frozen=True, slots=True)
class Paths:
    """Exact paths of N points of dimension D over E steps.

    Attributes:
        points: At each level, (E + 1, N, D).
        features: Of each step, (E, N, 5 D).
        defects: What predictor and corrector of each step miss, (E, N, 2 D); 0 for the first corrector, which is none.
    """

    points: Tensor
    features: Tensor
    defects: Tensor


def corrected(
    leg: TuningLeg, steps: LearnedSteps, effort: CorrectionEffort, *, seed: int = 0, tell: Told
) -> LearnedSteps:
    """Steps with corrections, or those given where corrections do not help.

    The levels are moved half-way to those of the default grid: levels learned for all points alike leave wide gaps
    where only a few paths bend, and there a correction would have the most to do.

    Args:
        leg: Of points.
        steps: Over the angle, without corrections.
        effort: How much to spend.
        seed: Of first weights and batches.
        tell: Told (gradients done, in all).
    """
    default = make_grid(leg.model.bundle.schedule, "default", steps.evaluations, lambda_max=leg.ends[0])
    lams = tuple(0.5 * (a + level.lam) for a, level in zip(steps.lams, default.levels, strict=True))
    start = replace(steps, lams=lams)
    generator = torch.Generator().manual_seed(seed)
    paths = exact_paths(leg, start, leg.fit)
    values = _first(paths, effort.hidden, generator)
    _fit(values, paths, effort, generator, lambda done: tell(done, effort.fits + effort.rolls))
    found = _roll(
        leg,
        replace(start, corrections=values),
        paths,
        effort,
        generator,
        lambda done: tell(effort.fits + done, effort.fits + effort.rolls),
    )
    return min((found, steps), key=lambda each: _score(leg, each))


def exact_paths(leg: TuningLeg, steps: LearnedSteps, rows: Rows) -> Paths:
    """The paths of rows, by many small steps between the levels of `steps`."""
    inner = [
        high + (low - high) * part / HALVINGS
        for high, low in zip(steps.lams[:-1], steps.lams[1:], strict=True)
        for part in range(HALVINGS)
    ]
    fine = replace(steps, evaluations=len(inner), lams=(*inner, steps.lams[-1]))
    points, velocities = _walked(leg, unipc(rows.x, _grid(leg, fine), cond=rows.cond))
    return _defects(points, velocities, _grid(leg, steps).phis, steps.order)


def _grid(leg: TuningLeg, steps: LearnedSteps) -> Grid:
    grid = steps.grid(leg.model.bundle.schedule, *leg.ends)
    return grid if leg.stage == "encode" else grid.reversed()


def _walked(leg: TuningLeg, solver: Solver) -> tuple[Tensor, Tensor]:
    """Points (E + 1, N, D) and velocities (E, N, D) at each of the coarse levels."""
    denoiser = leg.model.denoiser()
    points: list[Tensor] = []
    velocities: list[Tensor] = []
    with torch.no_grad():
        query = next(solver)
        number = 0
        try:
            while True:
                v = denoiser(query.x, query.level, query.cond)
                if number % HALVINGS == 0:
                    points.append(query.x.clone())
                    velocities.append(v.clone())
                number += 1
                query = solver.send(v)
        except StopIteration as stop:
            points.append(stop.value)
    return torch.stack(points), torch.stack(velocities)


def _defects(points: Tensor, velocities: Tensor, phis: tuple[float, ...], order: int) -> Paths:
    predictors, correctors = unipc_weights(phis, order)
    kept = 1 + max(order, DIFFERENCES)
    features, defects = [], []
    for i in range(len(velocities)):
        history = list(velocities[max(0, i + 1 - kept) : i + 1].flip(0))
        features.append(features_of(phis, i, points[i], history))
        ahead = points[i + 1] - points[i] - _sum(predictors[i], history)
        behind = torch.zeros_like(ahead)
        if i > 0:
            behind = points[i] - points[i - 1] - _sum(correctors[i - 1], history)
        defects.append(torch.cat([ahead, behind], dim=1))
    return Paths(points, torch.stack(features), torch.stack(defects))


def _sum(weights: Weights, history: list[Tensor]) -> Tensor:
    return torch.stack([weight * v for weight, v in zip(weights, history, strict=False)]).sum(0)


def _first(paths: Paths, hidden: int, generator: torch.Generator) -> Corrections:
    """Corrections that add little, on the scales of the paths."""
    steps, _, double = paths.defects.shape
    wide = FEATURES * double // 2

    def drawn(rows: int, columns: int, share: float = 1.0) -> Tensor:
        weights = torch.randn(steps, rows, columns, generator=generator)
        return (weights * share / math.sqrt(rows)).to(paths.points)

    def zeros(columns: int) -> Tensor:
        return paths.points.new_zeros(steps, 1, columns)

    size = _lengths(paths.defects).mean(1, keepdim=True).repeat_interleave(double // 2, dim=2) + TINY
    return Corrections(
        centre=paths.features.mean(1, keepdim=True),
        spread=paths.features.std(1, keepdim=True) + 1e-6,
        first=drawn(wide, hidden),
        first_bias=zeros(hidden),
        second=drawn(hidden, hidden),
        second_bias=zeros(hidden),
        last=drawn(hidden, double, 0.1),
        last_bias=zeros(double),
        size=size,
    )


def _lengths(defects: Tensor) -> Tensor:
    """Of the predictor's and the corrector's, (E, N, 2), from (E, N, 2 D)."""
    halves = torch.stack(defects.chunk(2, dim=2), dim=2)
    return (halves.square().sum(3) + TINY**2).sqrt()


def _weights(values: Corrections) -> list[Tensor]:
    fixed = ("centre", "spread", "size")
    return [tensor.requires_grad_() for name, tensor in values.named().items() if name not in fixed]


def _optimiser(
    values: Corrections, rate: float, count: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.Adam(_weights(values), lr=rate)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, count), eta_min=rate / 100)


def _fit(
    values: Corrections,
    paths: Paths,
    effort: CorrectionEffort,
    generator: torch.Generator,
    tell: Callable[[int], None],
) -> None:
    """Learn along exact paths, in place; all steps at once."""
    sizes = values.size[:, :, :: values.dimension]
    chance = _chances((_lengths(paths.defects) / sizes).sum((0, 2)))
    optimiser, fall = _optimiser(values, effort.rate, effort.fits)
    for done in range(1, effort.fits + 1):
        which = torch.multinomial(chance, effort.fit_batch, replacement=True, generator=generator)
        which = which.to(paths.points.device)
        found = torch.cat(values.of_features(paths.features[:, which], slice(None)), dim=2)
        missed = (found - paths.defects[:, which]) / values.size
        loss = _lengths(missed).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        fall.step()
        tell(done)


def _roll(
    leg: TuningLeg,
    start: LearnedSteps,
    paths: Paths,
    effort: CorrectionEffort,
    generator: torch.Generator,
    tell: Callable[[int], None],
) -> LearnedSteps:
    """Learn through the solver; the best by the rows that decide."""
    assert start.corrections is not None
    rows = replace(leg.fit, end=paths.points[-1])
    chance = _chances(distances(leg.learned_end(_frozen(start), rows), rows.end))
    optimiser, fall = _optimiser(start.corrections, effort.rate / 4, effort.rolls)
    best = _frozen(start)
    score = _score(leg, best)
    for done in range(1, effort.rolls + 1):
        which = torch.multinomial(chance, effort.roll_batch, replacement=True, generator=generator)
        weight = (1.0 / len(chance) / chance[which]).to(rows.x.device)
        loss = _loss(leg, start, rows.chosen(which.to(rows.x.device)), weight)
        optimiser.zero_grad()
        if bool(torch.isfinite(loss)):
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(_weights(start.corrections), 1.0)
            optimiser.step()
        fall.step()
        if done % effort.every == 0 or done == effort.rolls:
            now = _frozen(start)
            reached = _score(leg, now)
            best, score = (now, reached) if reached < score else (best, score)
        tell(done)
    return best


def _loss(leg: TuningLeg, steps: LearnedSteps, rows: Rows, weight: Tensor) -> Tensor:
    """The objective over rows that were drawn with other chances; `weight` (N,) makes up for them."""
    denoiser = leg.model.denoiser()
    solver = learned_solver(steps, rows.x, _grid(leg, steps), rows.cond, None)
    with torch.enable_grad():
        query = next(solver)
        try:
            while True:
                query = solver.send(denoiser(query.x, query.level, query.cond))
        except StopIteration as stop:
            found: Tensor = stop.value
        each = ((found - rows.end).square().sum(1) + TINY**2).sqrt()
        capped = weight.clamp(max=2.0)
        return (weight * each).mean().log() + MEDIAN_SHARE * (capped * (each + TINY).log()).mean()


def _score(leg: TuningLeg, steps: LearnedSteps) -> float:
    rows = leg.choose
    grid = _grid(leg, steps)
    found = integrate(learned_solver(steps, rows.x, grid, rows.cond, None), leg.model.denoiser())
    return float(objective(found, rows.end))


def _frozen(steps: LearnedSteps) -> LearnedSteps:
    """A copy whose corrections stay as they are."""
    assert steps.corrections is not None
    copies = {name: tensor.detach().clone() for name, tensor in steps.corrections.named().items()}
    return replace(steps, corrections=Corrections(**copies))


def _chances(sizes: Tensor) -> Tensor:
    """Half evenly, half by size: (N,) float32 on the CPU, of sum 1."""
    sizes = torch.nan_to_num(sizes.float().cpu(), nan=0.0, posinf=0.0)
    return 0.5 / len(sizes) + 0.5 * sizes / sizes.sum().clamp_min(TINY)
