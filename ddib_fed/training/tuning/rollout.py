"""A leg as a differentiable function of its grid: unipc with the levels as tensors, for gradients through the solver.

The grid of n intervals between two fixed ends is n numbers u: the steps in lambda are shares softmax(u) of the way, so
that every u is a valid grid (as in LD3, arXiv 2405.15506). The rule: it computes what `solvers.unipc` and
`solvers.unipc_in` compute, and a test holds it to that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import Condition, Denoiser, LevelTable, Places
from ddib_fed.diffusion.levels.learned import Coordinates, Frame, Stage
from ddib_fed.diffusion.schedule import Schedule


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
    """Integrate x (N, *sample_shape) over the grid lams (n + 1,), from data to noise as given: the end, like x."""
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
