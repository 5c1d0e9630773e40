"""Decides whether a model can take the steps of the solver flow-map: it needs a flow map, on the ODE it learned."""

from __future__ import annotations

from ddib_fed.diffusion.plans import SOLVERS, SolverSettings
from ddib_fed.errors import SettingsInvalid
from ddib_fed.guidance import Guidance
from ddib_fed.models.bundle import Bundle


def check_steps(bundle: Bundle, settings: SolverSettings, guidance: Guidance) -> None:
    """Return when the model knows the steps of the settings' solver."""
    spec = SOLVERS.get(settings.solver)
    if spec is None or not spec.distilled:
        return
    name = bundle.manifest.name
    facts = {"field": "solver", "solver": spec.name}
    if not bundle.manifest.is_flow_map:
        raise SettingsInvalid(
            f"{name} was not distilled, and {spec.name} takes steps that only a distilled model knows",
            hint=f"ddib model distil {name} --out {name}-distilled makes one; or --solver unipc",
            facts={**facts, "needs": "ddib model distil"},
        )
    others = {
        f"the encoder {settings.encoder}": settings.encoder != "ode",
        "guidance": guidance.steers,
        "clipping": guidance.clip,
        "a scene of several tiles": bundle.tile is not None,
    }
    for what in (what for what, asked in others.items() if asked):
        raise SettingsInvalid(
            f"{spec.name} follows the ODE that {name} was distilled on, and {what} is no part of it",
            hint="--solver unipc, which works with a distilled model too; or leave it out",
            facts=facts,
        )
