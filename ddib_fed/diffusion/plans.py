"""Settings of an integration, checked and laid on a schedule: which solver, which grid, how many evaluations.

The rule: `evaluations` is what one leg costs, exactly; what cannot be had exactly is refused. With them the two legs
of the bridge (Su et al., Dual Diffusion Implicit Bridges, arXiv 2203.08382, algorithm 1):

    z = ODESolve(x; v_A, data -> noise),   y = ODESolve(z; v_B, noise -> data)
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ddib_fed.diffusion import solvers
from ddib_fed.diffusion.denoiser import Condition, Denoiser
from ddib_fed.diffusion.schedule import (
    GRIDS,
    LEARNED_GRID,
    LearnedLegs,
    LearnedSteps,
    LevelGrid,
    PublicLevels,
    Schedule,
    make_grid,
    public_grids,
    require,
)
from ddib_fed.diffusion.solvers import Draw, Recurrence, integrate
from ddib_fed.errors import SettingsInvalid
from ddib_fed.extensions import extension, extensions
from ddib_fed.record import Settings

MAX_EVALUATIONS = 10_000
# The public code's levels at both ends, for `ddim` alone.
COMPAT_GRID = "ddib"
OWN_LEVELS = PublicLevels()
NOTHING_LEARNED = LearnedLegs()
FLOW_MAP = "flow-map"


COLDEST = 0.8
SOLVERS: Mapping[str, tuple[int, ...]] = {"unipc": (2, 3), "ddim": (1,), FLOW_MAP: (1,)}
"""The orders of each solver of this package; the last is its default."""


def orders_of(name: str) -> tuple[int, ...]:
    """Return the orders of a solver, which may be an extension's; SettingsInvalid where there is none of the name."""
    if name in SOLVERS:
        return SOLVERS[name]
    there_are = f"solvers: {', '.join((*SOLVERS, *extensions('ddib_fed.solvers')))}"
    require(
        name in extensions("ddib_fed.solvers"),
        f"there is no solver {name[:40]!r}",
        there_are,
        solver=name[:40],
    )
    return tuple(getattr(extension("ddib_fed.solvers", name), "orders", (1,)))


@dataclass(frozen=True, slots=True)
class SolverSettings(Settings):
    """How one leg is integrated: what the wire carries, and what is for one process alone, where both models are.

    The grid "ddib" (with ddim) has the public code's `levels`; `eta` is the share of fresh noise in each step of
    decoding, in [0, 1]; `ancestral` decodes as DDPM with the larger variance, the public code's p_sample.
    """

    levels: PublicLevels = OWN_LEVELS
    eta: float = 0.0
    ancestral: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "SolverSettings":
        """Return the settings with those of one process, at their defaults unless they have them."""
        return settings if isinstance(settings, cls) else cls(**asdict(settings))

    @property
    def stochastic(self) -> bool:
        """Whether decoding draws noise."""
        return self.eta > 0.0 or self.ancestral

    @property
    def in_one_process(self) -> bool:
        """Whether there is something in them that the wire does not carry."""
        return self.stochastic or self.levels != OWN_LEVELS

    def of_the_ode(self) -> "SolverSettings":
        """The same without noise: what encoding takes, as in the public code."""
        return replace(self, eta=0.0, ancestral=False)

    def described(self) -> dict[str, Any]:
        return asdict(check_settings(self))


DEFAULT_SETTINGS = SolverSettings()


@dataclass(frozen=True, eq=False)
class Plan:
    settings: SolverSettings
    encode_grid: LevelGrid
    decode_grid: LevelGrid
    learned: tuple[LearnedSteps, LearnedSteps] | None = None

    @cached_property
    def encoder(self) -> Recurrence:
        """The steps that take data to their latent."""
        if self.settings.stochastic:
            raise SettingsInvalid(
                "encoding follows the ODE; with eta above 0, or as DDPM, it would draw noise that nothing takes back",
                hint="encode with eta 0; decoding alone may draw noise",
            )
        return self._laid(self.encode_grid, 0)

    @cached_property
    def decoder(self) -> Recurrence:
        """The steps that take a latent to the data end."""
        if not self.settings.stochastic:
            return self._laid(self.decode_grid, 1)
        large = self.settings.ancestral
        return solvers.ddim(self.decode_grid, eta=1.0 if large else self.settings.eta, large=large)

    def _laid(self, grid: LevelGrid, leg: int) -> Recurrence:
        name, order = self.settings.solver, self.settings.order
        if self.learned is not None:
            return learned_steps(self.learned[leg], grid)
        if name == "unipc":
            return solvers.unipc(grid, order=order)
        if name in SOLVERS:
            return solvers.ddim(grid) if name == "ddim" else solvers.flow_map(grid)
        return solvers.extended(grid, extension("ddib_fed.solvers", name), order)


def plan(
    settings: SolverSettings,
    schedule: Schedule,
    *,
    soften_sigma: float = 0.0,
    learned: LearnedLegs = NOTHING_LEARNED,
) -> Plan:
    """Check `settings` and lay them on `schedule`; raise SettingsInvalid for what cannot be had.

    Encoding takes over from forward diffusion at the noise level sigma / alpha = `soften_sigma`; 0 for none.
    """
    settings = check_settings(settings)
    require(0.0 <= soften_sigma <= 1.0, f"soften_sigma {soften_sigma} is outside [0, 1]")
    data, noise = schedule.lambda_max, schedule.lambda_min
    end = None if settings.depth == 1.0 else lambda_at(schedule, settings.depth)
    softened = None if soften_sigma == 0.0 else -math.log(soften_sigma)
    if settings.grid == COMPAT_GRID:
        require(
            softened is None and end is None,
            "the public code's levels know neither softening nor depth",
            "soften-sigma=0 and depth=1 with them",
        )
        return Plan(settings, *public_grids(schedule, settings.levels, settings.evaluations))
    if settings.grid == LEARNED_GRID:
        encode = learned.find("encode", settings.evaluations, soften_sigma)
        decode = learned.find("decode", settings.evaluations)
        start = data if softened is None else min(data, softened)
        grids = encode.grid(schedule, start, noise), decode.grid(schedule, data, noise).reversed()
        return Plan(settings, *grids, (encode, decode))
    n = settings.evaluations
    grid = make_grid(schedule, settings.grid, n, lambda_min=end)
    own = grid
    if softened is not None:
        own = make_grid(schedule, settings.grid, n, lambda_max=softened, lambda_min=end)
    return Plan(settings, own, grid.reversed())


def learned_steps(steps: LearnedSteps, grid: LevelGrid) -> Recurrence:
    return solvers.unipc(grid, order=steps.order, whitened=steps.coordinates == "spectrum")


def lambda_at(schedule: Schedule, depth: float) -> float:
    """The lambda at the fraction `depth` of the angle phi = atan2(sigma, alpha), from data end to noise end."""
    require(0.0 < depth <= 1.0, f"a depth of {depth} is outside (0, 1]", "1 is the whole way", depth=depth)
    data, noise = (math.atan(math.exp(-lam)) for lam in (schedule.lambda_max, schedule.lambda_min))
    return -math.log(math.tan(data + depth * (noise - data)))


def check_settings(settings: SolverSettings) -> SolverSettings:
    """`settings` with the order filled in, or SettingsInvalid; needs no model."""
    name, count = settings.solver, settings.evaluations
    public, learned = settings.grid == COMPAT_GRID, settings.grid == LEARNED_GRID
    orders = orders_of(name)
    order = settings.order or orders[-1]
    of_solver = f"orders of {name}: {', '.join(map(str, orders))}"
    require(order in orders, f"{name} has no order {order}", of_solver, order=order)
    require(
        1 <= count <= MAX_EVALUATIONS,
        f"{count} evaluations a leg; {name} takes 1 to {MAX_EVALUATIONS}",
        "change the number of steps",
        evaluations=count,
        maximum=MAX_EVALUATIONS,
    )
    if learned:
        require(name == "unipc", f"the grid learned is of unipc, not of {name}", "leave solver out with it")
        require(
            settings.depth == 1.0,
            f"learned steps go the whole way, and not to a depth of {settings.depth:g}",
            "use grid=default with depth, or depth=1",
            depth=settings.depth,
        )
    elif public:
        require(name == "ddim", "the public code's levels are for ddim alone", "use solver ddim with them")
        both = settings.ancestral and settings.eta > 0.0
        require(not both, "DDPM has a variance of its own, and no eta", "give one of the two")
    else:
        there_are = f"grids: {', '.join((*GRIDS, LEARNED_GRID))}"
        require(
            settings.grid in GRIDS,
            f"there is no grid {settings.grid[:40]!r}",
            there_are,
            grid=settings.grid[:40],
        )
    require(
        public or (settings.levels == OWN_LEVELS and not settings.ancestral),
        "noise schedule, diffusion steps, respacing and DDPM are of the public code's levels",
        f"use the grid {COMPAT_GRID} with them",
    )
    require(0.0 <= settings.share <= 1.0, f"share {settings.share} is outside [0, 1]", "1 is the ODE alone")
    heat = settings.temperature
    require(
        COLDEST <= heat <= 1.0,
        f"temperature {heat} is outside [{COLDEST}, 1]",
        "1 leaves the latent as it is",
    )
    require(
        heat == 1.0 or settings.depth == 1.0,
        "a latent of less than the whole depth holds the picture, which a temperature below 1 would pale",
        "depth=1 or temperature=1",
    )
    require(0.0 <= settings.blend <= 1.0, f"blend {settings.blend} is outside [0, 1]", "0 is none")
    require(0.0 <= settings.eta <= 1.0, f"eta {settings.eta} is outside [0, 1]", "0 is DDIM, 1 is DDPM")
    require(
        name == "ddim" or not settings.stochastic,
        f"{name} follows the ODE; noise at each step is of ddim alone",
        "solver=ddim",
    )
    return replace(settings, order=order)


def soften(x: Tensor, soften_sigma: float, noise: Tensor | None) -> Tensor:
    """Diffuse x forward to the noise level sigma / alpha = `soften_sigma`: alpha x + sigma noise, shape of x."""
    if soften_sigma == 0.0:
        return x
    require(0.0 < soften_sigma <= 1.0, f"soften_sigma {soften_sigma} is outside [0, 1]")
    if noise is None or noise.shape != x.shape:
        raise SettingsInvalid("softening needs noise of the shape of what is softened")
    alpha = 1.0 / math.hypot(1.0, soften_sigma)
    return alpha * x + (alpha * soften_sigma) * noise


def encode(
    x: Tensor,
    denoiser: Denoiser,
    schedule: Schedule,
    settings: SolverSettings = DEFAULT_SETTINGS,
    *,
    cond: Condition = None,
    soften_sigma: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """The latent of x (N, *sample_shape), data normalised as the model's training data; its shape and dtype.

    Softened before by `noise`, standard normal of the shape of x, where `soften_sigma` is above 0. Errors as of `plan`.
    """
    steps = plan(settings, schedule, soften_sigma=soften_sigma).encoder
    return integrate(soften(x, soften_sigma, noise), steps, denoiser, cond=cond)


def decode(
    z: Tensor,
    denoiser: Denoiser,
    schedule: Schedule,
    settings: SolverSettings = DEFAULT_SETTINGS,
    *,
    cond: Condition = None,
    draw: Draw | None = None,
) -> Tensor:
    """The sample whose latent, of that depth, is z (N, *sample_shape); errors as of `plan`.

    With `eta` above 0, or as DDPM, one of its samples: `draw` gives the noise of each step, and must be there.
    """
    return integrate(z, plan(settings, schedule).decoder, denoiser, cond=cond, draw=draw)
