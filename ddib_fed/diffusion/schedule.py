"""Noise schedules: a network's time t to the level (alpha_t, sigma_t) of x_t = alpha_t x_0 + sigma_t eps, and back.

Every schedule is variance preserving, alpha_t^2 + sigma_t^2 = 1, and is known by one function, the integrated
noise rate B(t) = -log alpha_t^2, and its inverse. From it follow, without cancellation at either end,

    alpha_t = exp(-B/2),   sigma_t = sqrt(1 - exp(-B)),   lambda_t = log(alpha_t / sigma_t) = -log(exp(B) - 1) / 2,

and backwards B = log(1 + exp(-2 lambda)) (Kingma et al., Variational Diffusion Models, arXiv 2107.00630, section 3).
Tables and levels are float64; only the network rounds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddib_fed.errors import SettingsInvalid

# Noise level sigma / alpha = 0.005 at the data end: measured to cost 1.4e-4 in a translated point of unit
# variance.
LAMBDA_MAX = 5.3
MOST_STEPS = 1_000_000
"""Of a discrete schedule: its table takes 8 bytes each, and a manifest from elsewhere may name any number."""
# Of schedules that reach alpha = 0: the prior is N(0, I) within exp(2 lambda) in relative variance.
ZERO_TERMINAL_LAMBDA_MIN = -8.0
SCHEDULES = ("linear", "cosine", "zero-terminal-snr")
# On integer steps alone: betas whose square roots are evenly spaced, as latent diffusion has them.
SCALED_LINEAR = "scaled-linear"


class Level(NamedTuple):
    """A noise level and what the network receives for it.

    Attributes:
        alpha: Scale of the data, in [0, 1].
        sigma: Scale of the noise, in [0, 1]; alpha^2 + sigma^2 = 1.
        t: Time that a network with time input "timestep" receives.
    """

    alpha: float
    sigma: float
    t: float

    @property
    def phi(self) -> float:
        """The angle atan2(sigma, alpha), from 0 (data) to pi/2 (noise)."""
        return math.atan2(self.sigma, self.alpha)

    @property
    def lam(self) -> float:
        """The half log signal-to-noise ratio log(alpha / sigma); infinite at the ends."""
        if self.sigma == 0.0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0.0 else -math.inf


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Names a schedule; part of a bundle's manifest.

    Attributes:
        name: One of `SCHEDULES`, or `SCALED_LINEAR`.
        steps: Number of integer steps of a discrete schedule; None for continuous time in [0, 1].
        rescale_timesteps: Discrete only: the network receives 1000 / steps times the step.
        lambda_min: Continuous only: noise end of the usable range; None for the schedule's own.
        lambda_max: Continuous only: data end of the usable range; None for `LAMBDA_MAX`.
        beta_start: Discrete, but not cosine: first noise rate; with `beta_end`, or None for the schedule's own.
        beta_end: The last.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str = "linear"
    steps: int | None = None
    rescale_timesteps: bool = False
    lambda_min: float | None = None
    lambda_max: float | None = None
    beta_start: float | None = None
    beta_end: float | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """First and last noise rate where both are given."""
        if self.beta_start is None or self.beta_end is None:
            return None
        return self.beta_start, self.beta_end


class Schedule(ABC):
    """One noise schedule with the range of lambda in which its networks are trained."""

    name: str
    lambda_min: float
    lambda_max: float

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """B(t) = -log alpha_t^2, float64, shape of t."""

    @abstractmethod
    def t_of_rate(self, rate: Tensor) -> Tensor:
        """The t with B(t) = rate, float64, shape of rate."""

    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t, float64, shape of t."""
        return torch.exp(-0.5 * self.rate(t.double()))

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_t, float64, shape of t."""
        return torch.sqrt(-torch.expm1(-self.rate(t.double())))

    def lam(self, t: Tensor) -> Tensor:
        """lambda_t, float64, shape of t; infinite where alpha or sigma is 0."""
        return -0.5 * torch.log(torch.expm1(self.rate(t.double())))

    def t_of_lam(self, lam: Tensor) -> Tensor:
        """The time at which lambda_t = lam, float64, shape of lam."""
        return self.t_of_rate(torch.logaddexp(torch.zeros_like(lam.double()), -2.0 * lam.double()))

    def levels(self, lam: Tensor) -> tuple[Level, ...]:
        """The levels at `lam` (K,), in its order."""
        lam = lam.double()
        alpha, sigma = torch.sigmoid(2.0 * lam).sqrt(), torch.sigmoid(-2.0 * lam).sqrt()
        columns = (alpha.tolist(), sigma.tolist(), self.t_of_lam(lam).tolist())
        return tuple(map(Level, *columns))

    def level(self, lam: float) -> Level:
        return self.levels(torch.tensor([lam], dtype=torch.float64))[0]


class _Continuous(Schedule):
    """Time in [0, 1]; the usable range is the schedule's own unless other ends are given."""

    least: float

    def __init__(self, lambda_min: float | None = None, lambda_max: float | None = None) -> None:
        self.lambda_min = self.least if lambda_min is None else lambda_min
        self.lambda_max = LAMBDA_MAX if lambda_max is None else lambda_max


class LinearSchedule(_Continuous):
    """Rate beta(t) = b0 + (b1 - b0) t on [0, 1], the limit of Ho et al.'s betas (arXiv 2011.13456, (32))."""

    name = "linear"
    least = -math.inf
    beta_0 = 0.1
    beta_1 = 20.0

    def __init__(self, lambda_min: float | None = None, lambda_max: float | None = None) -> None:
        super().__init__(lambda_min, lambda_max)
        self.lambda_min = max(self.lambda_min, float(self.lam(torch.ones((), dtype=torch.float64))))

    def rate(self, t: Tensor) -> Tensor:
        return self.beta_0 * t + 0.5 * (self.beta_1 - self.beta_0) * t**2

    def t_of_rate(self, rate: Tensor) -> Tensor:
        root = torch.sqrt(self.beta_0**2 + 2.0 * (self.beta_1 - self.beta_0) * rate)
        return 2.0 * rate / (self.beta_0 + root)


class CosineSchedule(_Continuous):
    """alpha_t = cos(u_t) / cos(u_0), u_t = (t + s) / (1 + s) pi / 2, s = 0.008 (arXiv 2102.09672, (17))."""

    name = "cosine"
    least = -5.0
    offset = 0.008
    _cos_0 = math.cos(offset / (1.0 + offset) * math.pi / 2.0)

    def rate(self, t: Tensor) -> Tensor:
        angle = (t + self.offset) / (1.0 + self.offset) * (math.pi / 2.0)
        return -2.0 * torch.log(torch.cos(angle) / self._cos_0)

    def t_of_rate(self, rate: Tensor) -> Tensor:
        angle = torch.acos(torch.exp(-0.5 * rate) * self._cos_0)
        return angle / (math.pi / 2.0) * (1.0 + self.offset) - self.offset


class ZeroTerminalSchedule(_Continuous):
    """The linear schedule shifted and scaled in alpha to reach alpha_1 = 0 (arXiv 2305.08891, algorithm 1)."""

    name = "zero-terminal-snr"
    least = ZERO_TERMINAL_LAMBDA_MIN

    def __init__(self, lambda_min: float | None = None, lambda_max: float | None = None) -> None:
        super().__init__(lambda_min, lambda_max)
        self._linear = LinearSchedule()
        self._alpha_1 = float(self._linear.alpha(torch.ones((), dtype=torch.float64)))

    def rate(self, t: Tensor) -> Tensor:
        shifted = (torch.exp(-0.5 * self._linear.rate(t)) - self._alpha_1) / (1.0 - self._alpha_1)
        return -2.0 * torch.log(shifted.clamp_min(0.0))

    def t_of_rate(self, rate: Tensor) -> Tensor:
        alpha = torch.exp(-0.5 * rate) * (1.0 - self._alpha_1) + self._alpha_1
        return self._linear.t_of_rate(-2.0 * torch.log(alpha))


class DiscreteSchedule(Schedule):
    """T integer steps with alpha_bar_i = prod_{j <= i} (1 - beta_j); between them t is interpolated in lambda."""

    def __init__(self, betas: Tensor, *, name: str, time_scale: float = 1.0) -> None:
        self.name = name
        self.betas = betas.double()
        self.steps = len(betas)
        self.time_scale = time_scale
        self._rates = -torch.cumsum(torch.log1p(-self.betas), 0)
        self._lams = -0.5 * torch.log(torch.expm1(self._rates))
        self._phis = torch.atan2(torch.sqrt(-torch.expm1(-self._rates)), torch.exp(-0.5 * self._rates))
        self.lambda_max = float(self._lams[0])
        self.lambda_min = max(float(self._lams[-1]), ZERO_TERMINAL_LAMBDA_MIN)

    def rate(self, t: Tensor) -> Tensor:
        """B at network time t: exact at the integer steps; between them lambda is interpolated."""
        position = (t.double() / self.time_scale).clamp(0, self.steps - 1)
        low = position.floor().long().clamp_max(max(self.steps - 2, 0))
        high = (low + 1).clamp_max(self.steps - 1)
        weight = position - low
        in_lam = self._lams[low] + weight * (self._lams[high] - self._lams[low])
        in_phi = -torch.log(torch.tan(torch.lerp(self._phis[low], self._phis[high], weight)))
        lam = torch.where(torch.isinf(self._lams[high]), in_phi, in_lam)
        between = torch.logaddexp(torch.zeros_like(lam), -2.0 * lam)
        exact = torch.where(weight == 0, self._rates[low], self._rates[high])
        return torch.where((weight == 0) | (weight == 1), exact, between)

    def t_of_rate(self, rate: Tensor) -> Tensor:
        high = torch.searchsorted(self._rates, rate.contiguous()).clamp(1, self.steps - 1)
        low = high - 1
        lam = -0.5 * torch.log(torch.expm1(rate))
        in_lam = (self._lams[low] - lam) / (self._lams[low] - self._lams[high])
        phi = torch.atan2(torch.sqrt(-torch.expm1(-rate)), torch.exp(-0.5 * rate))
        in_phi = (phi - self._phis[low]) / (self._phis[high] - self._phis[low])
        weight = torch.where(torch.isinf(self._lams[high]), in_phi, in_lam)
        return (low + weight.clamp(0, 1)) * self.time_scale

    def at_steps(self, steps: list[int]) -> tuple[Level, ...]:
        """The levels of integer steps, straight from the table."""
        rates = self._rates[torch.tensor(steps)]
        alphas, sigmas = torch.exp(-0.5 * rates).tolist(), torch.sqrt(-torch.expm1(-rates)).tolist()
        return tuple(Level(a, s, i * self.time_scale) for i, a, s in zip(steps, alphas, sigmas, strict=True))


def linear_betas(steps: int) -> Tensor:
    """Ho et al.'s betas 1e-4 to 0.02 of 1,000 steps, rescaled to `steps` (more than 20): (steps,) float64."""
    if steps <= 20:
        why = f": its last beta would be {20 / steps:.2f}" if steps > 0 else ""
        raise SettingsInvalid(
            f"the linear schedule cannot be rescaled to {steps} steps{why}",
            hint="use at least 21 steps, or a respaced schedule",
            facts={"steps": steps, "minimum": 21},
        )
    scale = 1000.0 / steps
    return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)


def cosine_betas(steps: int) -> Tensor:
    """Betas of the cosine alpha_bar at (i + 1) / T over i / T, at most 0.999 (arXiv 2102.09672): (steps,) float64."""
    rates = CosineSchedule().rate(torch.arange(steps + 1, dtype=torch.float64) / steps)
    return (-torch.expm1(rates[:-1] - rates[1:])).clamp_max(0.999)


def zero_terminal_betas(betas: Tensor) -> Tensor:
    """Shift and scale alpha of `betas` so that the last is 0, the first kept (arXiv 2305.08891): (T,) float64."""
    alpha = torch.cumprod(1.0 - betas.double(), 0).sqrt()
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    bars = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
    return 1.0 - bars[1:] / bars[:-1]


def _between(ends: tuple[float, float], steps: int, *, power: float = 1.0) -> Tensor:
    """Betas whose 1 / `power`-th powers are evenly spaced from one end to the other: (steps,) float64."""
    first, last = ends
    if not 0.0 < first < last < 1.0 or steps < 2:
        raise SettingsInvalid(f"there is no schedule of {steps} betas from {first} to {last}")
    roots = torch.linspace(first ** (1 / power), last ** (1 / power), steps, dtype=torch.float64)
    return roots**power


def discrete_schedule(
    name: str,
    steps: int,
    *,
    rescale_timesteps: bool = False,
    ends: tuple[float, float] | None = None,
) -> DiscreteSchedule:
    """The named schedule on `steps` integer steps, as guided-diffusion makes them, or between the betas in `ends`."""
    if steps > MOST_STEPS:
        raise SettingsInvalid(
            f"a schedule has at most {MOST_STEPS:,} steps, not {steps:,}",
            facts={"steps": steps, "maximum": MOST_STEPS},
        )
    if name in {"linear", "zero-terminal-snr"}:
        betas = _between(ends, steps) if ends else linear_betas(steps)
        betas = betas if name == "linear" else zero_terminal_betas(betas)
    elif name == SCALED_LINEAR and ends:
        betas = _between(ends, steps, power=2.0)
    elif name == "cosine" and steps >= 2 and not ends:
        betas = cosine_betas(steps)
    else:
        raise _unknown(name, f" of {steps} steps")
    return DiscreteSchedule(betas, name=name, time_scale=1000.0 / steps if rescale_timesteps else 1.0)


_CONTINUOUS: dict[str, type[_Continuous]] = {
    kind.name: kind for kind in (LinearSchedule, CosineSchedule, ZeroTerminalSchedule)
}


def schedule_from_config(config: ScheduleConfig) -> Schedule:
    """The schedule that `config` names."""
    if config.steps is not None:
        if config.lambda_min is not None or config.lambda_max is not None:
            raise SettingsInvalid(
                "lambda_min and lambda_max are of continuous schedules; a discrete one has its table"
            )
        if (config.beta_start is None) != (config.beta_end is None):
            raise SettingsInvalid("beta_start and beta_end go together")
        return discrete_schedule(
            config.name, config.steps, rescale_timesteps=config.rescale_timesteps, ends=config.ends
        )
    if config.beta_start is not None or config.beta_end is not None:
        raise SettingsInvalid("beta_start and beta_end are of discrete schedules")
    if config.name not in _CONTINUOUS:
        raise _unknown(config.name)
    schedule = _CONTINUOUS[config.name](config.lambda_min, config.lambda_max)
    low, high = schedule.lambda_min, schedule.lambda_max
    if not (math.isfinite(high) and -20.0 <= low < high <= 20.0):
        raise SettingsInvalid(f"the range of lambda [{low}, {high}] is empty or outside [-20, 20]")
    return schedule


def _unknown(name: str, steps: str = "") -> SettingsInvalid:
    return SettingsInvalid(
        f"there is no schedule {name!r}{steps}",
        hint=f"schedules: {', '.join(SCHEDULES)}",
        facts={"schedule": name[:40]},
    )
