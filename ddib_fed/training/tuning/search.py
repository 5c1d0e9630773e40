"""Learns the grid of a leg for a number of evaluations, by gradients through the solver (LD3, arXiv 2405.15506).

minimise over u, order and coordinates    log mean_i e_i + mean_i log e_i,    e_i = |student_i - reference_i|
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from ddib_fed.diffusion.levels.grids import make_grid
from ddib_fed.diffusion.levels.learned import Coordinates, LearnedSteps
from ddib_fed.models.tuned import LEAST_STEP
from ddib_fed.training.tuning.legs import Rows, Told, TuningLeg, distances
from ddib_fed.training.tuning.rollout import Rule, lams_of, roll, shares_of

GRIDS = ("default", "uniform-lambda")
TINY = 1e-7
"""Added to distances: float32 is no nearer."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is spent on one leg and number."""

    orders: tuple[int, ...]
    batch: int
    looks: int
    iterations: int
    tried: int
    rate: float = 0.03
    every: int = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """Steps with what they reach on the rows that decide."""

    steps: LearnedSteps
    score: float


def learn(
    leg: TuningLeg,
    evaluations: int,
    effort: Effort,
    *,
    seed: int = 0,
    known: Sequence[LearnedSteps] = (),
    tell: Told,
) -> LearnedSteps:
    """The steps of a leg."""
    first = sorted(_starts(leg, evaluations, effort, known), key=lambda each: each.score)
    # With more evaluations the choice has been made: only the rest of the way is gone again.
    tried = first[:1] if known else _distinct(first)[: effort.tried]
    rest = effort.iterations // 2 if known else effort.iterations
    total = effort.looks * len(tried) + rest
    generator = torch.Generator().manual_seed(seed)
    learned, spent = [], 0
    for candidate in tried:
        learned.append(_descend(leg, candidate, effort, effort.looks, generator, _from(tell, spent, total)))
        spent += effort.looks
    best = min(learned, key=lambda each: each.score)
    best = _descend(leg, best, effort, rest, generator, _from(tell, spent, total))
    return best.steps


def objective(found: Tensor, end: Tensor) -> Tensor:
    """See the module; a scalar, infinite where something is not finite."""
    each = distances(found, end) + TINY
    value = each.mean().log() + each.log().mean()
    return torch.where(torch.isfinite(value), value, torch.full_like(value, torch.inf))


def _starts(
    leg: TuningLeg, evaluations: int, effort: Effort, known: Sequence[LearnedSteps]
) -> Iterator[Candidate]:
    """Every order and coordinate system on the named grids, and the known grids thinned or filled."""
    frames: tuple[Coordinates, ...] = ("angle",) if leg.model.frame() is None else ("spectrum", "angle")
    schedule = leg.model.bundle.schedule
    for name, coordinates, order in product(GRIDS, frames, effort.orders):
        grid = make_grid(schedule, name, evaluations, lambda_max=leg.ends[0])
        lams = tuple(level.lam for level in grid.levels)
        yield _judged(leg, LearnedSteps(leg.stage, evaluations, leg.sigma, order, coordinates, lams))
    for steps in known:
        lams = _resampled(steps.lams, evaluations)
        yield _judged(leg, replace(steps, evaluations=evaluations, lams=lams))


def _resampled(lams: tuple[float, ...], evaluations: int) -> tuple[float, ...]:
    """The same density of levels with another number of them, by linear interpolation over their index."""
    last = len(lams) - 1
    found = []
    for i in range(evaluations + 1):
        place = i * last / evaluations
        low = min(int(place), last - 1)
        found.append(lams[low] + (place - low) * (lams[low + 1] - lams[low]))
    return tuple(found)


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    seen: dict[tuple[int, str], Candidate] = {}
    for each in candidates:
        seen.setdefault((each.steps.order, each.steps.coordinates), each)
    return list(seen.values())


def _judged(leg: TuningLeg, steps: LearnedSteps) -> Candidate:
    rows = leg.choose
    return Candidate(steps, float(objective(leg.learned_end(steps, rows), rows.end)))


def _descend(
    leg: TuningLeg, start: Candidate, effort: Effort, iterations: int, generator: torch.Generator, tell: Told
) -> Candidate:
    """Adam on u; the best by the rows that decide, which may be the start."""
    rule = Rule(
        leg.stage,
        start.steps.order,
        start.steps.coordinates,
        leg.model.denoiser(),
        leg.model.bundle.schedule,
        leg.model.frame(),
    )
    u = shares_of(torch.tensor(start.steps.lams, dtype=torch.float64)).requires_grad_()
    optimiser = torch.optim.Adam([u], lr=effort.rate, betas=(0.9, 0.95))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, iterations), eta_min=effort.rate / 20)
    best = start
    for done in range(1, iterations + 1):
        rows = _batch(leg.fit, effort.batch, generator)
        loss = _loss(rule, rows, u, leg.ends)
        optimiser.zero_grad()
        if bool(torch.isfinite(loss)):
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([u], 1.0)
            optimiser.step()
        fall.step()
        if done % effort.every == 0 or done == iterations:
            best = min(best, _candidate(leg, start.steps, u), key=lambda each: each.score)
        tell(done, iterations)
    return best


def _loss(rule: Rule, rows: Rows, u: Tensor, ends: tuple[float, float]) -> Tensor:
    with torch.enable_grad():
        return objective(roll(rule, rows.x, lams_of(u, *ends), rows.cond), rows.end)


def _candidate(leg: TuningLeg, like: LearnedSteps, u: Tensor) -> Candidate:
    lams = lams_of(u.detach(), *leg.ends)
    if float((lams[:-1] - lams[1:]).min()) < LEAST_STEP:
        return Candidate(like, float("inf"))
    return _judged(leg, replace(like, lams=tuple(lams.tolist())))


def _batch(rows: Rows, size: int, generator: torch.Generator) -> Rows:
    which = torch.randperm(len(rows), generator=generator)[:size]
    return rows.chosen(which.to(rows.x.device))


def _from(tell: Told, spent: int, total: int) -> Told:
    return lambda done, _: tell(spent + done, total)
