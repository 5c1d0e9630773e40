"""Paths that corrections are learned along: exact ones with the errors of a rule, and linearised ones of a student.

exact:       points x_i, and what predictor and corrector of each step miss along them
linearised:  v(x) = v(g_i) + J_i (x - g_i),   g_i where the student asks at level i,   J_i = dv/dx there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddib_fed.diffusion.corrections import DIFFERENCES, features_of
from ddib_fed.diffusion.denoiser import Denoiser, Query
from ddib_fed.diffusion.learned_solver import learned_solver
from ddib_fed.diffusion.levels.learned import LearnedSteps
from ddib_fed.diffusion.solvers import Solver, Weights, unipc, unipc_weights
from ddib_fed.training.tuning.legs import Rows, TuningLeg

HALVINGS = 8
"""Steps of the exact path in each interval of the grid."""
CHUNK = 1_024
"""Rows whose derivatives are taken at once: the network's activations stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Exact paths of N points of dimension D over E steps."""

    points: Tensor
    features: Tensor
    defects: Tensor


@dataclass(frozen=True, slots=True)
class Linearised:
    """A student's paths of N points of dimension D over E steps, with the model's derivatives along them."""

    asked: Tensor
    velocities: Tensor
    slopes: Tensor
    end: Tensor

    def walked(self, leg: TuningLeg, steps: LearnedSteps, x: Tensor, which: Tensor) -> Tensor:
        """The end (K, D) of rows `which` (K,) by `steps` on the linearised paths; differentiable by their
        corrections.
        """
        solver = learned_solver(steps, x, leg.walked(steps), None, None)
        query, i = next(solver), 0
        while True:
            moved = query.x - self.asked[i, which]
            v = self.velocities[i, which] + (self.slopes[i, which] @ moved[:, :, None])[:, :, 0]
            try:
                query, i = solver.send(v), i + 1
            except StopIteration as stop:
                end: Tensor = stop.value
                return end


def linearised(leg: TuningLeg, steps: LearnedSteps, rows: Rows) -> Linearised:
    """The student's paths of rows, and the model's derivatives along them."""
    parts = [
        _linearised(leg, steps, rows.chosen(torch.arange(first, min(first + CHUNK, len(rows)))))
        for first in range(0, len(rows), CHUNK)
    ]
    asked, velocities, slopes = (torch.cat(each, dim=1) for each in list(zip(*parts, strict=True))[:3])
    return Linearised(asked, velocities, slopes, torch.cat([part[3] for part in parts]))


def _linearised(leg: TuningLeg, steps: LearnedSteps, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    denoiser = leg.model.denoiser()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        solver = learned_solver(steps, rows.x, leg.walked(steps), rows.cond, None)
        query = next(solver)
        while True:
            v, slope = _derivatives(denoiser, query)
            found.append((query.x.clone(), v, slope))
            try:
                query = solver.send(v)
            except StopIteration as stop:
                asked, velocities, slopes = (torch.stack(each) for each in zip(*found, strict=True))
                return asked, velocities, slopes, stop.value


def _derivatives(denoiser: Denoiser, query: Query) -> tuple[Tensor, Tensor]:
    x = query.x.detach().clone().requires_grad_()
    with torch.enable_grad():
        v = denoiser(x, query.level, query.cond)
        slopes = [torch.autograd.grad(v[:, d].sum(), x, retain_graph=True)[0] for d in range(x.shape[1])]
    return v.detach(), torch.stack(slopes, dim=1)


def exact_paths(leg: TuningLeg, steps: LearnedSteps, rows: Rows) -> Paths:
    """The paths of rows, by many small steps between the levels of `steps`."""
    inner = [
        high + (low - high) * part / HALVINGS
        for high, low in zip(steps.lams[:-1], steps.lams[1:], strict=True)
        for part in range(HALVINGS)
    ]
    fine = replace(steps, evaluations=len(inner), lams=(*inner, steps.lams[-1]))
    points, velocities = _walked(leg, unipc(rows.x, leg.walked(fine), cond=rows.cond))
    return _defects(points, velocities, leg.walked(steps).phis, steps.order)


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


def _sum(weights: Weights, history: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * v for weight, v in zip(weights, history, strict=False)]).sum(0)
