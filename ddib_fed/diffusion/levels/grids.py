"""Grids: where between data and noise a solver steps, made from a schedule, a name and a number of intervals.

A grid lists its levels from the data end to the noise end; decoding uses the same grid reversed. The
exception is the public DDIB code, whose two directions use different ends: `ddib_compat_grids`. The rule:
lambda strictly falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddib_fed.diffusion.schedule import DiscreteSchedule, Level, Schedule, discrete_schedule
from ddib_fed.errors import SettingsInvalid

# Density of nodes in lambda that was measured best: FLOOR + 1 / (1 + ((lambda - CENTRE) / WIDTH)^2).
FLOOR, CENTRE, WIDTH = 0.12, 1.2, 1.6
KARRAS_RHO = 7.0
# Below this many steps the rescaled linear schedule makes single steps of beta > 0.4; 1,000 steps are
# respaced instead.
MIN_RESCALED_STEPS = 50
# Of "integer:T": below, the rescaled linear beta reaches 1; above, a table longer than any published model's.
MIN_TABLE_STEPS, MAX_TABLE_STEPS = 21, 10_000


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels to step through, and the level at the middle (in phi) of each interval.

    Attributes:
        levels: n + 1 levels, strictly monotone in phi.
        middles: n levels.
    """

    levels: tuple[Level, ...]
    middles: tuple[Level, ...]

    def __len__(self) -> int:
        return len(self.middles)

    def reversed(self) -> Grid:
        """The same grid the other way."""
        return Grid(self.levels[::-1], self.middles[::-1])

    @property
    def phis(self) -> tuple[float, ...]:
        """The angles of the levels."""
        return tuple(level.phi for level in self.levels)


def grid_of(schedule: Schedule, levels: tuple[Level, ...]) -> Grid:
    """The grid through `levels`, with the middles of `schedule`."""
    phis = torch.tensor([level.phi for level in levels], dtype=torch.float64)
    middle = 0.5 * (phis[1:] + phis[:-1])
    return Grid(levels, schedule.levels(-torch.log(torch.tan(middle))))


def make_grid(
    schedule: Schedule, name: str, n: int, *, lambda_max: float | None = None, lambda_min: float | None = None
) -> Grid:
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
    if n < 1:
        raise SettingsInvalid(f"a grid of {n} intervals", hint="use at least one interval")
    table_steps = check_grid(name, n)
    if name not in _PLACEMENTS:
        if lambda_min is not None:
            raise SettingsInvalid(
                f"the grid {name} steps to the schedule's end; it has no partial depth",
                hint=f"use depth 1, or one of the grids {', '.join(_PLACEMENTS)}",
                facts={"grid": name},
            )
        return _integer_grid(schedule, n, lambda_max, table_steps)
    start = schedule.lambda_max if lambda_max is None else min(lambda_max, schedule.lambda_max)
    end = schedule.lambda_min if lambda_min is None else max(lambda_min, schedule.lambda_min)
    if start <= end:
        raise SettingsInvalid(
            f"a grid cannot start at lambda {start:.2f} and end at {end:.2f}: nothing is left between",
            hint="soften less, or go deeper",
        )
    lams = _PLACEMENTS[name](start, end, n)
    lams[0], lams[-1] = start, end
    return grid_of(schedule, schedule.levels(lams))


def check_grid(name: str, n: int) -> int | None:
    """Check a grid's name for `n` intervals without a schedule; the T of "integer:T", None for other grids."""
    if name in GRIDS:
        return None
    kind, colon, text = name.partition(":")
    if (kind, colon) != ("integer", ":"):
        raise SettingsInvalid(
            f"there is no grid {name[:40]!r}",
            hint=f"grids: {', '.join(GRIDS)}, integer:T",
            facts={"grid": name[:40]},
        )
    fits = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_TABLE_STEPS))
    if not fits or not MIN_TABLE_STEPS <= int(text) <= MAX_TABLE_STEPS:
        raise SettingsInvalid(
            f"the grid {name[:40]!r} names no number of steps from {MIN_TABLE_STEPS} to {MAX_TABLE_STEPS}",
            hint="write for example integer:4000",
            facts={"grid": name[:40], "minimum": MIN_TABLE_STEPS, "maximum": MAX_TABLE_STEPS},
        )
    if int(text) < n:
        raise SettingsInvalid(
            f"the {text} steps of the grid {name!r} cannot be respaced to {n}",
            hint=f"use integer:{n} or longer, or at most {text} intervals",
            facts={"grid": name, "maximum": int(text)},
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


def _integer_grid(
    schedule: Schedule, n: int, lambda_max: float | None, table_steps: int | None = None
) -> Grid:
    """Integer steps: the baseline's grid."""
    if isinstance(schedule, DiscreteSchedule):
        if table_steps not in (None, schedule.steps):
            raise SettingsInvalid(
                f"the grid has {table_steps} steps; the model's schedule has {schedule.steps} of its own",
                hint="use the grid integer",
                facts={"steps": schedule.steps},
            )
        if n + 1 > schedule.steps:
            raise SettingsInvalid(
                f"{n} evaluations need {n + 1} levels; the schedule has {schedule.steps}",
                hint=f"use at most {schedule.steps - 1} evaluations on the integer grid",
                facts={"evaluations": n, "maximum": schedule.steps - 1},
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


def space_timesteps(steps: int, sections: list[int] | str) -> list[int]:
    """Which of `steps` integer steps remain after respacing, ascending, as guided-diffusion chooses them."""
    if isinstance(sections, str):
        if sections.startswith("ddim"):
            return _strided(steps, sections.removeprefix("ddim"))
        sections = [_count(part, sections) for part in sections.split(",")] if sections else [steps]
    size, extra = divmod(steps, len(sections))
    chosen: list[int] = []
    start = 0
    for index, count in enumerate(sections):
        length = size + (index < extra)
        if not 1 <= count <= length:
            raise SettingsInvalid(
                f"cannot keep {count} steps of a section of {length}", hint=f"keep 1 to {length} of it"
            )
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # Added up, not multiplied: the public code's rounding.
        position = 0.0
        for _ in range(count):
            chosen.append(start + round(position))
            position += stride
        start += length
    return sorted(set(chosen))


def _strided(steps: int, text: str) -> list[int]:
    wanted = _count(text, f"ddim{text}")
    for stride in range(1, steps):
        if len(range(0, steps, stride)) == wanted:
            return list(range(0, steps, stride))
    possible = {len(range(0, steps, stride)) for stride in range(1, max(2, steps))}
    near = min(possible, key=lambda count: (abs(count - wanted), count))
    raise SettingsInvalid(
        f"no constant stride leaves exactly {wanted} of {steps} steps",
        hint=f"ddim{near} is the nearest that one leaves",
    )


def _count(text: str, whole: str) -> int:
    if not text.strip().isdecimal():
        raise SettingsInvalid(
            f"respacing {whole!r} is not of the form '100', '10,20' or 'ddim100'", hint="ddim50, for example"
        )
    return int(text)


def ddib_compat_grids(
    schedule: DiscreteSchedule, respacing: list[int] | str = "", *, own: Schedule | None = None
) -> tuple[Grid, Grid]:
    """The public code's levels: (encode, decode), which are not each other's reverse."""
    inner = schedule.at_steps(space_timesteps(schedule.steps, respacing))
    if own is not None:
        inner = tuple(level._replace(t=own.level(level.lam).t) for level in inner)
    noise, data = Level(0.0, 1.0, inner[-1].t), Level(1.0, 0.0, inner[0].t)
    middles = own or schedule
    return grid_of(middles, (*inner, noise)), grid_of(middles, (*inner[::-1], data))


def is_monotone(grid: Grid) -> bool:
    steps = [b - a for a, b in pairwise(grid.phis)]
    return all(step > 0 for step in steps) or all(step < 0 for step in steps)
