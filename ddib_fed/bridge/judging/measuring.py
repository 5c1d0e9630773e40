"""Measures what a model's own latents of pictures look like, and what is unusual among them: the content of gate.json.

Bounds are of one figure each. Beyond the median, on either side, lies what an exponential tail, fitted above the third
quartile of honest latents, exceeds once in 1,000, or the farthest that was seen. A picture's figures may be farther
from the median, because pictures of another place or device scatter more than those that were held out of the training
data: three and a half times as far where they are of the latent alone (of the shipped maps' test pictures one is at 2.7
to 3.1, whatever noise softens it), twice as far where they compare it with its picture (none is beyond 1.6). Every
fifth latent is left out of this, and counted: beyond the bounds or not. A latent beyond them is encoded again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.bridge.judging.profile import LEAST_SIDE, NAMES, PAIR_NAMES, profile
from ddib_fed.bridge.model import DomainModel
from ddib_fed.diffusion.bridge import integrate, soften
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.models.allowances import Allowances, PictureAllowances

Numbers = NDArray[np.float64]
Samples = NDArray[np.float32]
Told = Callable[[int, int], None]
"""Told (encoded, in all)."""
EVALUATIONS = (48, 24, 12)
"""Of the latents, in turn: the bounds hold for whatever a user asks for."""
FEWEST_PICTURES = 40
TOGETHER = 15
"""Pictures of one call."""
ONCE_IN = 1_000.0
ROOM, PAIR_ROOM = 3.5, 2.0
"""Factors on the distance from the median: of a latent, of a latent beside its picture."""


def measure_allowances(
    model: DomainModel,
    samples: Samples,
    *,
    command: str = "",
    within_s: float = math.inf,
    seed: int = 0,
    tell: Told | None = None,
) -> Allowances:
    """Allowances for the latents of a model of pictures, of which `unmeasurable` finds nothing to say."""
    manifest = model.manifest
    rows = np.stack([profile(z, x).numpy() for z, x in _encoded(model, samples, within_s, seed, tell)])
    aside = np.arange(len(rows)) % 5 == 4
    allowed = picture_allowances(rows[~aside])
    return Allowances(
        weights_sha256=manifest.weights_sha256,
        soften_sigma=manifest.soften_sigma,
        command=command,
        measured=int((~aside).sum()),
        checked=int(aside.sum()),
        beyond=sum(bool(beyond(row, allowed)) for row in rows[aside]),
        pictures=allowed,
    )


def unmeasurable(model: DomainModel, count: int) -> str:
    """Why the usual latents of a model cannot be measured with so many samples; empty where they can."""
    manifest = model.manifest
    if not model.is_picture:
        return "some points of every set are encoded again, and nothing is measured for that"
    if manifest.num_classes is not None:
        return "each class would need bounds of its own"
    if manifest.is_flow_map:
        return "the bounds are of latents of the ODE, and this model is distilled"
    if min(model.sample_shape[1:]) < LEAST_SIDE:
        return f"pictures have figures from {LEAST_SIDE} pixels on"
    if count < FEWEST_PICTURES:
        return (
            f"{FEWEST_PICTURES} pictures are needed that the model was not trained on, and there are {count}"
        )
    return ""


def _encoded(
    model: DomainModel, samples: Samples, within_s: float, seed: int, tell: Told | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each latent and its softened picture (C, H, W), encoded as on a leg, evaluations in turn."""
    sigma, until = model.manifest.soften_sigma, time.thread_time() + within_s
    generator = torch.Generator().manual_seed(seed)
    for turn, start in enumerate(range(0, len(samples), TOGETHER)):
        if start >= FEWEST_PICTURES and time.thread_time() > until:
            return
        x = torch.from_numpy(model.normalise(samples[start : start + TOGETHER]))
        x = soften(x, sigma, torch.randn(x.shape, generator=generator))
        laid = model.plan(SolverSettings(evaluations=EVALUATIONS[turn % len(EVALUATIONS)]), sigma)
        z = integrate(laid.encoder(x.to(model.device)), model.denoiser()).cpu()
        yield from zip(z, x, strict=True)
        if tell is not None:
            tell(start + len(x), len(samples))


def picture_allowances(rows: Numbers, names: Sequence[str] = NAMES) -> PictureAllowances:
    """Allowances from the figures (N, K) of honest latents."""
    rooms = (PAIR_ROOM if name in PAIR_NAMES else ROOM for name in names)
    low, high = zip(*(bounds(column, room) for column, room in zip(rows.T, rooms, strict=True)), strict=True)
    return PictureAllowances(names=tuple(names), low=low, high=high)


def beyond(row: Numbers, allowed: PictureAllowances) -> dict[str, tuple[float, float]]:
    """Which of a latent's figures (K,) are out of their bounds, by name, each with the bound; NaN is out of any."""
    each = zip(allowed.names, row.tolist(), allowed.low, allowed.high, strict=True)
    return {
        name: (value, low if value < low else high)
        for name, value, low, high in each
        if not low <= value <= high
    }


def bounds(values: Numbers, room: float) -> tuple[float, float]:
    centre = float(np.median(values))
    return centre - room * upper_bound(centre - values), centre + room * upper_bound(values - centre)


def upper_bound(values: Numbers) -> float:
    """What values of this kind exceed once in 1,000, or the largest of them, whichever is more."""
    quartile = float(np.quantile(values, 0.75))
    excess = float((values[values > quartile] - quartile).mean()) if (values > quartile).any() else 0.0
    return max(float(values.max()), quartile + excess * math.log(0.25 * ONCE_IN))
