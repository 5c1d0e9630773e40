"""Noise schedules: a network's time t to the level (alpha_t, sigma_t) of x_t = alpha_t x_0 + sigma_t eps, and back.

Every schedule is variance preserving, alpha_t^2 + sigma_t^2 = 1, and is known by one function, the integrated
noise rate B(t) = -log alpha_t^2, and its inverse. From it follow, without cancellation at either end,

    alpha_t = exp(-B/2),   sigma_t = sqrt(1 - exp(-B)),   lambda_t = log(alpha_t / sigma_t) = -log(exp(B) - 1) / 2,

and backwards B = log(1 + exp(-2 lambda)) (Kingma et al., Variational Diffusion Models, arXiv 2107.00630, section 3).
Of any other (a_t, b_t), x_t = a_t x_0 + b_t eps, the state here is x_t / sqrt(a_t^2 + b_t^2), and a network is asked in
its own scale (`Denoiser`). Tables and levels are float64; only the network rounds.

A grid has the levels at which a solver steps, from data to noise, lambda strictly falling. Decoding uses the same grid
reversed, except of the public DDIB code: `ddib_compat_grids`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ddib_fed.errors import SettingsInvalid

# Noise level sigma / alpha = 0.005 at the data end: measured to cost 1.4e-4 in a translated point of unit
# variance.
LAMBDA_MAX = 5.3
MOST_STEPS = 1_000_000
"""Of a discrete schedule: its table takes 8 bytes each, and a manifest from elsewhere may name any number."""
# Of tables that reach alpha = 0: the prior is N(0, I) within exp(2 lambda) in relative variance.
ZERO_TERMINAL_LAMBDA_MIN = -8.0
# The last three on integer steps alone; betas whose square roots are evenly spaced are those of latent diffusion.
SCALED_LINEAR = "scaled-linear"
SIGMOID = "sigmoid"
SCHEDULES = ("linear", "cosine", "zero-terminal-snr", SCALED_LINEAR, SIGMOID)


def require(holds: bool, why: str, hint: str = "", **facts: str | float) -> None:
    """Refuse settings for a reason, unless a condition holds."""
    if not holds:
        raise SettingsInvalid(why, hint=hint, facts=facts)


class Level(NamedTuple):
    """A noise level, alpha^2 + sigma^2 = 1, and the time that a network with time input "timestep" receives for it."""

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
    """Names a schedule; part of a bundle's manifest. None of an end, or of noise rates, is the schedule's own."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str = "linear"
    steps: int | None = None  # of a discrete schedule; None for continuous time in [0, 1]
    rescale_timesteps: bool = False  # discrete: the network receives 1000 / steps times the step
    lambda_min: float | None = None  # continuous: noise end of the usable range
    lambda_max: float | None = None  # continuous: data end
    beta_start: float | None = None  # discrete, but not cosine
    beta_end: float | None = None
    scale: float | None = None  # of flow, of its time for the network; of edm, the deviation of the data

    @property
    def ends(self) -> tuple[float, float] | None:
        """First and last noise rate where both are given."""
        if self.beta_start is None or self.beta_end is None:
            return None
        return self.beta_start, self.beta_end


def rate_of(lam: Tensor) -> Tensor:
    """B at lambda = lam, float64, shape of lam."""
    return torch.logaddexp(torch.zeros_like(lam.double()), -2.0 * lam.double())


class Schedule(ABC):
    """One noise schedule with the range of lambda in which its networks are trained."""

    name: str
    lambda_min: float
    lambda_max: float

    @abstractmethod
    def t_of_lam(self, lam: Tensor) -> Tensor:
        """The time at which lambda_t = lam, float64, shape of lam."""

    def levels(self, lam: Tensor) -> tuple[Level, ...]:
        """The levels at `lam` (K,), in its order."""
        lam = lam.double()
        alpha, sigma = torch.sigmoid(2.0 * lam).sqrt(), torch.sigmoid(-2.0 * lam).sqrt()
        columns = (alpha.tolist(), sigma.tolist(), self.t_of_lam(lam).tolist())
        return tuple(map(Level, *columns))

    def level(self, lam: float) -> Level:
        return self.levels(torch.tensor([lam], dtype=torch.float64))[0]


class _Continuous(Schedule):
    """Continuous time; the usable range is the schedule's own unless other ends are given, not beyond its `last`."""

    least: float
    last = -math.inf
    scale: float | None = None

    def __init__(
        self, lambda_min: float | None = None, lambda_max: float | None = None, scale: float | None = None
    ) -> None:
        self.lambda_min = max(self.last, self.least if lambda_min is None else lambda_min)
        self.lambda_max = LAMBDA_MAX if lambda_max is None else lambda_max
        if scale is not None:
            takes = self.scale is not None and 0.0 < scale < math.inf
            require(
                takes, f"the schedule {self.name} has no scale {scale:g}", "scale is of flow and edm, above 0"
            )
            self.scale = scale


class LinearSchedule(_Continuous):
    """Rate beta(t) = b0 + (b1 - b0) t on [0, 1], the limit of Ho et al.'s betas (arXiv 2011.13456, (32))."""

    name = "linear"
    beta_0 = 0.1
    beta_1 = 20.0
    least = last = -0.5 * math.log(math.expm1(0.5 * (beta_0 + beta_1)))  # of B(1)

    def t_of_lam(self, lam: Tensor) -> Tensor:
        rate = rate_of(lam)
        root = torch.sqrt(self.beta_0**2 + 2.0 * (self.beta_1 - self.beta_0) * rate)
        return 2.0 * rate / (self.beta_0 + root)


class CosineSchedule(_Continuous):
    """alpha_t = cos(u_t) / cos(u_0), u_t = (t + s) / (1 + s) pi / 2, s = 0.008 (arXiv 2102.09672, (17))."""

    name = "cosine"
    least = -5.0
    offset = 0.008
    _cos_0 = math.cos(offset / (1.0 + offset) * math.pi / 2.0)

    def t_of_lam(self, lam: Tensor) -> Tensor:
        angle = torch.acos(torch.exp(-0.5 * rate_of(lam)) * self._cos_0)
        return angle / (math.pi / 2.0) * (1.0 + self.offset) - self.offset


class FlowSchedule(_Continuous):
    """x_t = (1 - t) x_0 + t eps (Liu et al., Rectified Flow, arXiv 2209.03003), so t = sigma / (alpha + sigma)."""

    name = "flow"
    least = ZERO_TERMINAL_LAMBDA_MIN
    scale: float | None = 1.0

    def t_of_lam(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam.double()) * (self.scale or 1.0)


class EdmSchedule(_Continuous):
    """x_s = x_0 + s eps with data of deviation d; the network, F of table 1 in Karras et al. (arXiv 2206.00364), is -v
    and receives log(s) / 4. Samples here are x_0 / d, so lambda = log(d / s).
    """

    name = "edm"
    least = -5.0
    scale: float | None = 0.5

    def t_of_lam(self, lam: Tensor) -> Tensor:
        return (math.log(self.scale or 1.0) - lam.double()) / 4.0


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

    def t_of_lam(self, lam: Tensor) -> Tensor:
        rate = rate_of(lam)
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
    """Ho et al.'s betas 1e-4 to 0.02 of 1,000 steps, rescaled to `steps`: (steps,) float64."""
    require(
        steps > 20,
        f"the linear schedule cannot be rescaled to {steps} steps: its last beta would reach 1",
        "use at least 21 steps, or a respaced schedule",
        steps=steps,
        minimum=21,
    )
    scale = 1000.0 / steps
    return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)


def cosine_betas(steps: int) -> Tensor:
    """Betas of the cosine alpha_bar at (i + 1) / T over i / T, at most 0.999 (arXiv 2102.09672): (steps,) float64."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    angle = (t + CosineSchedule.offset) / (1.0 + CosineSchedule.offset) * (math.pi / 2.0)
    rates = -2.0 * torch.log(torch.cos(angle))
    return (-torch.expm1(rates[:-1] - rates[1:])).clamp_max(0.999)


def zero_terminal_betas(betas: Tensor) -> Tensor:
    """Shift and scale alpha of `betas` so that the last is 0, the first kept (arXiv 2305.08891): (T,) float64."""
    alpha = torch.cumprod(1.0 - betas.double(), 0).sqrt()
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    bars = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
    return 1.0 - bars[1:] / bars[:-1]


def _between(name: str, ends: tuple[float, float], steps: int) -> Tensor:
    """Return betas (steps,) float64: even, or of even roots (scaled-linear), or a logistic from -6 to 6 (sigmoid)."""
    first, last = ends
    fits = 0.0 < first < last < 1.0 and steps >= 2
    require(fits, f"there is no schedule of {steps} betas from {first} to {last}")
    if name == SIGMOID:
        rise = torch.sigmoid(torch.linspace(-6.0, 6.0, steps, dtype=torch.float64))
        return rise * (last - first) + first
    power = 2.0 if name == SCALED_LINEAR else 1.0
    return torch.linspace(first ** (1 / power), last ** (1 / power), steps, dtype=torch.float64) ** power


def discrete_schedule(
    name: str, steps: int, *, rescale_timesteps: bool = False, ends: tuple[float, float] | None = None
) -> DiscreteSchedule:
    """The named schedule on `steps` integer steps, as guided-diffusion makes them, or between the betas in `ends`."""
    too_many = f"a schedule has at most {MOST_STEPS:,} steps, not {steps:,}"
    require(steps <= MOST_STEPS, too_many, steps=steps, maximum=MOST_STEPS)
    if name in {"linear", "zero-terminal-snr"}:
        betas = _between("linear", ends, steps) if ends else linear_betas(steps)
        betas = betas if name == "linear" else zero_terminal_betas(betas)
    elif name in {SCALED_LINEAR, SIGMOID} and ends:
        betas = _between(name, ends, steps)
    elif name == "cosine" and steps >= 2 and not ends:
        betas = cosine_betas(steps)
    else:
        raise _unknown(name, f" of {steps} steps")
    return DiscreteSchedule(betas, name=name, time_scale=1000.0 / steps if rescale_timesteps else 1.0)


_CONTINUOUS: dict[str, type[_Continuous]] = {
    kind.name: kind for kind in (LinearSchedule, CosineSchedule, FlowSchedule, EdmSchedule)
}


def schedule_from_config(config: ScheduleConfig) -> Schedule:
    if config.steps is not None:
        no_ends = config.lambda_min is None and config.lambda_max is None
        require(no_ends, "lambda_min and lambda_max are of continuous schedules; discrete ones have tables")
        both = (config.beta_start is None) == (config.beta_end is None)
        require(both, "beta_start and beta_end go together")
        require(config.scale is None, "scale is of the continuous schedules flow and edm")
        return discrete_schedule(
            config.name, config.steps, rescale_timesteps=config.rescale_timesteps, ends=config.ends
        )
    no_betas = config.beta_start is None and config.beta_end is None
    require(no_betas, "beta_start and beta_end are of discrete schedules")
    if config.name not in _CONTINUOUS:
        raise _unknown(config.name)
    schedule = _CONTINUOUS[config.name](config.lambda_min, config.lambda_max, config.scale)
    low, high = schedule.lambda_min, schedule.lambda_max
    fits = math.isfinite(high) and -20.0 <= low < high <= 20.0
    require(fits, f"the range of lambda [{low}, {high}] is empty or outside [-20, 20]")
    return schedule


def _unknown(name: str, steps: str = "") -> SettingsInvalid:
    return SettingsInvalid(
        f"there is no schedule {name!r}{steps}",
        hint=f"schedules: {', '.join(SCHEDULES if steps else _CONTINUOUS)}",
        facts={"schedule": name[:40]},
    )


# Density of nodes in lambda that was measured best, of points and pictures:
# FLOOR + 1 / (1 + ((lambda - CENTRE) / WIDTH)^2).
FLOOR, CENTRE, WIDTH = 0.12, 1.2, 1.6
# Below this many steps the rescaled linear schedule makes single steps of beta > 0.4; 1,000 steps are respaced instead.
MIN_RESCALED_STEPS = 50


@dataclass(frozen=True, slots=True)
class LevelGrid:
    levels: tuple[Level, ...]

    def __len__(self) -> int:
        return len(self.levels) - 1

    def reversed(self) -> "LevelGrid":
        return LevelGrid(self.levels[::-1])


def make_grid(
    schedule: Schedule, name: str, n: int, *, lambda_max: float | None = None, lambda_min: float | None = None
) -> LevelGrid:
    """Return the named grid of `n` intervals, at least 1, from data to noise; raise SettingsInvalid if it cannot be.

    It starts at `lambda_max` instead of the data end (after softening), and ends at `lambda_min` instead of the noise
    end (partial depth); the integer grid cannot end early, for fewer than `n` of its steps would be left.
    """
    require(n >= 1, f"a grid of {n} intervals", "use at least one interval")
    require(name in GRIDS, f"there is no grid {name[:40]!r}", f"grids: {', '.join(GRIDS)}", grid=name[:40])
    if name == "integer":
        whole = "the grid integer steps to the schedule's end; it has no partial depth"
        require(lambda_min is None, whole, "use depth 1, or the grid default", grid=name)
        return _integer_grid(schedule, n, lambda_max)
    start = schedule.lambda_max if lambda_max is None else min(lambda_max, schedule.lambda_max)
    end = schedule.lambda_min if lambda_min is None else max(lambda_min, schedule.lambda_min)
    require(
        end < start,
        f"a grid cannot start at lambda {start:.2f} and end at {end:.2f}: nothing is left between",
        "soften less, or go deeper",
    )
    even = torch.linspace(start, end, n + 1, dtype=torch.float64)
    lams = even if name == "uniform-lambda" else _dense_middle(start, end, n)
    lams[0], lams[-1] = start, end
    return LevelGrid(schedule.levels(lams))


GRIDS = ("default", "uniform-lambda", "integer")


def _dense_middle(start: float, end: float, n: int) -> Tensor:
    """Equal shares of the density's integral FLOOR lambda + WIDTH atan((lambda - CENTRE) / WIDTH), by bisection."""

    def mass(lam: Tensor) -> Tensor:
        return FLOOR * lam + WIDTH * torch.atan((lam - CENTRE) / WIDTH)

    ends = mass(torch.tensor([start, end], dtype=torch.float64)).tolist()
    wanted = torch.linspace(ends[0], ends[1], n + 1, dtype=torch.float64)
    low, high = torch.full_like(wanted, end), torch.full_like(wanted, start)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = mass(middle) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def _integer_grid(schedule: Schedule, n: int, lambda_max: float | None) -> LevelGrid:
    """Integer steps: the baseline's grid."""
    if isinstance(schedule, DiscreteSchedule):
        require(
            n < schedule.steps,
            f"{n} evaluations need {n + 1} levels; the schedule has {schedule.steps}",
            f"use at most {schedule.steps - 1} evaluations on the integer grid",
            evaluations=n,
            maximum=schedule.steps - 1,
        )
        levels = schedule.at_steps(space_timesteps(schedule.steps, [n + 1]))
    else:
        table = discrete_schedule("linear", n if n >= MIN_RESCALED_STEPS else 1000)
        # One evaluation must still end in noise: respacing to a single step would keep the one nearest to the data.
        steps = space_timesteps(table.steps, [n]) if n > 1 else [table.steps - 1]
        lams = [level.lam for level in table.at_steps(steps)]
        # From about 4,000 steps step 0 lies beyond the usable end: the data then stand just before it.
        first = max(schedule.lambda_max, lams[0] + 1e-3)
        levels = schedule.levels(torch.tensor([first, *lams], dtype=torch.float64))
    if lambda_max is not None and lambda_max < levels[0].lam:
        levels = (schedule.level(lambda_max), *(level for level in levels if level.lam < lambda_max))
    return LevelGrid(levels)


LEARNED_GRID = "learned"
Coordinates = Literal["angle", "spectrum"]
"""In which a leg is integrated: x itself over the angle phi, or whitened pictures over lambda."""
Stage = Literal["encode", "decode"]
Scale = float | Tensor
# How far an end of learned steps may lie from that of the leg, in lambda; a fortieth of the smallest step in use.
END_TOLERANCE = 1e-3
TUNE = "ddib model tune MODEL --evaluations"


@dataclass(frozen=True, slots=True)
class LearnedSteps:
    """The steps of one leg."""

    stage: Stage
    evaluations: int
    sigma: float  # of encoding, the noise level to which data are softened before; 0 for none
    order: int  # of unipc, 1 to 5
    coordinates: Coordinates
    lams: tuple[float, ...]  # strictly falling: from data to noise, also of decoding

    def grid(self, schedule: Schedule, start: float, end: float) -> LevelGrid:
        """The grid from data to noise, its ends set to lambda `start` and `end` exactly."""
        first, last = self.lams[0], self.lams[-1]
        require(
            abs(first - start) <= END_TOLERANCE and abs(last - end) <= END_TOLERANCE,
            f"the learned steps go from lambda {first:.3f} to {last:.3f}, the model from {start:.3f} to {end:.3f}",
            f"{TUNE} {self.evaluations} learns them again",
        )
        return LevelGrid(tuple(schedule.level(lam) for lam in (start, *self.lams[1:-1], end)))


@dataclass(frozen=True, slots=True)
class LearnedLegs:
    model: str = "this model"
    legs: tuple[LearnedSteps, ...] = ()

    def find(self, stage: Stage, evaluations: int, sigma: float = 0.0) -> LearnedSteps:
        counts = sorted({leg.evaluations for leg in self.legs})
        if evaluations not in counts:
            tune = f"on the model's node: {TUNE} {evaluations}"
            raise SettingsInvalid(
                f"{self.model} has learned steps of {_listed(counts)} evaluations, not of {evaluations}",
                hint=f"--evaluations {counts[0]}, or {tune}" if counts else f"grid=default, or {tune}",
                facts={"evaluations": evaluations, "learned": _listed(counts)},
            )
        legs = [leg for leg in self.legs if leg.evaluations == evaluations]
        for leg in legs:
            if leg.stage == stage and math.isclose(leg.sigma, sigma, rel_tol=1e-6):
                return leg
        reverse = next((leg for leg in legs if leg.stage == "decode"), None)
        if stage == "encode" and sigma == 0.0 and reverse is not None:
            return reverse
        levels = sorted({leg.sigma for leg in legs if leg.stage == stage})
        raise SettingsInvalid(
            f"{self.model} has learned to {stage} from softening {_listed(levels)}, not from {sigma:g}",
            hint=f"leave soften-sigma out, or {TUNE} {evaluations} --soften-sigma {sigma:g}",
            facts={"soften_sigma": sigma, "learned": _listed(levels)},
        )


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "no"


@dataclass(frozen=True, slots=True)
class PublicLevels:
    """The public code's options of the same names."""

    noise_schedule: str = ""
    diffusion_steps: int = 0
    respacing: str = ""

    def kept(self, schedule: Schedule) -> int:
        """How many steps the respacing keeps: evaluations of a leg."""
        return len(space_timesteps(_own_steps(schedule).steps, self.respacing))


def _own_steps(schedule: Schedule) -> DiscreteSchedule:
    if not isinstance(schedule, DiscreteSchedule):
        raise SettingsInvalid(
            "the public code's levels are the integer steps that a model was trained on, and this one has none",
            hint="leave flags out; solver=ddim with grid=integer steps as that code does",
        )
    return schedule


def space_timesteps(steps: int, sections: list[int] | str) -> list[int]:
    """Which of `steps` integer steps remain after respacing, ascending, as guided-diffusion chooses them."""
    if isinstance(sections, str):
        if sections.startswith("ddim"):
            return _strided(steps, _number(sections.removeprefix("ddim"), sections))
        sections = [_number(part, sections) for part in sections.split(",")] if sections else [steps]
    size, extra = divmod(steps, len(sections))
    chosen: list[int] = []
    start = 0
    for index, count in enumerate(sections):
        length = size + (index < extra)
        fits = 1 <= count <= length
        require(fits, f"cannot keep {count} steps of a section of {length}", f"keep 1 to {length} of it")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # Added up, not multiplied: the public code's rounding.
        position = 0.0
        for _ in range(count):
            chosen.append(start + round(position))
            position += stride
        start += length
    return sorted(set(chosen))


def _strided(steps: int, wanted: int) -> list[int]:
    by_count = {len(range(0, steps, stride)): stride for stride in range(max(1, steps - 1), 0, -1)}
    near = min(by_count, key=lambda count: (abs(count - wanted), count))
    why = f"no constant stride leaves exactly {wanted} of {steps} steps"
    require(near == wanted, why, f"ddim{near} is the nearest that one leaves")
    return list(range(0, steps, by_count[near]))


def _number(text: str, whole: str) -> int:
    why = f"respacing {whole!r} is not of the form '100', '10,20' or 'ddim100'"
    require(text.strip().isdecimal(), why, "ddim50, for example")
    return int(text)


def ddib_compat_grids(
    schedule: DiscreteSchedule, respacing: list[int] | str = ""
) -> tuple[LevelGrid, LevelGrid]:
    """The public code's levels: (encode, decode), which are not each other's reverse."""
    inner = schedule.at_steps(space_timesteps(schedule.steps, respacing))
    noise, data = Level(0.0, 1.0, inner[-1].t), Level(1.0, 0.0, inner[0].t)
    return LevelGrid((*inner, noise)), LevelGrid((*inner[::-1], data))


def public_grids(schedule: Schedule, levels: PublicLevels, evaluations: int) -> tuple[LevelGrid, LevelGrid]:
    """The public code's levels for a model; the options repeat its own steps or leave them open."""
    own, name = _own_steps(schedule), levels.noise_schedule
    require(
        levels.diffusion_steps in (0, own.steps),
        f"the model was trained with {own.steps} diffusion steps, not with {levels.diffusion_steps}",
        "leave --diffusion_steps out of flags; --timestep_respacing takes fewer of them",
        steps=own.steps,
    )
    same = name in {"", "linear", "cosine"}
    if same and name:
        same = torch.allclose(discrete_schedule(name, own.steps).betas, own.betas, rtol=1e-9, atol=0.0)
    require(
        same,
        f"the model was trained on the noise schedule {own.name}, not on {name}",
        "leave --noise_schedule out of flags",
        schedule=own.name,
    )
    grids = ddib_compat_grids(own, levels.respacing or [evaluations])
    kept = len(grids[0])
    require(
        kept == evaluations,
        f"respacing {levels.respacing!r} of {own.steps} steps keeps {kept}, not {evaluations}",
        f"--evaluations {kept}, or leave --evaluations out",
        evaluations=evaluations,
        kept=kept,
    )
    return grids
