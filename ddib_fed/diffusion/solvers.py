"""Step rules for dx/dphi = v as generators: they yield where the network is to be evaluated and are sent v.

    x = cos(phi) x0 + sin(phi) eps,   phi = atan2(sigma, alpha),   dx/dphi = v = cos(phi) eps - sin(phi) x0

Encoding walks a grid from data (phi near 0) to noise, decoding the same grid reversed, with the same code. A solver
never touches the tensor it was given, owns what it is sent, and reads the grid once.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import Condition, LevelTable, Query
from ddib_fed.diffusion.schedule import Frame, Level, LevelGrid, Scale
from ddib_fed.errors import SettingsInvalid

# Standard normal noise of the shape of x for a step, by the step's number from 0.
Draw = Callable[[int], Tensor]
Solver = Generator[Query, Tensor, Tensor]
# Answers queries: v at (x, level, condition), or the mean velocity to another level.
Velocity = Callable[[Tensor, Level, Condition, Level | None], Tensor]
# Told (evaluations done, evaluations in all) after each evaluation.
OnStep = Callable[[int, int], None]
# One step's weights of an integral: of v at the nodes, newest first.
Weights = tuple[float, ...]


def integrate(solver: Solver, denoiser: Velocity, *, on_step: Callable[[], object] | None = None) -> Tensor:
    """Drive one fresh solver with one network to its end, without gradients; return the solver's result.

    `on_step` is called after each evaluation; what it raises ends the integration. The solver is closed in any case.
    """
    with torch.no_grad(), closing(solver):
        try:
            query = next(solver)
            while True:
                v = denoiser(query.x, query.level, query.cond, query.to)
                if on_step is not None:
                    on_step()
                query = solver.send(v)
        except StopIteration as stop:
            result: Tensor = stop.value
            return result


def ddim(
    x: Tensor,
    grid: LevelGrid,
    *,
    eta: float = 0.0,
    draw: Draw | None = None,
    large: bool = False,
    cond: Condition = None,
) -> Solver:
    """DDIM (Song et al., arXiv 2010.02502, (12) and (16)), order 1: x0 and eps are held over a step.

    From level t to s: alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z with z ~ N(0, I) and
    c = eta (sigma_s / sigma_t) sqrt(1 - alpha_t^2 / alpha_s^2). With eta 0 it follows the ODE, both ways; with more it
    goes from noise to data, and eta 1 is DDPM. Where sigma_s is 0 there is no noise. `large` scales z by sqrt(beta) =
    sqrt(1 - alpha_t^2 / alpha_s^2) instead: Ho et al.'s larger variance (arXiv 2006.11239, section 3.2).
    """
    x = x.clone()
    for index, (here, following) in enumerate(pairwise(grid.levels)):
        v = yield Query(x, here, cond)
        rest, noise = following.sigma, 0.0
        if eta > 0.0:
            root = math.sqrt(max(0.0, 1.0 - (here.alpha / following.alpha) ** 2))
            fresh = eta * following.sigma / here.sigma * root
            rest = math.sqrt(max(0.0, following.sigma**2 - fresh**2))
            noise = root if large and following.sigma > 0.0 else fresh
        weight_x = following.alpha * here.alpha + rest * here.sigma
        weight_v = rest * here.alpha - following.alpha * here.sigma
        x.mul_(weight_x).add_(v, alpha=weight_v)
        if noise > 0.0 and draw is not None:
            x.add_(draw(index).to(x), alpha=noise)
    return x


def flow_map(x: Tensor, grid: LevelGrid, *, cond: Condition = None) -> Solver:
    """Steps of a network that knows the mean of v over an interval: x_s = x_t + (phi_s - phi_t) u(x_t, t, s).

    Its error is the network's alone (Geng et al., MeanFlow, arXiv 2505.13447, (12)). Arguments as in `ddim`.
    """
    x = x.clone()
    for level, following in pairwise(grid.levels):
        u = yield Query(x, level, cond, following)
        x.add_(u, alpha=following.phi - level.phi)
    return x


def unipc(
    x: Tensor, grid: LevelGrid, *, order: int = 3, cond: Condition = None, frame: Frame | None = None
) -> Solver:
    """Predictor-corrector multistep on v (after UniPC, arXiv 2302.04867); one evaluation an interval.

    The predictor integrates the polynomial through the last `order` values of v (the first steps, as many as there
    are); v is evaluated there once, and the corrector integrates again with that value too, but in the last step. With
    a frame its states are integrated over lambda, instead of x over phi.
    """
    levels = grid.levels
    axis = tuple(level.phi if frame is None else level.lam for level in levels)
    predictors, correctors = unipc_weights(axis, order)
    state = x.clone() if frame is None else frame.enter(x, levels[0].alpha, levels[0].sigma)
    guess, at = state, x
    history: deque[Tensor] = deque(maxlen=order + 1)
    for i, level in enumerate(levels[:-1]):
        if i > 0 or frame is None:
            at = guess if frame is None else frame.leave(guess, level.alpha, level.sigma)
        v = yield Query(at, level, cond)
        history.appendleft(v if frame is None else frame.slope(v, guess, level.alpha, level.sigma))
        if i > 0:
            _accumulate(state, correctors[i - 1], history)
        guess = _accumulate(state.clone(), predictors[i], history)
    return guess if frame is None else frame.leave(guess, levels[-1].alpha, levels[-1].sigma)


Rule = Callable[[Tensor, tuple[Level, ...], int], Generator[tuple[Tensor, Level], Tensor, Tensor]]
"""A solver of another distribution: from x, the levels and the order. It yields (x, level) and is sent v, once for
each interval, and must be linear in x and v. It is an entry point of `ddib_fed.solvers`; an attribute `orders` lists
its orders, the default last, where there are several."""


def extended(x: Tensor, grid: LevelGrid, *, rule: Rule, order: int, cond: Condition = None) -> Solver:
    """Walk a grid by an extension's rule; SettingsInvalid unless it evaluates once for each interval.

    >>> def euler(x, levels, order):
    ...     for level, following in pairwise(levels):
    ...         v = yield x, level
    ...         x = x + (following.phi - level.phi) * v
    ...     return x
    """
    steps, count = rule(x.clone(), grid.levels, order), 0
    try:
        point, level = next(steps)
        while True:
            count += 1
            v = yield Query(point, level, cond)
            point, level = steps.send(v)
    except StopIteration as stop:
        if count != len(grid.levels) - 1:
            problem = f"the solver took {count} evaluations where {len(grid.levels) - 1} were asked for"
            raise SettingsInvalid(problem, hint="use another solver") from None
        end: Tensor = stop.value
        return end


def _accumulate(x: Tensor, weights: Weights, history: deque[Tensor]) -> Tensor:
    for weight, v in zip(weights, history, strict=False):
        x.add_(v, alpha=weight)
    return x


@lru_cache(maxsize=128)
def unipc_weights(phis: tuple[float, ...], order: int) -> tuple[tuple[Weights, ...], tuple[Weights, ...]]:
    """Predictor and corrector weights of every interval of the angles `phis`, newest value of v first."""
    predictors: list[Weights] = []
    correctors: list[Weights] = []
    for i, (start, end) in enumerate(pairwise(phis)):
        nodes = phis[max(0, i + 1 - order) : i + 1][::-1]
        for weights, at in ((predictors, nodes), (correctors, (end, *nodes))):
            found = integral_weights(torch.tensor(at, dtype=torch.float64), start, end)
            weights.append(tuple(found.tolist()))
    return tuple(predictors), tuple(correctors)


def integral_weights(nodes: Tensor, start: Scale, end: Scale) -> Tensor:
    """Return w (K,) float64 with sum_j w_j f(nodes_j) = the integral of the polynomial through the nodes (K,)."""
    h = end - start
    scaled = (nodes - start) / h
    powers = torch.arange(len(nodes), dtype=torch.float64)
    weights: Tensor = h * torch.linalg.solve(scaled[None, :] ** powers[:, None], 1.0 / (powers + 1.0))
    return weights


MOST_EVALUATIONS = 512
"""Reading a solver takes time with the square of its evaluations: 1 ms for 48, 50 ms for 500."""
TINY = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """A solver on one grid: x_(i+1) = s_i x_i + sum_j c_ij v_(i-j). Each tuple has an entry for each evaluation.

    Weights c_ij have the newest velocity's first, and are all of one length, 0 where there is no velocity yet.
    """

    levels: tuple[Level, ...]
    to: tuple[Level | None, ...]
    scales: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]


def recurrence_of(start: Callable[[Tensor], Solver], evaluations: int) -> Recurrence | None:
    """The recurrence that a deterministic solver of x follows; None for more evaluations than are read.

    The solver that `start` makes is run on unit vectors (1, D) float64: its start is the first one, its answers are the
    others. Each point that it asks for, and its end, shows how much of the start and of each velocity is in it.
    """
    if evaluations > MOST_EVALUATIONS:
        return None
    units = torch.eye(evaluations + 1, dtype=torch.float64)[:, None]
    queries: list[Query] = []
    found: list[Tensor] = []

    def asked(x: Tensor, level: Level, cond: Condition, to: Level | None) -> Tensor:
        queries.append(Query(x, level, cond, to))
        found.append(x[0].clone())
        return units[len(queries)].clone()

    found.append(integrate(start(units[0]), asked)[0])
    points = torch.stack(found)
    scales = points[1:, 0] / points[:-1, 0]
    steps = points[1:, 1:] - scales[:, None] * points[:-1, 1:]
    behind = torch.arange(evaluations)[:, None] - torch.arange(evaluations)
    window = 1 + int(behind[steps.abs() > TINY].max())
    weights = tuple(
        tuple(float(steps[i, i - j]) if j <= i else 0.0 for j in range(window)) for i in range(evaluations)
    )
    levels, to = tuple(query.level for query in queries), tuple(query.to for query in queries)
    return Recurrence(levels, to, tuple(scales.tolist()), weights)


class RecurrenceTable(NamedTuple):
    """Some recurrences, one under the other, E evaluations in all; numbers are scale and weights (1 + window, E)."""

    levels: LevelTable
    starts: Mapping[Recurrence, int]
    numbers: Tensor


@lru_cache(maxsize=64)
def table_of(recurrences: tuple[Recurrence, ...], device: torch.device) -> RecurrenceTable:
    """The table of some recurrences, its numbers on a device; made once for the same ones in the same order."""
    window = max(len(each.weights[0]) for each in recurrences)
    numbers: list[list[float]] = []
    starts: dict[Recurrence, int] = {}
    levels: list[Level] = []
    to: list[Level | None] = []
    for each in recurrences:
        starts[each] = len(numbers)
        levels += each.levels
        to += each.to
        for scale, weights in zip(each.scales, each.weights, strict=True):
            numbers.append([scale, *weights, *(0.0,) * (window - len(weights))])
    on_device = torch.tensor(numbers, dtype=torch.float32).T.contiguous().to(device)
    return RecurrenceTable(LevelTable.of(levels, to), starts, on_device)
