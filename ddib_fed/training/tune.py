"""`Model.tune`: learned steps of a finished model.

The n steps in lambda are shares softmax(u) of the way, learned by gradients through the solver (LD3, arXiv 2405.15506):

minimise over u, order and coordinates    log mean_i e_i + mean_i log e_i,    e_i = |student_i - reference_i|

Rows to learn from, to choose by, and to measure the published errors with are three sets.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.data.fitting import check_fit
from ddib_fed.data.folder import load, scan
from ddib_fed.diffusion.denoiser import Condition, LevelTable, Places
from ddib_fed.diffusion.plans import SolverSettings, learned_steps, plan
from ddib_fed.diffusion.schedule import Coordinates, LearnedSteps, Level, LevelGrid, Stage, make_grid
from ddib_fed.diffusion.solvers import integral_weights
from ddib_fed.engine.model import DomainModel
from ddib_fed.errors import InputError, NotFinite, SettingsInvalid
from ddib_fed.metrics import calibrate_by_chance, picture_rule, resample
from ddib_fed.models.bundle import Bundle, amend_bundle, load_bundle, put_beside
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.sidecars import LEAST_STEP, Errors, Tuned, TunedLeg
from ddib_fed.training.sources import Floats, own_samples

Told = Callable[[int, int], None]  # told (done, in all)
YARDSTICK = SolverSettings()  # what learned steps are held against: the default solver, grid and number
REFERENCE = 128  # evaluations of a reference leg
GRIDS = ("default", "uniform-lambda")
TINY = 1e-7  # added to distances: float32 is no nearer
FEWEST = 12
GATE_PICTURES = 300  # pictures that are encoded for the gate's bounds, where there are so many


class Effort(NamedTuple):
    """How much is spent on one leg and number: samples of the three sets, orders that are tried, samples of an
    iteration, iterations of each candidate and of the best, and how many candidates are tried.
    """

    fit: int
    choose: int
    held_out: int
    orders: tuple[int, ...]
    batch: int
    looks: int
    iterations: int
    tried: int
    rate: float = 0.03


POINTS = Effort(24_000, 2_000, 4_000, (3, 4, 5), 400, 40, 240, 3)
PICTURES = Effort(24, 8, 12, (2, 3, 4), 2, 10, 30, 2, 0.05)


class Rows(NamedTuple):
    """Samples of one set: where a leg starts, and where its reference ends."""

    x: Tensor
    cond: Condition
    end: Tensor

    def chosen(self, which: Tensor) -> Rows:
        cond = None if self.cond is None else {key: value[which] for key, value in self.cond.items()}
        return Rows(self.x[which], cond, self.end[which])


def put_legs(folder: Path, legs: Sequence[TunedLeg], *, command: str = "") -> Tuned:
    """Write steps into the bundle in `folder`, in the place of those of the same direction, softening and number."""
    bundle = load_bundle(folder)
    tuned = bundle.tuned or Tuned(weights_sha256=bundle.manifest.weights_sha256)
    tuned = tuned.with_legs(tuple(legs), command)
    put_beside(folder, tuned)
    return tuned


def sets(manifest: Manifest, data: Path | str | None, effort: Effort) -> tuple[Floats, Floats, Floats]:
    """Return samples to learn from, to choose with, and to measure with; held-out ones first go to the last two."""
    total = effort.fit + effort.choose + effort.held_out
    found = own_samples(manifest, data, total, effort.choose + effort.held_out)
    every = found.mixed()
    if len(every) < FEWEST:
        problem = f"{found.name} has {len(every)} samples; at least {FEWEST} are needed"
        raise InputError(problem, hint="give more")
    share = min(1.0, len(every) / total)
    held_out, choose, fit = (max(2, int(share * n)) for n in (effort.held_out, effort.choose, effort.fit))
    return every[choose + held_out :][:fit], every[held_out : held_out + choose], every[:held_out]


def noise(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


class TuningLeg:
    """A leg that is to be tuned, with its references computed."""

    def __init__(
        self, model: DomainModel, stage: Stage, starts: Sequence[Tensor], sigma: float, seed: int, tell: Told
    ) -> None:
        self.model, self.stage, self.sigma, self.spectral = model, stage, sigma, model.spectral
        self.schedule = model.bundle.schedule
        highest = self.schedule.lambda_max
        self.ends = (highest if sigma == 0.0 else min(highest, -math.log(sigma)), self.schedule.lambda_min)
        drawn, classes = np.random.default_rng(seed), model.manifest.num_classes
        self.sets: list[Rows] = []
        for done, x in enumerate(starts):
            tell(done, len(starts) + 1)
            labels = None if classes is None else drawn.integers(0, classes, len(x)).tolist()
            cond = None if labels is None else model.condition(labels)
            end = self._reference(x, cond, REFERENCE)
            if not bool(torch.isfinite(end).all()):
                problem = f"{model.manifest.name}: the reference of {stage} is not finite"
                raise NotFinite(problem, hint="train the model again")
            self.sets.append(Rows(x, cond, end))
        self.fit, self.choose, self.held_out = self.sets
        half = self._reference(self.choose.x, self.choose.cond, REFERENCE // 2)
        self.reference_gap = float(distances(half, self.choose.end).mean())
        tell(len(starts) + 1, len(starts) + 1)

    def _reference(self, x: Tensor, cond: Condition, evaluations: int) -> Tensor:
        """Take rows many small steps: even in lambda in a spectral network's frame, else on the default grid."""
        name = GRIDS[self.spectral]
        coordinates: Coordinates = "spectrum" if self.spectral else "angle"
        start = None if self.sigma == 0.0 else -math.log(self.sigma)
        grid = make_grid(self.schedule, name, evaluations, lambda_max=start)
        lams = tuple(level.lam for level in grid.levels)
        steps = LearnedSteps(self.stage, evaluations, self.sigma, 3, coordinates, lams)
        return self._walked(steps, grid, x, cond)

    def learned_end(self, steps: LearnedSteps, rows: Rows) -> Tensor:
        return self._walked(steps, steps.grid(self.schedule, *self.ends), rows.x, rows.cond)

    def _walked(self, steps: LearnedSteps, grid: LevelGrid, x: Tensor, cond: Condition) -> Tensor:
        grid = grid if self.stage == "encode" else grid.reversed()
        return self.model.integrate(x, learned_steps(steps, grid), cond=cond)

    def default_end(self, settings: SolverSettings, rows: Rows) -> Tensor:
        laid = plan(settings, self.schedule, soften_sigma=self.sigma)
        steps = laid.encoder if self.stage == "encode" else laid.decoder
        return self.model.integrate(rows.x, steps, cond=rows.cond)

    def roll(self, steps: LearnedSteps, rows: Rows, lams: Tensor) -> Tensor:
        """Return what `solvers.unipc` ends with over the grid lams (n + 1,), differentiable in it."""
        lams = lams if self.stage == "encode" else lams.flip(0)
        alphas, sigmas = torch.sigmoid(2.0 * lams).sqrt(), torch.sigmoid(-2.0 * lams).sqrt()
        table = torch.stack([alphas, sigmas, self.schedule.t_of_lam(lams)], dim=1)
        whitened = steps.coordinates == "spectrum"
        denoiser, order = self.model.denoiser(whitened=whitened), steps.order
        axis = lams if whitened else torch.atan2(sigmas, alphas)
        first, last = (Level(*table[i].tolist()) for i in (0, -1))  # the ends of the leg, which stay
        guess = state = denoiser.enter(rows.x, first)
        history: deque[Tensor] = deque(maxlen=order + 1)
        for i in range(len(lams) - 1):
            places = Places(LevelTable(table[i : i + 1]), None, None, rows.x.dtype)
            history.appendleft(denoiser.at(guess, places, rows.cond))
            if i > 0:
                nodes = axis[max(0, i - order) : i + 1].flip(0)
                state = _advanced(state, nodes, axis[i - 1], axis[i], history)
            nodes = axis[max(0, i + 1 - order) : i + 1].flip(0)
            guess = _advanced(state, nodes, axis[i], axis[i + 1], history)
        return denoiser.leave(guess, last)

    def measured(self, steps: LearnedSteps) -> TunedLeg:
        rows, default = self.held_out, replace(YARDSTICK, evaluations=steps.evaluations)
        return TunedLeg(
            **asdict(steps),
            held_out=len(rows.x),
            error=errors(self.learned_end(steps, rows), rows.end),
            default_error=errors(self.default_end(default, rows), rows.end),
            yardstick=YARDSTICK.evaluations,
            yardstick_error=errors(self.default_end(YARDSTICK, rows), rows.end),
            reference_gap=self.reference_gap,
        )


def _advanced(state: Tensor, nodes: Tensor, start: Tensor, end: Tensor, history: deque[Tensor]) -> Tensor:
    """Return the state at `end` by the polynomial through the newest values."""
    weights = integral_weights(nodes, start, end)
    for weight, value in zip(weights.to(state.dtype), history, strict=False):
        state = state + weight * value
    return state


def distances(found: Tensor, end: Tensor) -> Tensor:
    """Return, of points the Euclidean distance, of pictures the root mean square difference; (N,)."""
    squares = (found.double() - end.double()).flatten(1).square()
    return (squares.sum(1) if found.ndim == 2 else squares.mean(1)).sqrt()


def errors(found: Tensor, end: Tensor) -> Errors:
    """Return statistics of the distances, with an interval over samples. Not finite counts as the greatest error."""
    each: NDArray[np.float64] = distances(found, end).cpu().numpy()
    each = np.nan_to_num(each, nan=1e6, posinf=1e6).clip(max=1e6)
    mean = resample(len(each)).mean(each)
    median, p99 = np.quantile(each, [0.5, 0.99])
    return Errors(
        mean=mean["value"], low=mean["low"], high=mean["high"], median=float(median), p99=float(p99)
    )


def objective(found: Tensor, end: Tensor) -> Tensor:
    """Return the loss of the module's text: a scalar, infinite where something is not finite."""
    each = distances(found, end) + TINY
    value = each.mean().log() + each.log().mean()
    return torch.where(torch.isfinite(value), value, torch.full_like(value, torch.inf))


class Candidate(NamedTuple):
    """Steps with what they reach on the rows that decide; the least is the best."""

    score: float
    steps: LearnedSteps


def learn(
    leg: TuningLeg, evaluations: int, effort: Effort, seed: int, known: Sequence[LearnedSteps], tell: Told
) -> LearnedSteps:
    """Learn the steps of a leg. `known` are steps of more evaluations, of which thinned ones are candidates."""

    def judged(steps: LearnedSteps) -> Candidate:
        return Candidate(float(objective(leg.learned_end(steps, leg.choose), leg.choose.end)), steps)

    frames: tuple[Coordinates, ...] = ("spectrum", "angle") if leg.spectral else ("angle",)
    first = []
    for name, coordinates, order in product(GRIDS, frames, effort.orders):
        grid = make_grid(leg.schedule, name, evaluations, lambda_max=leg.ends[0])
        lams = tuple(level.lam for level in grid.levels)
        first.append(judged(LearnedSteps(leg.stage, evaluations, leg.sigma, order, coordinates, lams)))
    for steps in known:
        places = np.linspace(0, len(steps.lams) - 1, evaluations + 1)
        lams = tuple(np.interp(places, np.arange(len(steps.lams)), steps.lams).tolist())
        first.append(judged(replace(steps, evaluations=evaluations, lams=lams)))
    first.sort(key=lambda each: each.score)
    # With more evaluations the choice has been made: only the rest of the way is gone again.
    kinds = {(each.steps.order, each.steps.coordinates): each for each in reversed(first)}
    distinct = sorted(kinds.values(), key=lambda each: each.score)
    tried = first[:1] if known else distinct[: effort.tried]
    rest = effort.iterations // 2 if known else effort.iterations
    total, spent = effort.looks * len(tried) + rest, 0
    generator = torch.Generator().manual_seed(seed)

    def descended(start: Candidate, iterations: int) -> Candidate:
        """Adam on u; the best by the rows that decide, which may be the start."""
        nonlocal spent
        lams = torch.tensor(start.steps.lams, dtype=torch.float64)
        u = torch.log(lams[:-1] - lams[1:]).requires_grad_()
        optimiser = torch.optim.Adam([u], lr=effort.rate, betas=(0.9, 0.95))
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimiser, max(1, iterations), eta_min=effort.rate / 20
        )
        best = start
        for done in range(1, iterations + 1):
            which = torch.randperm(len(leg.fit.x), generator=generator)[: effort.batch]
            rows = leg.fit.chosen(which.to(leg.fit.x.device))
            with torch.enable_grad():
                loss = objective(leg.roll(start.steps, rows, lams_of(u, *leg.ends)), rows.end)
            optimiser.zero_grad()
            if bool(torch.isfinite(loss)):
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_([u], 1.0)
                optimiser.step()
            fall.step()
            if done % 10 == 0 or done == iterations:
                lams = lams_of(u.detach(), *leg.ends)
                if float((lams[:-1] - lams[1:]).min()) >= LEAST_STEP:
                    found = judged(replace(start.steps, lams=tuple(lams.tolist())))
                    best = min(best, found, key=lambda each: each.score)
            spent += 1
            tell(spent, total)
        return best

    best = min((descended(each, effort.looks) for each in tried), key=lambda each: each.score)
    return descended(best, rest).steps


def lams_of(u: Tensor, start: float, end: float) -> Tensor:
    """Return the grid (n + 1,) of the numbers u (n,)."""
    fallen = torch.cumsum(torch.softmax(u, 0), 0) * (start - end)
    return torch.cat([u.new_full((1,), start), start - fallen[:-1], u.new_full((1,), end)])


FEWEST_FOR_CHANCE = 8
MOST_FOR_CHANCE = 4_000
"""`metrics.CHANCE_PAIRS` pairs need no more pictures, spread over the folder."""


def put_thresholds(
    model: Path, images: Path, *, skip_bad: bool = False, progress: Callable[[int, int], None] | None = None
) -> Bundle:
    """Measure the thresholds on pictures of the model's domain, and write them into its manifest."""
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
    if len(entries) < FEWEST_FOR_CHANCE:
        raise InputError(
            f"{images} has {len(entries)} pictures; at least {FEWEST_FOR_CHANCE} are needed",
            hint="add pictures of the domain",
        )
    pictures = load(entries[:: -(-len(entries) // MOST_FOR_CHANCE)], rule)
    thresholds = calibrate_by_chance(pictures[::2], pictures[1::2], units=manifest.normalisation)
    return amend_bundle(model, structure=thresholds)
