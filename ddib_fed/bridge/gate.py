"""The latent gate: a latent that no encoder makes neither leaves a party nor is decoded by one.

What is judged is what is sent: numbers of the leg's latent type. Whoever encodes judges against the model's own latents
(`models.allowances`), where these were measured: it alone knows the model and the picture, and can keep a latent back.
Whoever decodes has received it, and knows another model: it holds it against fixed bounds (decision 0085).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddib_fed.bridge.judging.measuring import beyond
from ddib_fed.bridge.judging.point_sets import (
    REPEATED,
    SetFigures,
    allowance_for,
    repeated_share,
    set_figures,
)
from ddib_fed.bridge.judging.profile import NAMES, profile
from ddib_fed.bridge.judging.usual import usual_sets
from ddib_fed.bridge.party import Leg
from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.diffusion.wrapped.rotation import rotated
from ddib_fed.errors import LatentNotGaussian, PolicyDenied
from ddib_fed.latent_types import FLOAT32
from ddib_fed.models.allowances import Allowances

MEASURE_AGAIN = (
    "is the input of the domain that the model was trained on? ddib model gate measures the bounds again"
)
FLOW_MAP = "flow-map"


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What whoever encoded knows of a latent.

    Attributes:
        evaluations: Of the network, as the engine counted them.
        allowances: Of the model that made it; None where they were not measured, or hold for other legs.
        samples: What it was made of (N, *sample_shape), in the model's units and the leg's basis, softened; None where
            there are no allowances.
    """

    evaluations: int
    allowances: Allowances | None = None
    samples: Tensor | None = None


def rounded(latent: Tensor, leg: Leg) -> Tensor:
    """A latent in the numbers that the leg's latent type has, to nearest, ties to even; float32 as it is.

    Args:
        latent: Float32, of any shape.
        leg: On which it was made.
    """
    if leg.latent_type == FLOAT32:
        return latent
    narrow: torch.dtype = getattr(torch, leg.latent_type)
    return latent.to(narrow).to(torch.float32)


def pass_latent(latent: Tensor, leg: Leg, made: Made | None = None) -> LatentStatistics:
    """Statistics of one item's latent, refused when it is not one that an encoder makes.

    Those of an encoder that is linear, at least in part, have wider bounds.
    Latents of less than the whole depth are not noise, and none is refused. Nor is one on a leg that the wire cannot
    carry (guided encoding, noise in decoding, the public code's respacings): it never reaches a node (decision 0055).

    Args:
        latent: (N, D) of a set of points, or (N, C, H, W) of pictures, finite.
        leg: On which it was made, or is decoded.
        made: How it was made, where that is known.

    Raises:
        LatentNotGaussian: See `gaussianity.examine`; or the set is none of latents, or the picture's latent is unlike
            those that the model is known to make.
        PolicyDenied: It was made with fewer evaluations than the leg demands.
    """
    if made is not None and leg.settings.solver != FLOW_MAP and made.evaluations < leg.least_evaluations:
        least = leg.least_evaluations
        raise PolicyDenied(
            f"the latent was made with {made.evaluations} evaluations, where at least {least} are needed",
            hint=f"--evaluations {least} or more",
            facts={"policy": "least_evaluations", "evaluations": made.evaluations, "least": least},
        )
    between_nodes = not (leg.guidance.encoding or leg.settings.in_one_process)
    if not between_nodes or leg.settings.depth < 1.0:
        return gaussianity.measure(latent)
    statistics = gaussianity.examine(latent, structured=leg.settings.encoder != "ode")
    if leg.settings.encoder != "ode":
        return statistics
    allowances = None if made is None else made.allowances
    if latent.ndim == 2:
        _check_set(latent, allowances)
    elif made is not None and made.samples is not None and allowances is not None:
        known = statistics.correlation if len(latent) == 1 and leg.calibration is None else None
        for z, x in zip(_plain(latent, leg), _plain(made.samples, leg), strict=True):
            _check_picture(z, x, allowances, known)
    return statistics


def _check_set(latent: Tensor, allowances: Allowances | None) -> None:
    repeated = repeated_share(latent)
    if repeated > REPEATED:
        raise LatentNotGaussian(
            f"{repeated:.0%} of {len(latent)} points lie on another one",
            hint="translate each point once",
            facts={"points": len(latent), "repeated": f"{repeated:.3g}"},
        )
    figures = set_figures(latent) if repeated == 0.0 else set_figures(torch.unique(latent, dim=0))
    if figures is None:
        return
    own = () if allowances is None else allowances.points
    allowed = allowance_for(figures.count, own) or allowance_for(figures.count, usual_sets())
    if allowed is not None:
        _refuse(figures.beyond(allowed), f"{len(latent)} points", figures)


def _plain(x: Tensor, leg: Leg) -> Tensor:
    """Pictures or latents (N, C, H, W) in the model's own basis: a calibrated latent is the plain one, rotated."""
    if leg.calibration is None:
        return x
    return rotated(x, torch.from_numpy(leg.calibration.matrix).T.to(x.dtype))


def _check_picture(
    latent: Tensor, picture: Tensor, allowances: Allowances, correlation: float | None
) -> None:
    allowed = allowances.pictures
    if allowed is not None and allowed.names == NAMES:
        _refuse(
            beyond(profile(latent, picture, correlation=correlation).numpy(), allowed),
            "a picture's latent",
            None,
        )


def _refuse(found: dict[str, tuple[float, float]], what: str, figures: SetFigures | None) -> None:
    if not found:
        return
    said = "; ".join(
        f"{name} is {value:.3g}, {bound:.3g} is allowed" for name, (value, bound) in found.items()
    )
    raise LatentNotGaussian(
        f"{what} unlike those that the model makes: {said}",
        hint=MEASURE_AGAIN
        if figures is None
        else "are the points in the units of the domain (ddib model show), and of more than a small piece of it?",
        facts={name: f"{value:.4g}" for name, (value, _) in list(found.items())[:8]},
    )
