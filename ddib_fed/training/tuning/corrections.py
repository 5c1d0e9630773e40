"""Learns the corrections of a leg's steps: first from exact paths, then through the solver.

1. minimise  sum_i mean |a_i(f_i) - defect of predictor i| + |b_i(f_i) - defect of corrector i|   along exact paths
2. minimise  log mean e + w mean log e,   e = |student - exact end|,   by gradients through the corrected solver
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddib_fed.diffusion.corrections import FEATURES, Corrections
from ddib_fed.diffusion.levels.grids import make_grid
from ddib_fed.diffusion.levels.learned import LearnedSteps
from ddib_fed.training.tuning.legs import Rows, Told, TuningLeg, distances
from ddib_fed.training.tuning.paths import Linearised, Paths, exact_paths, linearised
from ddib_fed.training.tuning.soap import Soap

TINY = 1e-7
SMOOTH = 1e-2
"""Share of the mean defect below which a residual counts by its square, so that the fit settles."""
MEDIAN_SHARE = 0.3
"""w: above, the few points of great error are left behind."""


@dataclass(frozen=True, slots=True)
class CorrectionEffort:
    """How much is spent on the corrections of one leg and number."""

    hidden: int = 64
    fits: int = 1_000
    batch: int = 1_024
    rounds: int = 4
    rolls: int = 350
    rate: float = 1.5e-2
    roll_rate: float = 1e-2
    every: int = 70


def corrected(
    leg: TuningLeg,
    steps: LearnedSteps,
    effort: CorrectionEffort,
    *,
    moved: bool = False,
    seed: int = 0,
    tell: Told,
) -> LearnedSteps:
    """Steps with corrections, or those given where corrections do not help."""
    start = steps if moved else _half_way(leg, steps)
    generator = torch.Generator().manual_seed(seed)
    paths = exact_paths(leg, start, leg.fit)
    values = _first(paths, effort.hidden, generator)
    total = effort.fits + effort.rounds * effort.rolls
    _fit(values, paths, effort, generator, lambda done: tell(done, total))
    found = _rolled(
        leg,
        replace(start, corrections=values),
        replace(leg.fit, end=paths.points[-1]),
        effort,
        generator,
        lambda done: tell(effort.fits + done, total),
    )
    return min((found, steps), key=lambda each: _score(leg, each))


def _half_way(leg: TuningLeg, steps: LearnedSteps) -> LearnedSteps:
    default = make_grid(leg.model.bundle.schedule, "default", steps.evaluations, lambda_max=leg.ends[0])
    lams = tuple(0.5 * (a + level.lam) for a, level in zip(steps.lams, default.levels, strict=True))
    return replace(steps, lams=lams)


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


def _lengths(defects: Tensor, smooth: float = TINY) -> Tensor:
    halves = torch.stack(defects.chunk(2, dim=2), dim=2)
    return (halves.square().sum(3) + smooth**2).sqrt()


def _weights(values: Corrections) -> list[Tensor]:
    fixed = ("centre", "spread", "size")
    return [tensor.requires_grad_() for name, tensor in values.named().items() if name not in fixed]


def _optimiser(
    values: Corrections, rate: float, count: int
) -> tuple[Soap, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = Soap(_weights(values), rate)
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
        which = torch.multinomial(chance, effort.batch, replacement=True, generator=generator)
        which = which.to(paths.points.device)
        found = torch.cat(values.of_features(paths.features[:, which], slice(None)), dim=2)
        loss = _lengths((found - paths.defects[:, which]) / values.size, SMOOTH).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        fall.step()
        tell(done)


def _rolled(
    leg: TuningLeg,
    start: LearnedSteps,
    rows: Rows,
    effort: CorrectionEffort,
    generator: torch.Generator,
    tell: Callable[[int], None],
) -> LearnedSteps:
    """Learn through the solver; the best by the rows that decide."""
    assert start.corrections is not None
    optimiser, fall = _optimiser(start.corrections, effort.roll_rate, effort.rounds * effort.rolls)
    best = _frozen(start)
    score = _score(leg, best)
    for done in range(effort.rounds * effort.rolls):
        if done % effort.rolls == 0:
            along = linearised(leg, _frozen(start), rows)
            chance = _chances(distances(along.end, rows.end))
        loss = _loss(leg, start, rows, along, chance, effort.batch, generator)
        optimiser.zero_grad()
        if bool(torch.isfinite(loss)):
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(_weights(start.corrections), 1.0)
            optimiser.step()
        fall.step()
        if (done + 1) % effort.every == 0 or done + 1 == effort.rounds * effort.rolls:
            now = _frozen(start)
            reached = _score(leg, now)
            best, score = (now, reached) if reached < score else (best, score)
        tell(done + 1)
    return best


def _loss(
    leg: TuningLeg,
    steps: LearnedSteps,
    rows: Rows,
    along: Linearised,
    chance: Tensor,
    batch: int,
    generator: torch.Generator,
) -> Tensor:
    """The objective over rows drawn with unequal chances (N,), made up for by weights."""
    drawn = torch.multinomial(chance, batch, replacement=True, generator=generator)
    weight = (1.0 / len(chance) / chance[drawn]).to(rows.x.device)
    which = drawn.to(rows.x.device)
    found = along.walked(leg, steps, rows.x[which], which)
    each = ((found - rows.end[which]).square().sum(1) + TINY**2).sqrt()
    capped = weight.clamp(max=2.0)
    return (weight * each).mean().log() + MEDIAN_SHARE * (capped * (each + TINY).log()).mean()


def _score(leg: TuningLeg, steps: LearnedSteps) -> float:
    each = distances(leg.learned_end(steps, leg.choose), leg.choose.end) + TINY
    value = float(each.mean().log() + MEDIAN_SHARE * each.log().mean())
    return value if math.isfinite(value) else math.inf


def _frozen(steps: LearnedSteps) -> LearnedSteps:
    assert steps.corrections is not None
    copies = {name: tensor.detach().clone() for name, tensor in steps.corrections.named().items()}
    return replace(steps, corrections=Corrections(**copies))


def _chances(sizes: Tensor) -> Tensor:
    sizes = torch.nan_to_num(sizes.float().cpu(), nan=0.0, posinf=0.0)
    return 0.5 / len(sizes) + 0.5 * sizes / sizes.sum().clamp_min(TINY)
