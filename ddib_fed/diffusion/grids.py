"""Grids: where between data and noise a solver steps, made from a schedule, a name and a number of intervals.

A grid lists its levels from the data end to the noise end; lambda strictly falls. Decoding uses the same grid reversed,
except of the public DDIB code, whose two directions use different ends: `ddib_compat_grids`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ddib_fed.diffusion.schedule import DiscreteSchedule, Level, Schedule, discrete_schedule
from ddib_fed.errors import SettingsInvalid

# Density of nodes in lambda that was measured best: FLOOR + 1 / (1 + ((lambda - CENTRE) / WIDTH)^2).
FLOOR, CENTRE, WIDTH = 0.12, 1.2, 1.6
KARRAS_RHO = 7.0
# Below this many steps the rescaled linear schedule makes single steps of beta > 0.4; 1,000 steps are respaced instead.
MIN_RESCALED_STEPS = 50
# Of "integer:T": below, the rescaled linear beta reaches 1; above, a table longer than any published model's.
MIN_TABLE_STEPS, MAX_TABLE_STEPS = 21, 10_000


def require(holds: bool, why: str, hint: str = "", **facts: str | float) -> None:
    """Refuse settings for a reason, unless a condition holds."""
    if not holds:
        raise SettingsInvalid(why, hint=hint, facts=facts)


@dataclass(frozen=True, slots=True)
class LevelGrid:
    """Levels to step through, and the level at the middle (in phi) of each interval."""

    levels: tuple[Level, ...]
    middles: tuple[Level, ...]

    def __len__(self) -> int:
        return len(self.middles)

    def reversed(self) -> LevelGrid:
        return LevelGrid(self.levels[::-1], self.middles[::-1])

    @property
    def phis(self) -> tuple[float, ...]:
        return tuple(level.phi for level in self.levels)


def grid_of(schedule: Schedule, levels: tuple[Level, ...]) -> LevelGrid:
    """The grid through `levels`, with the middles of `schedule`."""
    phis = torch.tensor([level.phi for level in levels], dtype=torch.float64)
    return LevelGrid(levels, schedule.levels(-torch.log(torch.tan(0.5 * (phis[1:] + phis[:-1])))))


def make_grid(
    schedule: Schedule, name: str, n: int, *, lambda_max: float | None = None, lambda_min: float | None = None
) -> LevelGrid:
    """The named grid of `n` intervals on the usable range of `schedule`, from data to noise.

    Args:
        schedule: Gives the range and the network times.
        name: One of `GRIDS`, or "integer:T", for which the integer grid's linear schedule has T steps, respaced to n
            as guided-diffusion does.
        n: Intervals, at least 1.
        lambda_max: Start at this lambda instead of the schedule's data end (after softening).
        lambda_min: End at this lambda instead of the schedule's noise end (partial depth). The integer grids
            cannot: what is left of their steps would be fewer than `n`.

    Raises:
        SettingsInvalid: An unknown name, an `n` that the grid cannot have, or ends that the grid cannot reach.
    """
    require(n >= 1, f"a grid of {n} intervals", "use at least one interval")
    table_steps = check_grid(name, n)
    if name not in _PLACEMENTS:
        require(
            lambda_min is None,
            f"the grid {name} steps to the schedule's end; it has no partial depth",
            f"use depth 1, or one of the grids {', '.join(_PLACEMENTS)}",
            grid=name,
        )
        return _integer_grid(schedule, n, lambda_max, table_steps)
    start = schedule.lambda_max if lambda_max is None else min(lambda_max, schedule.lambda_max)
    end = schedule.lambda_min if lambda_min is None else max(lambda_min, schedule.lambda_min)
    require(
        end < start,
        f"a grid cannot start at lambda {start:.2f} and end at {end:.2f}: nothing is left between",
        "soften less, or go deeper",
    )
    lams = _PLACEMENTS[name](start, end, n)
    lams[0], lams[-1] = start, end
    return grid_of(schedule, schedule.levels(lams))


def check_grid(name: str, n: int) -> int | None:
    """Check a grid's name for `n` intervals without a schedule; the T of "integer:T", None for other grids."""
    if name in GRIDS:
        return None
    kind, _, text = name.partition(":")
    name, known = name[:40], f"grids: {', '.join(GRIDS)}, integer:T"
    require(kind == "integer", f"there is no grid {name!r}", known, grid=name)
    fits = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_TABLE_STEPS))
    require(
        fits and MIN_TABLE_STEPS <= int(text) <= MAX_TABLE_STEPS,
        f"the grid {name!r} names no number of steps from {MIN_TABLE_STEPS} to {MAX_TABLE_STEPS}",
        "write for example integer:4000",
        grid=name,
        minimum=MIN_TABLE_STEPS,
        maximum=MAX_TABLE_STEPS,
    )
    require(
        int(text) >= n,
        f"the {text} steps of the grid {name!r} cannot be respaced to {n}",
        f"use integer:{n} or longer, or at most {text} intervals",
        grid=name,
        maximum=int(text),
    )
    return int(text)


def _uniform_lambda(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


def _karras(start: float, end: float, n: int) -> Tensor:
    low, high = math.exp(-start / KARRAS_RHO), math.exp(-end / KARRAS_RHO)
    return -KARRAS_RHO * torch.log(torch.linspace(low, high, n + 1, dtype=torch.float64))


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


_PLACEMENTS: Mapping[str, Callable[[float, float, int], Tensor]] = {
    "default": _dense_middle,
    "uniform-lambda": _uniform_lambda,
    "karras": _karras,
}
GRIDS = (*_PLACEMENTS, "integer")


def _integer_grid(schedule: Schedule, n: int, lambda_max: float | None, table_steps: int | None) -> LevelGrid:
    """Integer steps: the baseline's grid."""
    if isinstance(schedule, DiscreteSchedule):
        require(
            table_steps in (None, schedule.steps),
            f"the grid has {table_steps} steps; the model's schedule has {schedule.steps} of its own",
            "use the grid integer",
            steps=schedule.steps,
        )
        require(
            n < schedule.steps,
            f"{n} evaluations need {n + 1} levels; the schedule has {schedule.steps}",
            f"use at most {schedule.steps - 1} evaluations on the integer grid",
            evaluations=n,
            maximum=schedule.steps - 1,
        )
        levels = schedule.at_steps(space_timesteps(schedule.steps, [n + 1]))
    else:
        table = discrete_schedule("linear", table_steps or (n if n >= MIN_RESCALED_STEPS else 1000))
        # One evaluation must still end in noise: respacing to a single step would keep the one nearest to the data.
        steps = space_timesteps(table.steps, [n]) if n > 1 else [table.steps - 1]
        lams = [level.lam for level in table.at_steps(steps)]
        # From about 4,000 steps step 0 lies beyond the usable end: the data then stand just before it.
        first = max(schedule.lambda_max, lams[0] + 1e-3)
        levels = schedule.levels(torch.tensor([first, *lams], dtype=torch.float64))
    if lambda_max is not None and lambda_max < levels[0].lam:
        levels = (schedule.level(lambda_max), *(level for level in levels if level.lam < lambda_max))
    return grid_of(schedule, levels)


# Learned steps

LEARNED_GRID = "learned"
Coordinates = Literal["angle", "spectrum"]
"""In which a leg is integrated: x itself over the angle phi, or whitened pictures over lambda (`Frame`)."""
Stage = Literal["encode", "decode"]
Scale = float | Tensor
# How far an end of learned steps may lie from that of the leg, in lambda; a fortieth of the smallest step in use.
END_TOLERANCE = 1e-3
TUNE = "ddib model tune MODEL --evaluations"


class Frame(Protocol):
    """Other coordinates of the state, integrated over lambda, in which the linear part of the ODE stands still."""

    def enter(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """The state of x (N, *sample_shape), its shape."""

    def leave(self, state: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """The x of a state, its shape."""

    def slope(self, v: Tensor, state: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """The derivative of a state by lambda, from v at the x that it stands for; its shape."""


@dataclass(frozen=True, slots=True)
class LearnedSteps:
    """The steps of one leg.

    Attributes:
        stage: The direction that they were learned for.
        evaluations: Intervals, and network evaluations.
        sigma: Of encoding, the noise level to which data are softened before; 0 for none.
        order: Of unipc, 1 to 5.
        coordinates: In which it integrates.
        lams: lambda of each level, strictly falling: from data to noise, also of decoding.
    """

    stage: Stage
    evaluations: int
    sigma: float
    order: int
    coordinates: Coordinates
    lams: tuple[float, ...]

    def grid(self, schedule: Schedule, start: float, end: float) -> LevelGrid:
        """The grid from data to noise, its ends set to lambda `start` and `end` exactly."""
        first, last = self.lams[0], self.lams[-1]
        require(
            abs(first - start) <= END_TOLERANCE and abs(last - end) <= END_TOLERANCE,
            f"the learned steps go from lambda {first:.3f} to {last:.3f}, the model from {start:.3f} to {end:.3f}",
            f"{TUNE} {self.evaluations} learns them again",
        )
        return grid_of(schedule, tuple(schedule.level(lam) for lam in (start, *self.lams[1:-1], end)))


@dataclass(frozen=True, slots=True)
class LearnedLegs:
    """All that a model has learned."""

    model: str = "this model"
    legs: tuple[LearnedSteps, ...] = ()

    def find(self, stage: Stage, evaluations: int, sigma: float = 0.0) -> LearnedSteps:
        counts = sorted({leg.evaluations for leg in self.legs})
        if evaluations not in counts:
            tune = f"on the model's node: {TUNE} {evaluations}"
            raise SettingsInvalid(
                f"{self.model} has learned steps of {_listed(counts)} evaluations, not of {evaluations}",
                hint=f"--evaluations {counts[0]}, or {tune}" if counts else f"--grid default, or {tune}",
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
            hint=f"leave --soften-sigma out, or {TUNE} {evaluations} --soften-sigma {sigma:g}",
            facts={"soften_sigma": sigma, "learned": _listed(levels)},
        )


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "no"


# The public code's levels

# How far beyond the range of lambda in which a network was trained a table may reach; linear tables reach 0.9.
MAX_BEYOND = 1.0
MAX_STEPS = 10_000


@dataclass(frozen=True, slots=True)
class PublicLevels:
    """The public code's options of the same names."""

    noise_schedule: str = ""
    diffusion_steps: int = 0
    respacing: str = ""

    def kept(self, schedule: Schedule) -> int:
        """How many steps the respacing keeps: evaluations of a leg."""
        steps = self.diffusion_steps or (schedule.steps if isinstance(schedule, DiscreteSchedule) else 0)
        require(
            steps > 0,
            f"respacing {self.respacing!r} keeps some of the diffusion steps, and the model has none of its own",
            'say how many, for example --flags "--diffusion_steps 4000"',
        )
        return len(space_timesteps(steps, self.respacing))


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
    if wanted in by_count:
        return list(range(0, steps, by_count[wanted]))
    near = min(by_count, key=lambda count: (abs(count - wanted), count))
    raise SettingsInvalid(
        f"no constant stride leaves exactly {wanted} of {steps} steps",
        hint=f"ddim{near} is the nearest that one leaves",
    )


def _number(text: str, whole: str) -> int:
    why = f"respacing {whole!r} is not of the form '100', '10,20' or 'ddim100'"
    require(text.strip().isdecimal(), why, "ddim50, for example")
    return int(text)


def ddib_compat_grids(
    schedule: DiscreteSchedule, respacing: list[int] | str = "", *, own: Schedule | None = None
) -> tuple[LevelGrid, LevelGrid]:
    """The public code's levels: (encode, decode), which are not each other's reverse."""
    inner = schedule.at_steps(space_timesteps(schedule.steps, respacing))
    if own is not None:
        inner = tuple(level._replace(t=own.level(level.lam).t) for level in inner)
    noise, data = Level(0.0, 1.0, inner[-1].t), Level(1.0, 0.0, inner[0].t)
    middles = own or schedule
    return grid_of(middles, (*inner, noise)), grid_of(middles, (*inner[::-1], data))


def public_grids(schedule: Schedule, levels: PublicLevels, evaluations: int) -> tuple[LevelGrid, LevelGrid]:
    """The public code's levels for a model: (encode, decode), as in `ddib_compat_grids`."""
    asked = levels.diffusion_steps
    require(0 <= asked <= MAX_STEPS, f"{asked} diffusion steps are outside 1 to {MAX_STEPS}")
    if isinstance(schedule, DiscreteSchedule):
        _check_own(schedule, levels)
        table, own = schedule, None
    else:
        table = discrete_schedule(levels.noise_schedule or "linear", levels.diffusion_steps or evaluations)
        own = schedule
        # Without a T the table is a rescaled linear one, which is followed as it is.
        if levels.noise_schedule or levels.diffusion_steps:
            _check_range(schedule, table)
    grids = ddib_compat_grids(table, levels.respacing or [evaluations], own=own)
    kept = len(grids[0])
    require(
        kept == evaluations,
        f"respacing {levels.respacing!r} of {table.steps} steps keeps {kept}, not {evaluations}",
        f"--evaluations {kept}, or leave --evaluations out",
        evaluations=evaluations,
        kept=kept,
    )
    return grids


def _check_own(schedule: DiscreteSchedule, levels: PublicLevels) -> None:
    """Return when what was asked repeats the model's own steps, or leaves them open."""
    require(
        levels.diffusion_steps in (0, schedule.steps),
        f"the model was trained with {schedule.steps} diffusion steps, not with {levels.diffusion_steps}",
        "leave --diffusion_steps out of --flags; --timestep_respacing takes fewer of them",
        steps=schedule.steps,
    )
    if not levels.noise_schedule:
        return
    try:
        same = torch.allclose(
            discrete_schedule(levels.noise_schedule, schedule.steps).betas,
            schedule.betas,
            rtol=1e-9,
            atol=0.0,
        )
    except SettingsInvalid:
        same = False
    require(
        same,
        f"the model was trained on the noise schedule {schedule.name}, not on {levels.noise_schedule}",
        "leave --noise_schedule out of --flags",
        schedule=schedule.name,
    )


def _check_range(schedule: Schedule, table: DiscreteSchedule) -> None:
    """Return when a table's levels lie where the network was trained, or near it."""
    data, noise = (level.lam for level in table.at_steps([0, table.steps - 1]))
    require(
        data <= schedule.lambda_max + MAX_BEYOND and noise >= schedule.lambda_min - MAX_BEYOND,
        f"{table.steps} {table.name} steps go from lambda {data:.1f} to {noise:.1f}; the model was trained "
        f"from {schedule.lambda_max:.1f} to {schedule.lambda_min:.1f}",
        '--flags "--noise_schedule linear", or train a model on these steps: ddib model train --help',
    )
