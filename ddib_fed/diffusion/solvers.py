"""Step rules for dx/dphi = v, as the numbers of each step on a grid: whoever steps asks the network once an interval.

    x = cos(phi) x0 + sin(phi) eps,   phi = atan2(sigma, alpha),   dx/dphi = v = cos(phi) eps - sin(phi) x0
    x_(i+1) = s_i x_i + sum_j c_ij v_(i-j) + n_i z_i,   z_i ~ N(0, I)

Encoding walks a grid from data (phi near 0) to noise, decoding the same grid reversed, with the same code.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import Condition, Denoiser, LevelTable
from ddib_fed.diffusion.schedule import Level, LevelGrid, Scale
from ddib_fed.errors import SettingsInvalid

# Standard normal noise of the shape of x for a step, by the step's number from 0.
Draw = Callable[[int], Tensor]
D = TypeVar("D")
# Answers v at (x, level, condition), or the mean velocity to another level.
Velocity = Callable[[Tensor, Level, Condition, Level | None], Tensor]
# Told (evaluations done, evaluations in all) after each evaluation.
OnStep = Callable[[int, int], None]
Weights = tuple[float, ...]
Rule = Callable[[tuple[Level, ...], int], Sequence[tuple[float, Sequence[float]]]]
"""A solver of another distribution, an entry point of `ddib_fed.solvers`: from the levels and the order to (s_i, c_i)
of each interval, the newest velocity's weight first. An attribute `orders` lists its orders, the default last, where
there are several."""


@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """A solver on one grid; its numbers have an entry for each interval.

    Weights have the newest velocity's first, and are all of one length, 0 where there is no velocity yet. `means` asks
    for the mean velocity of an interval. `whitened`: of whitened pictures, see `networks.spectrum.Whitened`.
    """

    levels: tuple[Level, ...]
    scales: tuple[float, ...]
    weights: tuple[Weights, ...]
    noise: tuple[float, ...] = ()
    means: bool = False
    whitened: bool = False

    def __len__(self) -> int:
        return len(self.scales)

    def to(self, step: int) -> Level | None:
        """The level to which the network is asked in a step; None for the velocity."""
        return self.levels[step + 1] if self.means else None


def integrate(
    x: Tensor,
    steps: Recurrence,
    denoiser: Velocity,
    *,
    cond: Condition = None,
    draw: Draw | None = None,
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Walk a recurrence with one network from x, which stays as it is, without gradients; return where it ends.

    `on_step` is called after each evaluation; what it raises ends the integration.
    """
    with torch.no_grad():
        x, velocities = x.clone(), deque[Tensor](maxlen=len(steps.weights[0]))
        for i, (scale, weights) in enumerate(zip(steps.scales, steps.weights, strict=True)):
            velocities.appendleft(denoiser(x, steps.levels[i], cond, steps.to(i)))
            if on_step is not None:
                on_step()
            x = scale * x
            for weight, v in zip(weights, velocities, strict=False):
                x.add_(v, alpha=weight)
            if steps.noise and steps.noise[i]:
                x.add_(needed(draw)(i).to(x), alpha=steps.noise[i])
        return x


def walk(x: Tensor, steps: Recurrence, denoiser: Denoiser, **more: Any) -> Tensor:
    """As `integrate`, in the coordinates that the denoiser is asked in."""
    state = integrate(denoiser.enter(x, steps.levels[0]), steps, denoiser, **more)
    return denoiser.leave(state, steps.levels[-1])


def needed(draw: D | None) -> D:
    if draw is None:
        raise SettingsInvalid(
            "decoding with eta above 0, or as DDPM, draws noise, and there is none here",
            hint="use eta 0, or `ddib translate --source` in one process",
        )
    return draw


def ddim(grid: LevelGrid, *, eta: float = 0.0, large: bool = False) -> Recurrence:
    """DDIM (Song et al., arXiv 2010.02502, (12) and (16)), order 1: x0 and eps are held over a step.

    From level t to s: alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z with z ~ N(0, I) and
    c = eta (sigma_s / sigma_t) sqrt(1 - alpha_t^2 / alpha_s^2). With eta 0 it follows the ODE, both ways; with more it
    goes from noise to data, and eta 1 is DDPM. Where sigma_s is 0 there is no noise. `large` scales z by sqrt(beta) =
    sqrt(1 - alpha_t^2 / alpha_s^2) instead: Ho et al.'s larger variance (arXiv 2006.11239, section 3.2).
    """
    scales, weights, noise = [], [], []
    for here, following in pairwise(grid.levels):
        rest, added = following.sigma, 0.0
        if eta > 0.0:
            root = math.sqrt(max(0.0, 1.0 - (here.alpha / following.alpha) ** 2))
            fresh = eta * following.sigma / here.sigma * root
            rest = math.sqrt(max(0.0, following.sigma**2 - fresh**2))
            added = root if large and following.sigma > 0.0 else fresh
        scales.append(following.alpha * here.alpha + rest * here.sigma)
        weights.append((rest * here.alpha - following.alpha * here.sigma,))
        noise.append(added)
    return Recurrence(grid.levels, tuple(scales), tuple(weights), tuple(noise) if eta > 0.0 else ())


def flow_map(grid: LevelGrid) -> Recurrence:
    """Steps of a network that knows the mean of v over an interval: x_s = x_t + (phi_s - phi_t) u(x_t, t, s).

    Its error is the network's alone (Geng et al., MeanFlow, arXiv 2505.13447, (12)).
    """
    weights = tuple((following.phi - here.phi,) for here, following in pairwise(grid.levels))
    return Recurrence(grid.levels, (1.0,) * len(grid), weights, means=True)


def unipc(grid: LevelGrid, *, order: int = 3, whitened: bool = False) -> Recurrence:
    """Predictor-corrector multistep on v (after UniPC, arXiv 2302.04867); one evaluation an interval.

    The predictor integrates the polynomial through the last `order` values of v (the first steps, as many as there
    are); v is evaluated there once, and the corrector integrates again with that value too, but in the last step.
    Whitened pictures are integrated over lambda, others over phi.
    """
    axis = [level.lam if whitened else level.phi for level in grid.levels]
    # What the corrector has with the newest velocity, and the predictor had without it.
    weights, correction = [], torch.zeros(order + 1, dtype=torch.float64)
    for i, (start, end) in enumerate(pairwise(axis)):
        nodes = axis[max(0, i + 1 - order) : i + 1][::-1]
        guess, again = torch.zeros_like(correction), torch.zeros_like(correction)
        guess[: len(nodes)] = integral_weights(torch.tensor(nodes, dtype=torch.float64), start, end)
        weights.append(tuple((guess + correction).tolist()))
        again[: len(nodes) + 1] = integral_weights(
            torch.tensor([end, *nodes], dtype=torch.float64), start, end
        )
        correction = again - torch.nn.functional.pad(guess[:-1], (1, 0))
    window = min(order + 1, len(weights))
    return Recurrence(
        grid.levels, (1.0,) * len(grid), tuple(each[:window] for each in weights), whitened=whitened
    )


def extended(grid: LevelGrid, rule: Rule, order: int) -> Recurrence:
    """Lay an extension's rule on a grid; raise SettingsInvalid unless it has one step for each interval."""
    steps = tuple(rule(grid.levels, order))
    if len(steps) != len(grid):
        problem = f"the solver took {len(steps)} evaluations where {len(grid)} were asked for"
        raise SettingsInvalid(problem, hint="use another solver")
    window = max(len(weights) for _, weights in steps)
    padded = tuple((*weights, *(0.0,) * (window - len(weights))) for _, weights in steps)
    return Recurrence(grid.levels, tuple(scale for scale, _ in steps), padded)


def integral_weights(nodes: Tensor, start: Scale, end: Scale) -> Tensor:
    """Return w (K,) float64 with sum_j w_j f(nodes_j) = the integral of the polynomial through the nodes (K,)."""
    h = end - start
    scaled = (nodes - start) / h
    powers = torch.arange(len(nodes), dtype=torch.float64)
    weights: Tensor = h * torch.linalg.solve(scaled[None, :] ** powers[:, None], 1.0 / (powers + 1.0))
    return weights


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
        levels += each.levels[:-1]
        to += map(each.to, range(len(each)))
        for scale, weights in zip(each.scales, each.weights, strict=True):
            numbers.append([scale, *weights, *(0.0,) * (window - len(weights))])
    on_device = torch.tensor(numbers, dtype=torch.float32).T.contiguous().to(device)
    return RecurrenceTable(LevelTable.of(levels, to), starts, on_device)
