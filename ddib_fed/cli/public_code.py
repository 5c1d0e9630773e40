"""The public code's sampling options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ddib_fed.errors import UsageError
from ddib_fed.protocol.messages import Settings

if TYPE_CHECKING:
    from ddib_fed.diffusion.grids import PublicLevels
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.models.manifest import Manifest

PUBLIC_CODE = (
    click.option(
        "--compat",
        type=click.Choice(["ddib"]),
        help="Use the public code's noise levels at both ends; with --solver ddim, and its grid.",
    ),
    click.option(
        "--diffusion-steps",
        type=click.IntRange(2, 10_000),
        metavar="T",
        help="With --compat ddib: steps of the noise schedule, 4000 in the paper's 2-D experiments; all are used, "
        "unless --evaluations or --timestep-respacing select fewer. A model trained on such steps has its own.",
    ),
    click.option(
        "--noise-schedule",
        type=click.Choice(["linear", "cosine"]),
        help="With --compat ddib: noise schedule of the --diffusion-steps; default: the model's own, or linear.",
    ),
    click.option(
        "--timestep-respacing",
        metavar="COUNTS",
        help="With --compat ddib: which of the --diffusion-steps are used: ddim50 for 50 with one stride, 250 for 250 "
        "spread evenly, or 10,20,30 for that many in each third.",
    ),
    click.option(
        "--eta",
        type=click.FloatRange(0, 1),
        default=0.0,
        show_default=True,
        help="With --solver ddim: share of fresh noise in each step of decoding. Encoding has none, as in the public "
        "code.",
    ),
    click.option(
        "--ddpm",
        is_flag=True,
        help="With --compat ddib: decode by ancestral sampling with the larger variance, the public code's p_sample.",
    ),
)
_OF_LEVELS = ("noise_schedule", "diffusion_steps", "timestep_respacing", "ddpm")


def take_settings(given: dict[str, Any], manifests: Sequence[Manifest]) -> SolverSettings:
    """Remove the integration options from `given`; contradictions are usage errors."""
    from ddib_fed.diffusion.grids import PublicLevels
    from ddib_fed.diffusion.plans import COMPAT_GRID, SolverSettings

    solver, evaluations, grid = (given.pop(name) for name in ("solver", "evaluations", "grid"))
    chosen = Settings(solver, 0, evaluations, grid).of_quality(given.pop("quality", None))
    solver, order, evaluations, grid = chosen.solver, chosen.order, chosen.evaluations, chosen.grid
    named = {name: given.pop(name) for name in _OF_LEVELS}
    eta = given.pop("eta")
    if given["compat"] is None:
        _refuse_levels(named)
        return SolverSettings(solver, order, evaluations, grid, eta=eta)
    if solver != "ddim" or grid != "default":
        raise UsageError(
            "--compat ddib needs --solver ddim, and brings its own grid", hint="add --solver ddim"
        )
    levels = PublicLevels(
        named["noise_schedule"] or "", named["diffusion_steps"] or 0, named["timestep_respacing"] or ""
    )
    evaluations = _evaluations(levels, evaluations, manifests)
    return SolverSettings(
        solver, order, evaluations, COMPAT_GRID, levels=levels, eta=eta, ancestral=named["ddpm"]
    )


def _refuse_levels(named: dict[str, Any]) -> None:
    wrong = [name for name, value in named.items() if value not in (None, False)]
    if wrong:
        raise UsageError(
            f"--{wrong[0].replace('_', '-')} is about the public code's levels",
            hint="add --compat ddib --solver ddim",
        )


def _evaluations(levels: PublicLevels, asked: int, manifests: Sequence[Manifest]) -> int:
    """Evaluations of a leg: --evaluations if given, else those of the respacing, else all of --diffusion-steps."""
    from ddib_fed.diffusion.schedule import schedule_from_config

    source = click.get_current_context().get_parameter_source("evaluations")
    if source not in (ParameterSource.DEFAULT, None):
        return asked
    if levels.respacing:
        kept = {levels.kept(schedule_from_config(manifest.schedule)) for manifest in manifests}
        if len(kept) > 1:
            counts = " and ".join(map(str, sorted(kept)))
            raise UsageError(
                f"--timestep-respacing {levels.respacing} keeps {counts} of the two models' diffusion steps",
                hint="both must use the same number: for example ddim50",
            )
        return kept.pop()
    own = [manifest.schedule.steps for manifest in manifests if manifest.schedule.steps]
    return levels.diffusion_steps or min([asked, *own])
