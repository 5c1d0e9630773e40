"""The latent gate: a latent that no encoder makes neither leaves a party nor is decoded by one.

What is judged is what is sent: numbers of the leg's latent type. Fixed bounds hold for both sides.
Whoever encodes knows the model and the samples beside: what is unlike the model's usual latents (`models.allowances`),
and some points of each set, it encodes again by the model itself, beside the engine, and compares. So an honest latent
passes, however unusual its picture is, and one that the encoder did not make does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddib_fed.bridge.judging.measuring import beyond
from ddib_fed.bridge.judging.point_sets import FEWEST, REPEATED, allowance_for, repeated_share, set_figures
from ddib_fed.bridge.judging.profile import NAMES, profile
from ddib_fed.bridge.judging.usual import usual_sets
from ddib_fed.bridge.party import Leg
from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.diffusion.wrapped.rotation import rotated
from ddib_fed.errors import LatentNotGaussian, PolicyDenied
from ddib_fed.models.allowances import Allowances

FLOW_MAP = "flow-map"
AGAIN = 16
"""Points of a set that are encoded again."""
DIFFERENT = 0.05
"""Root mean square of the difference to the latent that was made again, as a share of that latent's."""
UNIFORM, FEW_LEVELS, FLAT, NARROW, WIDE = 0.02, 16, 0.25, 0.3, 2.0
"""Pictures in [-1, 1] are said to be so: deviation, colours, share of one colour; deviation in the model's units."""


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What whoever encoded knows of a latent."""

    evaluations: int
    samples: Tensor | None = None
    again: Callable[[list[int]], Tensor] | None = None
    allowances: Allowances | None = None
    given: npt.NDArray[np.float32] | None = None


def pass_latent(latent: Tensor, leg: Leg, made: Made | None = None) -> LatentStatistics:
    """Statistics of one item's latent, refused when it is not one that an encoder makes.

    Those of the encoder mixed have wider bounds.
    Latents of less than the whole depth are not noise, and none is refused. Nor is one on a leg that the wire cannot
    carry (guided encoding, noise in decoding, the public code's respacings): it never reaches a node.

    Args:
        latent: (N, D) of a set of points, or (N, C, H, W) of pictures, finite.
        leg: On which it was made, or is decoded.
        made: How it was made, where that is known.

    Raises:
        LatentNotGaussian: See `gaussianity.examine`; or the set is none of latents, or the latent is not the one that
            the model makes of the samples.
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
    structured = leg.settings.encoder != "ode"
    try:
        statistics = gaussianity.examine(latent, structured=structured)
    except LatentNotGaussian as error:
        if latent.ndim == 4 and made is not None and made.given is not None and made.samples is not None:
            raise _in_words(error, unusual(made.given, made.samples)) from error
        raise
    if latent.ndim == 2 and not structured:
        _check_set(latent)
    if made is not None and made.samples is not None and made.again is not None:
        _check_again(latent, _suspects(latent, leg, made, statistics), made.again)
    return statistics


def unusual(pictures: npt.NDArray[np.float32], normalised: Tensor) -> str:
    """What is unusual about pictures (N, C, H, W), in words; empty for nothing."""
    found = []
    _, counts = np.unique(
        np.moveaxis(pictures, 1, -1).reshape(-1, pictures.shape[1]), axis=0, return_counts=True
    )
    deviation = float(normalised.std())
    if float(pictures.std(axis=(2, 3)).max()) < UNIFORM:
        found.append("nearly uniform")
    elif len(counts) <= FEW_LEVELS:
        found.append(f"of only {len(counts)} different values")
    elif counts.max() > FLAT * counts.sum():
        found.append(f"to {counts.max() / counts.sum():.0%} of one value, as where there are no data")
    if deviation > WIDE or (deviation < NARROW and not found):
        found.append(f"of {deviation:.1f} times the contrast of the training pictures")
    if abs(float(normalised.mean())) > WIDE:
        found.append(f"much {'brighter' if normalised.mean() > 0 else 'darker'} than the training pictures")
    return " and ".join(found)


def _in_words(error: LatentNotGaussian, what: str) -> LatentNotGaussian:
    what = f"the picture is {what or 'unlike the training pictures'}"
    return LatentNotGaussian(
        f"{what}, and the model has not learned such pictures: of its latent the {error.detail}",
        facts={**error.facts, "picture": what},
    )


def _check_set(latent: Tensor) -> None:
    repeated = repeated_share(latent)
    if repeated > REPEATED:
        raise LatentNotGaussian(
            f"{repeated:.0%} of {len(latent)} points lie on another one",
            hint="translate each point once",
            facts={"points": len(latent), "repeated": f"{repeated:.3g}"},
        )
    figures = set_figures(latent) if repeated == 0.0 else set_figures(torch.unique(latent, dim=0))
    allowed = None if figures is None else allowance_for(figures.count, usual_sets())
    found = figures.beyond(allowed) if figures is not None and allowed is not None else {}
    if found:
        said = "; ".join(
            f"{name} is {value:.3g}, {bound:.3g} is allowed" for name, (value, bound) in found.items()
        )
        raise LatentNotGaussian(
            f"{len(latent)} points unlike those that a model makes: {said}",
            hint="are the points in the units of the domain (ddib model show), and of more than a small piece of it?",
            facts={name: f"{value:.4g}" for name, (value, _) in found.items()},
        )


def _suspects(latent: Tensor, leg: Leg, made: Made, statistics: LatentStatistics) -> list[int]:
    """Rows that are to be encoded again: some points of a set, pictures whose latents are unlike the usual ones."""
    if latent.ndim == 2:
        count = len(latent) if len(latent) >= FEWEST else 0
        return [int(row) for row in np.unique(np.linspace(0, count - 1, min(count, AGAIN)).round())]
    allowed = None if made.allowances is None else made.allowances.pictures
    if allowed is None or allowed.names != NAMES or made.samples is None:
        return []
    known = statistics.correlation if len(latent) == 1 and leg.calibration is None else None
    pairs = zip(_plain(latent, leg), _plain(made.samples, leg), strict=True)
    return [
        row for row, (z, x) in enumerate(pairs) if beyond(profile(z, x, correlation=known).numpy(), allowed)
    ]


def _check_again(latent: Tensor, rows: list[int], again: Callable[[list[int]], Tensor]) -> None:
    if not rows:
        return
    expected = again(rows)
    difference = float((latent[rows] - expected).norm() / expected.norm().clamp_min(1e-12))
    if not difference <= DIFFERENT:
        raise LatentNotGaussian(
            f"the latent is not what the model makes of this item: encoded again it differs by {difference:.0%}",
            hint="the engine of this node computes wrongly: restart the node, and report it if that does not help",
            facts={"differs": f"{difference:.3g}"},
        )


def _plain(x: Tensor, leg: Leg) -> Tensor:
    if leg.calibration is None:
        return x
    return rotated(x, torch.from_numpy(leg.calibration.matrix).T.to(x.dtype))
