"""Learned steps laid on a grid, to the solver that walks them: coordinates, weights, corrections."""

from __future__ import annotations

from torch import Tensor

from ddib_fed.diffusion import solvers
from ddib_fed.diffusion.denoiser import Condition
from ddib_fed.diffusion.levels.grids import Grid
from ddib_fed.diffusion.levels.learned import LEARNED_GRID, TUNE, Frame, LearnedSteps
from ddib_fed.diffusion.solvers import Solver
from ddib_fed.errors import SettingsInvalid


def learned_solver(
    steps: LearnedSteps, x: Tensor, grid: Grid, cond: Condition, frame: Frame | None
) -> Solver:
    """The generator that walks learned steps, laid on `grid`; arguments as in `plans.Plan.encoder`.

    Raises:
        SettingsInvalid: They were learned in coordinates that this model, at this size of pictures, does not have, or
            correct points of another dimension.
    """
    if steps.corrections is not None:
        if x.ndim != 2 or x.shape[1] != steps.corrections.dimension:
            raise SettingsInvalid(
                f"the learned steps correct points of dimension {steps.corrections.dimension}",
                hint=f"{TUNE} {steps.evaluations} learns them again",
            )
        return solvers.unipc_corrected(steps.corrections, x, grid, order=steps.order, cond=cond)
    if steps.coordinates == "angle":
        return solvers.unipc(x, grid, order=steps.order, cond=cond, weights=steps.weights)
    if frame is None:
        raise SettingsInvalid(
            "the learned steps are for pictures of the model's own size, whitened by its spectrum",
            hint="use --grid default here",
            facts={"grid": LEARNED_GRID},
        )
    return solvers.unipc_in(frame, x, grid, order=steps.order, cond=cond, weights=steps.weights)
