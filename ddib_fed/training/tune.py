"""`ddib model tune`: learns where the solver steps on one model, and writes steps.json with the measured errors.

The grid of n intervals between two fixed ends is n numbers u: the steps in lambda are shares softmax(u) of the way, so
that every u is a valid grid. They are learned by gradients through the solver (LD3, arXiv 2405.15506):

minimise over u, order and coordinates    log mean_i e_i + mean_i log e_i,    e_i = |student_i - reference_i|

The rows that steps are learned from, those that choose between candidates, and those that the published errors are over
are three sets.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.diffusion.bridge import integrate, soften
from ddib_fed.diffusion.denoiser import Condition, Denoiser, LevelTable, Places
from ddib_fed.diffusion.grids import Coordinates, Frame, Grid, LearnedSteps, Stage, make_grid
from ddib_fed.diffusion.plans import SolverSettings, learned_solver, plan
from ddib_fed.diffusion.schedule import Schedule
from ddib_fed.engine.model import DomainModel
from ddib_fed.errors import NotFinite, SettingsInvalid
from ddib_fed.evaluation.bootstrap import resample
from ddib_fed.models.bundle import Bundle, load_bundle, put_beside
from ddib_fed.models.sidecars import LEAST_STEP, MAX_LEARNED, Errors, Tuned, TunedLeg
from ddib_fed.training.own_samples import SEED, Counts, own_samples

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


@dataclass(frozen=True, slots=True)
class Rule:
    """How a leg is integrated, but for its grid."""

    stage: Stage
    order: int
    coordinates: Coordinates
    denoiser: Denoiser
    schedule: Schedule
    frame: Frame | None


def shares_of(lams: Tensor) -> Tensor:
    return torch.log(lams[:-1] - lams[1:])


def lams_of(u: Tensor, start: float, end: float) -> Tensor:
    fallen = torch.cumsum(torch.softmax(u, 0), 0) * (start - end)
    return torch.cat([u.new_full((1,), start), start - fallen[:-1], u.new_full((1,), end)])


def roll(rule: Rule, x: Tensor, lams: Tensor, cond: Condition = None) -> Tensor:
    """The end of x (N, *sample_shape) over the grid lams (n + 1,), from data to noise as given.

    It computes what `solvers.unipc` computes, with the levels as tensors.
    """
    lams = lams if rule.stage == "encode" else lams.flip(0)
    alphas, sigmas = torch.sigmoid(2.0 * lams).sqrt(), torch.sigmoid(-2.0 * lams).sqrt()
    table = torch.stack([alphas, sigmas, rule.schedule.t_of_lam(lams)], dim=1)
    frame = rule.frame if rule.coordinates == "spectrum" else None
    axis = torch.atan2(sigmas, alphas) if frame is None else lams
    state = x if frame is None else frame.enter(x, alphas[0], sigmas[0])
    guess = state
    history: deque[Tensor] = deque(maxlen=rule.order + 1)
    for i in range(len(lams) - 1):
        alpha, sigma = alphas[i], sigmas[i]
        at = guess if frame is None else frame.leave(guess, alpha, sigma)
        places = Places(LevelTable(table[i : i + 1]), None, None, x.dtype)
        v = rule.denoiser.at(at, places, cond)
        history.appendleft(v if frame is None else frame.slope(v, guess, alpha, sigma))
        if i > 0:
            nodes = axis[max(0, i - rule.order) : i + 1].flip(0)
            state = _advanced(state, nodes, axis[i - 1], axis[i], history)
        guess = _advanced(
            state, axis[max(0, i + 1 - rule.order) : i + 1].flip(0), axis[i], axis[i + 1], history
        )
    return guess if frame is None else frame.leave(guess, alphas[-1], sigmas[-1])


def _advanced(state: Tensor, nodes: Tensor, start: Tensor, end: Tensor, history: deque[Tensor]) -> Tensor:
    """The state at `end` by the polynomial through the newest values; see `solvers.integral_weights`."""
    h = end - start
    scaled = (nodes - start) / h
    powers = torch.arange(len(nodes), dtype=torch.float64)
    weights = h * torch.linalg.solve(scaled[None, :] ** powers[:, None], 1.0 / (powers + 1.0))
    for weight, value in zip(weights.to(state.dtype), history, strict=False):
        state = state + weight * value
    return state


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


Say = Callable[[str, int, int], None]
"""Told (what is being done, done, in all)."""
POINTS = Counts(fit=24_000, choose=2_000, held_out=4_000), Effort((3, 4, 5), 400, 40, 240, 3)
PICTURES = Counts(fit=24, choose=8, held_out=12), Effort((2, 3, 4), 2, 10, 30, 2, 0.05)
REFERENCE = 128
"""Evaluations of a reference leg."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is tuned."""

    evaluations: tuple[int, ...]
    data: Path | None = None
    soften: float | None = None
    seed: int = 0
    effort: float = 1.0

    def times(self, number: int) -> int:
        return max(1, round(number * self.effort))


def tune_bundle(folder: Path, wanted: Wanted, *, command: str = "", device: str = "cpu", say: Say) -> Tuned:
    """Learn steps of the bundle in a folder and write them beside its weights; its digest does not change."""
    bundle = load_bundle(folder)
    legs = tune(bundle, wanted, device=device, say=say)
    return put_legs(folder, legs, command=command)


def tune(bundle: Bundle, wanted: Wanted, *, device: str = "cpu", say: Say) -> tuple[TunedLeg, ...]:
    """The learned steps of both directions, with what they were measured to do; arguments as `tune_bundle`."""
    for number in wanted.evaluations:
        if not 2 <= number <= MAX_LEARNED:
            raise SettingsInvalid(
                f"{number} evaluations cannot be learned", hint=f"2 to {MAX_LEARNED}; above, --grid default"
            )
    model = DomainModel(replace(bundle, tuned=None), device=device)
    counts, effort = PICTURES if model.is_picture else POINTS
    effort = replace(effort, looks=wanted.times(effort.looks), iterations=wanted.times(effort.iterations))
    if model.is_picture and wanted.effort > 1.0:
        counts = replace(counts, fit=wanted.times(counts.fit), choose=wanted.times(counts.choose))
    found: list[TunedLeg] = []
    for leg in _legs(model, wanted, counts, say):
        known: list[LearnedSteps] = []
        # The most evaluations first: their grid starts a candidate of the fewer.
        for number in sorted(set(wanted.evaluations), reverse=True):
            tell = partial(say, f"{leg.stage} in {number}")
            known.append(learn(leg, number, effort, seed=wanted.seed, known=known, tell=tell))
            found.append(measured(leg, known[-1]))
    return tuple(found)


def measured(leg: TuningLeg, steps: LearnedSteps) -> TunedLeg:
    """Steps with their figures on the held-out rows."""
    rows = leg.held_out
    default = replace(YARDSTICK, evaluations=steps.evaluations)
    return TunedLeg(
        stage=steps.stage,
        evaluations=steps.evaluations,
        sigma=steps.sigma,
        order=steps.order,
        coordinates=steps.coordinates,
        lams=steps.lams,
        held_out=len(rows),
        error=errors(leg.learned_end(steps, rows), rows.end),
        default_error=errors(leg.default_end(default, rows), rows.end),
        yardstick=YARDSTICK.evaluations,
        yardstick_error=errors(leg.default_end(YARDSTICK, rows), rows.end),
        reference_gap=leg.reference_gap,
    )


def put_legs(folder: Path, legs: Sequence[TunedLeg], *, command: str = "") -> Tuned:
    """Write steps into the bundle in `folder`, in the place of those of the same direction, softening and number."""
    bundle = load_bundle(folder)
    tuned = bundle.tuned or Tuned(weights_sha256=bundle.manifest.weights_sha256)
    tuned = tuned.with_legs(tuple(legs), command)
    put_beside(folder, tuned)
    return tuned


def _legs(model: DomainModel, wanted: Wanted, counts: Counts, say: Say) -> list[TuningLeg]:
    sigma = model.sigma(wanted.soften)
    data = [model.tensor(model.normalise(each)) for each in own_samples(model.manifest, wanted.data, counts)]
    soft = [softened(x, sigma, wanted.seed + SEED - 1 - i) for i, x in enumerate(data)]
    encode = _leg(model, "encode", soft, sigma, wanted, say)
    # Decoding is learned from latents beside noise: they are what a node decodes.
    latents = (
        [rows.end for rows in (encode.fit, encode.choose, encode.held_out)] if model.is_picture else None
    )
    return [encode, _leg(model, "decode", _noise(soft, latents, wanted.seed), 0.0, wanted, say)]


def _leg(
    model: DomainModel, stage: Stage, starts: Sequence[Tensor], sigma: float, wanted: Wanted, say: Say
) -> TuningLeg:
    return tuning_leg(
        model,
        stage,
        (starts[0], starts[1], starts[2]),
        _conditions(model, starts, wanted.seed),
        sigma=sigma,
        evaluations=REFERENCE,
        tell=partial(say, f"reference of {stage}"),
    )


def _noise(like: Sequence[Tensor], latents: Sequence[Tensor] | None, seed: int) -> list[Tensor]:
    """Starts of decoding: N(0, I), and in every other row a latent where there are some."""
    starts = []
    for i, x in enumerate(like):
        start = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + SEED + i)).to(x)
        if latents is not None:
            start[::2] = latents[i][::2]
        starts.append(start)
    return starts


def _conditions(
    model: DomainModel, starts: Sequence[Tensor], seed: int
) -> tuple[Condition, Condition, Condition]:
    """A random class for each row, where the network has classes."""
    classes = model.manifest.num_classes
    if classes is None:
        return None, None, None
    drawn = np.random.default_rng(seed)
    first, second, third = (
        model.condition(drawn.integers(0, classes, len(x)).tolist(), len(x)) for x in starts
    )
    return first, second, third
