"""The levels that the public code steps through, from schedule, diffusion steps and respacing.

A model with integer steps of its own keeps them; what is asked may repeat them, and is refused when it
contradicts them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ddib_fed.diffusion.levels.grids import Grid, ddib_compat_grids, space_timesteps
from ddib_fed.diffusion.schedule import DiscreteSchedule, Schedule, discrete_schedule
from ddib_fed.errors import SettingsInvalid

# How far beyond the range of lambda in which a network was trained a table may reach; linear tables reach 0.9.
MAX_BEYOND = 1.0
MAX_STEPS = 10_000


@dataclass(frozen=True, slots=True)
class PublicLevels:
    """The public code's options of the same names.

    Attributes:
        noise_schedule: "linear" or "cosine"; empty for the model's own, or linear where it has none on integer steps.
        diffusion_steps: T; 0 for the model's own, or as many as there are evaluations where it has none.
        respacing: Which of them are kept, as in `space_timesteps`; empty for evenly as many as there are evaluations.
    """

    noise_schedule: str = ""
    diffusion_steps: int = 0
    respacing: str = ""

    def kept(self, schedule: Schedule) -> int:
        """How many steps the respacing keeps: evaluations of a leg.

        Raises:
            SettingsInvalid: The respacing has another form or does not fit, or nothing says how many steps there are.
        """
        own = schedule.steps if isinstance(schedule, DiscreteSchedule) else 0
        steps = self.diffusion_steps or own
        if not steps:
            raise SettingsInvalid(
                f"respacing {self.respacing!r} keeps some of the diffusion steps, and the model has none of its own",
                hint="say how many, for example --diffusion-steps 4000",
            )
        return len(space_timesteps(steps, self.respacing))


def public_grids(schedule: Schedule, levels: PublicLevels, evaluations: int) -> tuple[Grid, Grid]:
    """The public code's levels for a model: (encode, decode), as in `ddib_compat_grids`."""
    if not 0 <= levels.diffusion_steps <= MAX_STEPS:
        raise SettingsInvalid(f"{levels.diffusion_steps} diffusion steps are outside 1 to {MAX_STEPS}")
    if isinstance(schedule, DiscreteSchedule):
        _check_own(schedule, levels)
        table, own = schedule, None
    else:
        name, steps = levels.noise_schedule or "linear", levels.diffusion_steps or evaluations
        table, own = discrete_schedule(name, steps), schedule
        # Without a T the table is a rescaled linear one, which earlier peers have always followed as it is.
        if levels.noise_schedule or levels.diffusion_steps:
            _check_range(schedule, table)
    grids = ddib_compat_grids(table, levels.respacing or [evaluations], own=own)
    if len(grids[0]) != evaluations:
        raise SettingsInvalid(
            f"respacing {levels.respacing!r} of {table.steps} steps keeps {len(grids[0])}, not {evaluations}",
            hint=f"--evaluations {len(grids[0])}, or leave --evaluations out",
            facts={"evaluations": evaluations, "kept": len(grids[0])},
        )
    return grids


def _check_own(schedule: DiscreteSchedule, levels: PublicLevels) -> None:
    """Return when what was asked repeats the model's own steps, or leaves them open."""
    if levels.diffusion_steps not in (0, schedule.steps):
        raise SettingsInvalid(
            f"the model was trained with {schedule.steps} diffusion steps, not with {levels.diffusion_steps}",
            hint="leave --diffusion-steps out; --timestep-respacing takes fewer of them",
            facts={"steps": schedule.steps},
        )
    if not levels.noise_schedule:
        return
    try:
        asked = discrete_schedule(levels.noise_schedule, schedule.steps)
    except SettingsInvalid:
        asked = None
    if asked is None or not torch.allclose(asked.betas, schedule.betas, rtol=1e-9, atol=0.0):
        raise SettingsInvalid(
            f"the model was trained on the noise schedule {schedule.name}, not on {levels.noise_schedule}",
            hint="leave --noise-schedule out",
            facts={"schedule": schedule.name},
        )


def _check_range(schedule: Schedule, table: DiscreteSchedule) -> None:
    """Return when a table's levels lie where the network was trained, or near it."""
    lams = [level.lam for level in table.at_steps([0, table.steps - 1])]
    if lams[0] > schedule.lambda_max + MAX_BEYOND or lams[1] < schedule.lambda_min - MAX_BEYOND:
        raise SettingsInvalid(
            f"{table.steps} {table.name} steps go from lambda {lams[0]:.1f} to {lams[1]:.1f}; the model was trained "
            f"from {schedule.lambda_max:.1f} to {schedule.lambda_min:.1f}",
            hint="use --noise-schedule linear, or train a model on these steps: ddib model train --help",
        )
