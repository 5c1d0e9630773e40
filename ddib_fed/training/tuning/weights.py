"""Learns the weights of a leg's steps by Gauss-Newton through the solver.

minimise over the weights w    sum_i |student_i(w) - exact end_i|^2 / e_i^2 + mu |w - w_now|^2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import Condition, Denoiser
from ddib_fed.diffusion.levels.grids import Grid
from ddib_fed.diffusion.levels.learned import Frame, LearnedSteps, StepWeights
from ddib_fed.diffusion.schedule import Level
from ddib_fed.diffusion.solvers import unipc_weights
from ddib_fed.training.tuning.legs import Rows, Told, TuningLeg, distances
from ddib_fed.training.tuning.search import objective

QUOTIENT = 2e-3
"""Change of a weight in a difference quotient, in intervals: it moves the end far more than float32 rounds."""
TINY = 1e-5
"""Added to distances: pictures that are as good as exact do not outweigh all others."""
DAMPINGS = (1e-1, 1e-2, 1e-3, 1e-4)
"""mu, as shares of the mean curvature."""


@dataclass(frozen=True, slots=True)
class WeightEffort:
    """How much is spent on the weights of one leg and number."""

    pictures: int = 24
    batch: int = 12
    rounds: int = 2


@dataclass(frozen=True, slots=True)
class Place:
    """One weight: of a predictor (`kind` 0) or a corrector (1), its step, and which value of v it is of."""

    kind: int
    step: int
    value: int


@dataclass(frozen=True, slots=True)
class State:
    """A walk before an evaluation: the corrected state, where v is asked, and the values so far, the newest first."""

    state: Tensor
    guess: Tensor
    history: tuple[Tensor, ...]


def weighted(
    leg: TuningLeg, steps: LearnedSteps, effort: WeightEffort, *, seed: int = 0, tell: Told
) -> LearnedSteps:
    """Steps with learned weights, or those given where none help."""
    walk, best, score = Walk.of(leg, steps), steps, _score(leg, steps)
    generator = torch.Generator().manual_seed(seed)
    total = effort.rounds * len(walk.places) * -(-effort.pictures // effort.batch)
    done = 0
    for _ in range(effort.rounds):
        normal, right = walk.zeros()
        for rows in _batches(leg.fit, effort, generator):
            quotients, missed = walk.linearised(rows, _from(tell, done, total))
            normal += quotients @ quotients.T
            right += quotients @ missed
            done += len(walk.places)
        moved = [replace(walk, weights=walk.moved(normal, right, mu)) for mu in DAMPINGS]
        scores = [_score(leg, replace(steps, weights=each.weights)) for each in moved]
        if min(scores) >= score:
            break
        score = min(scores)
        walk = moved[scores.index(score)]
        best = replace(steps, weights=walk.weights)
    tell(total, total)
    return best


def _from(tell: Told, spent: int, total: int) -> Callable[[int], None]:
    return lambda done: tell(spent + done, total)


def _batches(rows: Rows, effort: WeightEffort, generator: torch.Generator) -> Iterator[Rows]:
    which = torch.randperm(len(rows), generator=generator)[: effort.pictures]
    for first in range(0, len(which), effort.batch):
        yield rows.chosen(which[first : first + effort.batch].to(rows.x.device))


def _score(leg: TuningLeg, steps: LearnedSteps) -> float:
    rows = leg.choose
    return float(objective(leg.learned_end(steps, rows), rows.end))


@dataclass(frozen=True, slots=True)
class Walk:
    """A leg with weights that can be changed one by one, from any step on. The rule: it computes what the
    solver does.
    """

    leg: TuningLeg
    steps: LearnedSteps
    grid: Grid
    weights: StepWeights

    @classmethod
    def of(cls, leg: TuningLeg, steps: LearnedSteps) -> Walk:
        """With the weights that follow from the levels."""
        grid = leg.walked(steps)
        axis = grid.phis if steps.coordinates == "angle" else tuple(level.lam for level in grid.levels)
        predictors, correctors = unipc_weights(axis, steps.order)
        return cls(leg, steps, grid, (predictors, correctors[:-1]))

    @property
    def places(self) -> list[Place]:
        """Every weight."""
        return [
            Place(kind, step, value)
            for kind, rows in enumerate(self.weights)
            for step, row in enumerate(rows)
            for value in range(len(row))
        ]

    def zeros(self) -> tuple[Tensor, Tensor]:
        count = len(self.places)
        return torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)

    def linearised(self, rows: Rows, tell: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        """Change of the end of `rows` by an interval's change of each weight, and what the end misses."""
        kept: list[State] = []
        with torch.no_grad():
            end = self._from(self._start(rows.x), 0, rows, self.weights, kept)
            share = 1.0 / (distances(end, rows.end) + TINY)
            quotients = []
            for done, place in enumerate(self.places, 1):
                size = QUOTIENT * self._interval(place)
                first = place.step + place.kind
                changed = self._from(kept[first], first, rows, _changed(self.weights, {place: size}), None)
                quotients.append(_flat(changed - end, share) / QUOTIENT)
                tell(done)
        return torch.stack(quotients), _flat(rows.end - end, share)

    def moved(self, normal: Tensor, right: Tensor, mu: float) -> StepWeights:
        """The weights that the linearised leg is best with, held back by mu."""
        scale = normal.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        damped = normal / scale[:, None] / scale + mu * torch.eye(len(scale), dtype=torch.float64)
        found = torch.linalg.solve(damped, right / scale) / scale
        sizes = (by * self._interval(place) for by, place in zip(found.tolist(), self.places, strict=True))
        return _changed(self.weights, dict(zip(self.places, sizes, strict=True)))

    def _interval(self, place: Place) -> float:
        axis = self.grid.phis if self.steps.coordinates == "angle" else self._lams
        return abs(axis[place.step + 1] - axis[place.step])

    @property
    def _lams(self) -> tuple[float, ...]:
        return tuple(level.lam for level in self.grid.levels)

    def _frame(self) -> Frame | None:
        return self.leg.model.frame() if self.steps.coordinates == "spectrum" else None

    def _start(self, x: Tensor) -> State:
        first, frame = self.grid.levels[0], self._frame()
        state = x if frame is None else frame.enter(x, first.alpha, first.sigma)
        return State(state, state, ())

    def _from(
        self, at: State, first: int, rows: Rows, weights: StepWeights, kept: list[State] | None
    ) -> Tensor:
        """The end of a walk that goes on at step `first`; the states before each step are added to `kept`."""
        predictors, correctors = weights
        frame, denoiser = self._frame(), self.leg.model.denoiser()
        for i in range(first, self.steps.evaluations):
            if kept is not None:
                kept.append(at)
            v = _slope(frame, denoiser, at.guess, self.grid.levels[i], rows.cond)
            history = (v, *at.history)[: self.steps.order + 1]
            state = _sum(at.state, correctors[i - 1], history) if i > 0 else at.state
            at = State(state, _sum(state, predictors[i], history), history)
        last = self.grid.levels[-1]
        return at.guess if frame is None else frame.leave(at.guess, last.alpha, last.sigma)


def _slope(frame: Frame | None, denoiser: Denoiser, guess: Tensor, level: Level, cond: Condition) -> Tensor:
    if frame is None:
        return denoiser(guess, level, cond)
    v = denoiser(frame.leave(guess, level.alpha, level.sigma), level, cond)
    return frame.slope(v, guess, level.alpha, level.sigma)


def _sum(state: Tensor, weights: Sequence[float], history: Sequence[Tensor]) -> Tensor:
    for weight, v in zip(weights, history, strict=False):
        state = torch.add(state, v, alpha=weight)
    return state


def _changed(weights: StepWeights, by: Mapping[Place, float]) -> StepWeights:
    """The weights with something added to some."""
    predictors, correctors = (
        tuple(
            tuple(value + by.get(Place(kind, step, at), 0.0) for at, value in enumerate(row))
            for step, row in enumerate(rows)
        )
        for kind, rows in enumerate(weights)
    )
    return predictors, correctors


def _flat(change: Tensor, share: Tensor) -> Tensor:
    return (change.double().flatten(1) * share.to(change.device)[:, None]).flatten().cpu()
