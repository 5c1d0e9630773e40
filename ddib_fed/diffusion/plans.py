"""Settings of an integration, checked and laid on a schedule: which solver, which grid, how many evaluations.

The rule: `evaluations` is what one leg costs, exactly; what cannot be had exactly is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import Tensor

from ddib_fed.diffusion import solvers
from ddib_fed.diffusion.denoiser import Condition
from ddib_fed.diffusion.grids import Grid, check_grid, ddib_compat_grids, make_grid
from ddib_fed.diffusion.schedule import DiscreteSchedule, Schedule, discrete_schedule
from ddib_fed.diffusion.solvers import Solver
from ddib_fed.errors import SettingsInvalid

MAX_EVALUATIONS = 10_000
# The public code's levels at both ends, for `ddim` alone.
COMPAT_GRID = "ddib"


@dataclass(frozen=True, slots=True)
class SolverSpec:
    """What a solver is.

    Attributes:
        name: Its name in `SOLVERS`.
        orders: Orders that can be chosen.
        default_order: The order that 0 stands for.
        evaluations_per_step: Network evaluations an interval.
        evaluations_at_start: Network evaluations before the first interval.
        reversible: Whether it is algebraically reversible (with its auxiliary state).
        accuracy: Exponent with which its error falls with the step, by order.
        summary: One line for help texts.
    """

    name: str
    orders: tuple[int, ...]
    default_order: int
    evaluations_per_step: int
    evaluations_at_start: int
    reversible: bool
    accuracy: Mapping[int, int]
    summary: str


def _spec(
    name: str, accuracy: dict[int, int], default: int, cost: int, start: int, reversible: bool, summary: str
) -> SolverSpec:
    return SolverSpec(
        name, tuple(accuracy), default, cost, start, reversible, MappingProxyType(accuracy), summary
    )


SOLVERS: Mapping[str, SolverSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            _spec("unipc", {2: 3, 3: 4}, 3, 1, 0, False, "multistep predictor-corrector, the most accurate"),
            _spec("ddim", {1: 1}, 1, 1, 0, False, "the paper's; the baseline"),
            _spec("rk4", {4: 4}, 4, 4, 0, False, "classical Runge-Kutta"),
            _spec("alf", {2: 2}, 2, 1, 1, True, "asynchronous leapfrog, reversible"),
        )
    }
)


@dataclass(frozen=True, slots=True)
class SolverSettings:
    """How one leg is integrated; both nodes use the same.

    Attributes:
        solver: A name in `SOLVERS`.
        order: One of the solver's orders; 0 for its default.
        evaluations: Network evaluations of one leg, 1 to 10,000.
        grid: A name in `GRIDS`, "integer:T", or "ddib" (with ddim) for the public code's levels.
        depth: Fraction of the schedule's angle phi, from its data end to its noise end, at which encoding stops
            and decoding starts; 1 for the whole way. A latent of less depth still holds some of the picture.
    """

    solver: str = "unipc"
    order: int = 0
    evaluations: int = 48
    grid: str = "default"
    depth: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Checked settings with their grids.

    Attributes:
        settings: As asked, the order filled in.
        spec: The solver.
        encode_grid: From data to noise.
        decode_grid: From noise to data.
    """

    settings: SolverSettings
    spec: SolverSpec
    encode_grid: Grid
    decode_grid: Grid

    @property
    def evaluations(self) -> int:
        """Network evaluations of one leg."""
        return self.settings.evaluations

    def encoder(self, x: Tensor, cond: Condition = None) -> Solver:
        """The generator that takes x (N, *sample_shape) at the data end to its latent."""
        return self._start(x, self.encode_grid, cond)

    def decoder(self, z: Tensor, cond: Condition = None) -> Solver:
        """The generator that takes a latent z (N, *sample_shape) to the data end."""
        return self._start(z, self.decode_grid, cond)

    def _start(self, x: Tensor, grid: Grid, cond: Condition) -> Solver:
        if self.settings.solver == "unipc":
            return solvers.unipc(x, grid, order=self.settings.order, cond=cond)
        simple: Mapping[str, Callable[..., Solver]] = {
            "ddim": solvers.ddim,
            "rk4": solvers.rk4,
            "alf": solvers.alf,
        }
        return simple[self.settings.solver](x, grid, cond=cond)


def plan(settings: SolverSettings, schedule: Schedule, *, soften_sigma: float = 0.0) -> Plan:
    """Check `settings` and lay them on `schedule`.

    Args:
        settings: What was asked.
        schedule: The model's.
        soften_sigma: Noise level sigma / alpha at which encoding takes over from forward diffusion; 0 for
            none.

    Raises:
        SettingsInvalid: Unknown names, an order out of range, evaluations out of range or not divisible by
            what a step costs, a grid that the schedule or solver cannot have, a depth outside (0, 1], or
            softening or depth where the grid has neither.
    """
    settings = check_settings(settings)
    if not 0.0 <= soften_sigma <= 1.0:
        raise SettingsInvalid(f"soften_sigma {soften_sigma} is outside [0, 1]")
    spec = SOLVERS[settings.solver]
    end = None if settings.depth == 1.0 else lambda_at(schedule, settings.depth)
    if settings.grid == COMPAT_GRID:
        if soften_sigma > 0.0 or end is not None:
            raise SettingsInvalid(
                "the public code's levels know neither softening nor depth",
                hint="soften by 0 and use depth 1 with them",
            )
        return Plan(settings, spec, *_compat(schedule, settings.evaluations))
    n = _intervals(settings.evaluations, spec)
    grid = make_grid(schedule, settings.grid, n, lambda_min=end)
    if soften_sigma == 0.0:
        return Plan(settings, spec, grid, grid.reversed())
    softened = make_grid(schedule, settings.grid, n, lambda_max=-math.log(soften_sigma), lambda_min=end)
    return Plan(settings, spec, softened, grid.reversed())


def lambda_at(schedule: Schedule, depth: float) -> float:
    """The lambda at the fraction `depth` of the angle phi = atan2(sigma, alpha), from data end to noise end.

    Raises:
        SettingsInvalid: A depth outside (0, 1].
    """
    if not 0.0 < depth <= 1.0:
        raise SettingsInvalid(
            f"a depth of {depth} is outside (0, 1]", hint="1 is the whole way", facts={"depth": depth}
        )
    data, noise = (math.atan(math.exp(-lam)) for lam in (schedule.lambda_max, schedule.lambda_min))
    return -math.log(math.tan(data + depth * (noise - data)))


def check_settings(settings: SolverSettings) -> SolverSettings:
    """`settings` with the order filled in, or SettingsInvalid; needs no model."""
    spec = SOLVERS.get(settings.solver)
    if spec is None:
        raise SettingsInvalid(
            f"there is no solver {settings.solver!r}",
            hint=f"solvers: {', '.join(SOLVERS)}",
            facts={"solver": settings.solver[:40]},
        )
    order = settings.order or spec.default_order
    if order not in spec.orders:
        raise SettingsInvalid(
            f"{spec.name} has no order {order}",
            hint=f"orders of {spec.name}: {', '.join(map(str, spec.orders))}",
            facts={"order": order},
        )
    _check_evaluations(settings.evaluations, spec)
    if settings.grid != COMPAT_GRID:
        check_grid(settings.grid, _intervals(settings.evaluations, spec))
    if settings.grid == COMPAT_GRID and settings.solver != "ddim":
        raise SettingsInvalid("the public code's levels are for ddim alone", hint="use solver ddim with them")
    return replace(settings, order=order)


def _intervals(evaluations: int, spec: SolverSpec) -> int:
    return (evaluations - spec.evaluations_at_start) // spec.evaluations_per_step


def _check_evaluations(evaluations: int, spec: SolverSpec) -> None:
    least = spec.evaluations_at_start + spec.evaluations_per_step
    if not least <= evaluations <= MAX_EVALUATIONS:
        raise SettingsInvalid(
            f"{evaluations} evaluations a leg; {spec.name} takes {least} to {MAX_EVALUATIONS}",
            hint="change the number of steps",
            facts={"evaluations": evaluations, "minimum": least, "maximum": MAX_EVALUATIONS},
        )
    if (evaluations - spec.evaluations_at_start) % spec.evaluations_per_step:
        raise SettingsInvalid(
            f"{evaluations} evaluations do not divide by the {spec.evaluations_per_step} of one step of {spec.name}",
            hint=f"use {evaluations - evaluations % spec.evaluations_per_step} evaluations",
            facts={"evaluations": evaluations, "divisor": spec.evaluations_per_step},
        )


def _compat(schedule: Schedule, evaluations: int) -> tuple[Grid, Grid]:
    if isinstance(schedule, DiscreteSchedule):
        return ddib_compat_grids(schedule, [evaluations])
    return ddib_compat_grids(discrete_schedule("linear", evaluations), told=schedule)
