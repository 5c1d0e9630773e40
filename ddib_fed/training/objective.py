"""The training objectives: what the network is asked of noisy samples, and the loss of its answers.

With x = alpha x_0 + sigma eps the network learns v = alpha eps - sigma x_0 (arXiv 2202.00512) or eps by squared error.
A learned variance is exp(f log beta + (1 - f) log beta~) with f = (output + 1) / 2, and learns from the bound of one
step of a chain of T steps, in bits a number (Nichol and Dhariwal, arXiv 2102.09672, section 3.1):
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ddib_fed.diffusion.denoiser import TimeInput, network_times, on_device
from ddib_fed.diffusion.grids import make_grid
from ddib_fed.diffusion.schedule import DiscreteSchedule, Schedule

BINS = 64
HISTORY = 10
FLOOR = 0.001
"""Share of uniform draws that remains, so that no bin starves."""

_TABLE = 4096


class LambdaSampler:
    """Noise levels from uniform numbers: half as the default grid places its nodes, half uniform in the angle phi."""

    def __init__(self, schedule: Schedule) -> None:
        nodes = make_grid(schedule, "default", _TABLE).levels
        self._lams = torch.tensor([level.lam for level in nodes], dtype=torch.float64)
        angle = torch.atan(torch.exp(-self._lams))
        placed = torch.linspace(0, 1, _TABLE + 1, dtype=torch.float64)
        self._mass = 0.5 * placed + 0.5 * (angle - angle[0]) / (angle[-1] - angle[0])

    def __call__(self, u: Tensor) -> Tensor:
        high = torch.searchsorted(self._mass, u.double(), right=True).clamp(1, _TABLE)
        low = high - 1
        weight = (u.double() - self._mass[low]) / (self._mass[high] - self._mass[low])
        return torch.lerp(self._lams[low], self._lams[high], weight)


class GridSampler:
    """The default: levels as `LambdaSampler` places them, all of weight 1, and nothing is learned."""

    def __init__(self, schedule: Schedule) -> None:
        self._lambdas = LambdaSampler(schedule)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._lambdas(u), torch.ones(len(u), dtype=torch.float64)

    def learn(self, lams: Tensor, losses: Tensor) -> None:
        """Take in the losses (B,) at lambdas (B,)."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take a state that was stored."""


class UniformSampler(GridSampler):
    """Uniform in t over the usable range."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        ends = torch.tensor([schedule.lambda_max, schedule.lambda_min], dtype=torch.float64)
        self._first, self._last = schedule.t_of_lam(ends).tolist()

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.lambdas(u), torch.ones(len(u), dtype=torch.float64)

    def lambdas(self, place: Tensor) -> Tensor:
        """Lambdas at places in [0, 1] of the range of t."""
        t = self._first + (self._last - self._first) * place.double()
        lams: Tensor = self._schedule.lam(t).clamp(self._schedule.lambda_min, self._schedule.lambda_max)
        return lams

    def places(self, lams: Tensor) -> Tensor:
        places: Tensor = (self._schedule.t_of_lam(lams) - self._first) / (self._last - self._first)
        return places


class SecondMomentSampler(UniformSampler):
    """Importance sampling of t in `BINS` bins; uniform until every bin has `HISTORY` losses."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._losses = torch.zeros(BINS, HISTORY, dtype=torch.float64)
        self._seen = torch.zeros(BINS, dtype=torch.int64)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.shares()
        mass = torch.cat([torch.zeros(1, dtype=torch.float64), shares.cumsum(0)])
        mass[-1] = 1.0
        chosen = (torch.searchsorted(mass, u.double(), right=True) - 1).clamp(0, BINS - 1)
        within = (u.double() - mass[chosen]) / shares[chosen]
        return self.lambdas((chosen + within.clamp(0, 1)) / BINS), 1.0 / (BINS * shares[chosen])

    def shares(self) -> Tensor:
        """Probability of each bin (BINS,), float64."""
        even = torch.full((BINS,), 1.0 / BINS, dtype=torch.float64)
        if bool((self._seen < HISTORY).any()):
            return even
        moments = self._losses.square().mean(1).sqrt()
        return (1 - FLOOR) * moments / moments.sum() + FLOOR * even

    def learn(self, lams: Tensor, losses: Tensor) -> None:
        bins = (self.places(lams) * BINS).long().clamp(0, BINS - 1)
        for k, loss in zip(bins.tolist(), losses.double().tolist(), strict=True):
            self._losses[k, self._seen[k] % HISTORY] = loss
            self._seen[k] += 1

    def state(self) -> dict[str, Tensor]:
        return {"losses": self._losses, "seen": self._seen}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._losses.copy_(state["losses"])
        self._seen.copy_(state["seen"])


def level_sampler(name: str, schedule: Schedule) -> GridSampler:
    kinds = {"grid": GridSampler, "uniform": UniformSampler, "loss-second-moment": SecondMomentSampler}
    return kinds[name](schedule)


CHAIN = 1000
"""Steps of the chain whose bound trains the variance, for schedules of continuous time."""
_BITS = 1.0 / math.log(2.0)


@dataclass(frozen=True, slots=True)
class Question:
    """What the network is asked, and what it should answer."""

    x: Tensor
    times: Tensor
    target: Tensor
    alpha: Tensor
    sigma: Tensor


class Objective:
    """One loss on one schedule."""

    def __init__(
        self,
        schedule: Schedule,
        parameterisation: Literal["v", "eps"],
        time_input: TimeInput,
        *,
        learn_sigma: bool,
        half_bin: Tensor,
    ) -> None:
        self._schedule = schedule
        self._parameterisation = parameterisation
        self._time_input = time_input
        self._learn_sigma = learn_sigma
        self._half_bin = half_bin.reshape(-1, 1, 1)
        ends = torch.tensor([schedule.lambda_max, schedule.lambda_min], dtype=torch.float64)
        self._first, last = schedule.t_of_lam(ends).tolist()
        if isinstance(schedule, DiscreteSchedule):
            self._chain, self._step = schedule.steps, schedule.time_scale
        else:
            self._chain, self._step = CHAIN, (last - self._first) / CHAIN

    def ask(self, x0: Tensor, eps: Tensor, lams: Tensor) -> Question:
        """The question for clean pictures and noise (B, C, H, W) at lambdas (B,), float64, on the CPU."""
        scales = [torch.sigmoid(sign * 2 * lams.double()).sqrt() for sign in (1, -1)]
        table = torch.stack([*scales, self._schedule.t_of_lam(lams)], dim=1)
        times = network_times(table, self._time_input)
        alpha, sigma = (_column(scale, x0) for scale in scales)
        x = alpha * x0 + sigma * eps
        target = eps if self._parameterisation == "eps" else alpha * eps - sigma * x0
        return Question(x, on_device(times.float(), x0.device), target, alpha, sigma)

    def losses(self, question: Question, answer: Tensor, x0: Tensor, lams: Tensor) -> Tensor:
        """Losses (B,) float32 of answers (B, C or 2 C, H, W)."""
        answer = answer.float()
        channels = x0.shape[1]
        mean = answer[:, :channels]
        losses = (mean - question.target).square().mean((1, 2, 3))
        if self._learn_sigma:
            bound = self.bound(question, mean.detach(), answer[:, channels:], x0, lams)
            losses = losses + bound * (self._chain / 1000.0)
        return losses

    def bound(self, question: Question, mean: Tensor, variance: Tensor, x0: Tensor, lams: Tensor) -> Tensor:
        """The bound's term of one step of the chain, bits a number, (B,)."""
        if self._parameterisation == "eps":
            x0_found = (question.x - question.sigma * mean) / question.alpha
        else:
            x0_found = question.alpha * question.x - question.sigma * mean
        t = self._schedule.t_of_lam(lams)
        beta, small, from_x0, last = (_column(part, x0) for part in self._posterior(t))
        log_small = small.log()
        log_variance = log_small + 0.5 * (variance + 1.0) * (beta.log() - log_small)
        gap = from_x0 * (x0 - x0_found)
        divergence = 0.5 * (log_variance - log_small + (log_small - log_variance).exp() - 1.0)
        divergence = divergence + 0.5 * gap.square() * (-log_variance).exp()
        likelihood = self._likelihood(x0, x0_found, log_variance)
        return (
            torch.where(last[:, 0, 0, 0] > 0, -likelihood.mean((1, 2, 3)), divergence.mean((1, 2, 3))) * _BITS
        )

    def _posterior(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For times (B,): beta, beta~, the coefficient of x_0 in the mean, and 1 where the step is the last;
        float64.
        """
        last = t - self._step < self._first - 1e-9
        later = torch.where(last, self._first + self._step, t)
        rate_s, rate_t = self._schedule.rate(later - self._step), self._schedule.rate(later)
        beta = -torch.expm1(rate_s - rate_t)
        small = beta * torch.expm1(-rate_s) / torch.expm1(-rate_t)
        from_x0 = torch.exp(-0.5 * rate_s) * beta / -torch.expm1(-rate_t)
        beta = torch.where(last, -torch.expm1(-self._schedule.rate(t)), beta)
        return beta, small, from_x0, last.double()

    def _likelihood(self, x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Log of the normal probability of the quantisation step around x0, nats."""
        inverse = torch.exp(-0.5 * log_variance)
        half = on_device(self._half_bin, x0.device)
        upper = torch.special.log_ndtr((x0 - mean + half) * inverse)
        lower = torch.special.log_ndtr((x0 - mean - half) * inverse)
        # log(exp(upper) - exp(lower)); floored where both are the same to float32.
        found: Tensor = upper + torch.log(-torch.expm1((lower - upper).clamp_max(-1e-6)))
        return found


def _column(values: Tensor, like: Tensor) -> Tensor:
    return on_device(values.float().reshape(-1, 1, 1, 1), like.device)


@dataclass(frozen=True, slots=True)
class PointBatch:
    """One batch of noisy points, and what the network should answer."""

    x: Tensor
    times: Tensor
    rows: Tensor
    target: Tensor


def make_batch(x0: Tensor, eps: Tensor, lams: Tensor, *, reference: int, first: int = 0) -> PointBatch:
    """Noisy points with their targets, all or some rows of a batch; row i of the batch has the level i mod K."""
    rows = torch.arange(first, first + len(eps), device=x0.device) % len(lams)
    own = x0[first : first + len(eps)]
    alpha = torch.sigmoid(2 * lams).sqrt().float()[rows, None]
    sigma = torch.sigmoid(-2 * lams).sqrt().float()[rows, None]
    x = alpha * own + sigma * eps
    if reference:
        target = (alpha * x - posterior_mean(x, alpha, sigma, x0, reference, first=first)) / sigma
    else:
        target = alpha * eps - sigma * own
    return PointBatch(x, lams.float(), rows, target)


def make_step_batch(
    x0: Tensor, eps: Tensor, u: Tensor, schedule: DiscreteSchedule, *, first: int = 0
) -> PointBatch:
    """The public code's objective: noisy points at integer steps, and the noise as the target."""
    rows = torch.arange(first, first + len(eps), device=x0.device) % len(u)
    steps = (u.double() * schedule.steps).long().clamp_max(schedule.steps - 1)
    table = torch.tensor(schedule.at_steps(steps.tolist()), dtype=torch.float64)
    alpha, sigma, times = on_device(table, x0.device, x0.dtype).unbind(1)
    own = x0[first : first + len(eps)]
    return PointBatch(alpha[rows, None] * own + sigma[rows, None] * eps, times, rows, eps)


def posterior_mean(
    x: Tensor, alpha: Tensor, sigma: Tensor, x0: Tensor, reference: int, *, first: int = 0
) -> Tensor:
    """E[x_0 | x] where x_0 is one of the `reference` clean points in x's stretch of the batch."""
    ratio = (alpha / sigma).square()
    asked = torch.cat([ratio / alpha * x, -0.5 * ratio], dim=1)
    keys = torch.cat([x0, x0.square().sum(1, keepdim=True)], dim=1)
    values = torch.cat([x0, torch.zeros_like(x0[:, :1])], dim=1)  # kernels want values as wide as keys
    # Rows up to the end of a stretch that began before them, whole stretches, rows of one that ends after them.
    lead = min(-first % reference, len(x))
    tail = (len(x) - lead) % reference
    found: list[Tensor] = []
    counts = [count for count in (lead, len(x) - lead - tail, tail) if count]
    for part in torch.split(asked, counts):
        start = first // reference * reference
        first += len(part)
        sets = max(1, len(part) // reference)
        among = slice(start, start + sets * reference)
        query, key, value = (
            rows.view(sets, 1, -1, rows.shape[1]) for rows in (part, keys[among], values[among])
        )
        seen = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        found.append(seen.reshape(len(part), -1)[:, :-1])
    return torch.cat(found)
