"""Measures what a model's own latents look like, and how far a latent may be from that: the content of gate.json.

Bounds are of one figure each. Beyond the median, on either side, lies what an exponential tail, fitted above the third
quartile of honest latents, exceeds once in 1,000, or the farthest that was seen. A picture's figures may be farther
from the median, because pictures of another place or device scatter more than those that were held out of the training
data: three and a half times as far where they are of the latent alone (of the shipped maps' test pictures one is at 2.7
to 3.1, whatever noise softens it), twice as far where they compare it with its picture (none is beyond 1.6). Those of a
set of points may be a quarter farther. Every fifth latent or set is left out of this, and counted: refused or not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.bridge.judging.point_sets import SIZES, SetFigures, set_figures
from ddib_fed.bridge.judging.profile import LEAST_SIDE, NAMES, PAIR_NAMES, profile
from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.diffusion.bridge import integrate, soften
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.models.allowances import Allowances, PictureAllowances, SetAllowances

Numbers = NDArray[np.float64]
Samples = NDArray[np.float32]
Told = Callable[[int, int], None]
"""Told (encoded, in all)."""
EVALUATIONS = (48, 24, 12)
"""Of the latents, in turn: the bounds hold for whatever a user asks for."""
FEWEST_PICTURES = 40
FEWEST_POINTS = 1_024
TOGETHER = 15
"""Pictures of one call."""
POINTS_TOGETHER = 4_096
ONCE_IN = 1_000.0
ROOM, PAIR_ROOM, SET_ROOM = 3.5, 2.0, 1.25
"""Factors on the distance from the median: of a latent, of a latent beside its picture, of a set of points."""
SETS = 30
"""Of each kind and size."""
PARTS = ("fair", "half", "near")
"""Kinds of honest sets: drawn from all, from one side of a plane, from the neighbours of one sample."""


def measure_allowances(
    model: DomainModel,
    samples: Samples,
    *,
    command: str = "",
    within_s: float = math.inf,
    seed: int = 0,
    tell: Told | None = None,
) -> Allowances | None:
    """Allowances for the latents of a model.

    Args:
        model: The model.
        samples: (N, *sample_shape) of its domain, that it was not trained on where there are such, in the units of the
            data. Those of pictures in an order of no meaning.
        command: Noted in the result.
        within_s: CPU seconds of this thread; what was encoded by then counts.
        seed: Of softening and of sets.
        tell: Progress.

    Returns:
        None where too little was encoded, of a model with classes (each would need bounds of its own), of a flow map,
        and where no figures are defined: pictures below 16 pixels, or points of too many dimensions. Only the fixed
        bounds hold for such a model.
    """
    encoded = _Encoding(model, time.thread_time() + within_s, seed, tell)
    manifest = model.manifest
    if manifest.is_flow_map or manifest.num_classes is not None:
        return None
    common: dict[str, object] = {
        "weights_sha256": manifest.weights_sha256,
        "soften_sigma": manifest.soften_sigma,
        "command": command,
    }
    if model.is_picture:
        enough = min(model.sample_shape[1:]) >= LEAST_SIDE and len(samples) >= FEWEST_PICTURES
        return _of_pictures(encoded.pictures(samples), common) if enough else None
    latents = encoded.points(samples)
    if len(latents) < FEWEST_POINTS:
        return None
    return _of_points(samples[: len(latents)], latents, common, seed)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """Encodes samples as a leg does, until the time is up."""

    model: DomainModel
    until: float
    seed: int
    tell: Told | None

    def pictures(self, samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
        """Each latent and its softened picture (C, H, W), evaluations in turn."""
        sigma = self.model.manifest.soften_sigma
        generator = torch.Generator().manual_seed(self.seed)
        for turn, start in enumerate(range(0, len(samples), TOGETHER)):
            part = samples[start : start + TOGETHER]
            x = torch.from_numpy(self.model.normalise(part))
            x = soften(x, sigma, torch.randn(x.shape, generator=generator))
            z = self._encoded(x, EVALUATIONS[turn % len(EVALUATIONS)], sigma)
            yield from zip(z, x, strict=True)
            if self._late(start + len(part), len(samples)):
                return

    def points(self, samples: Samples) -> Tensor:
        """The latents of as many as could be encoded, (N, D)."""
        found = []
        for start in range(0, len(samples), POINTS_TOGETHER):
            x = torch.from_numpy(self.model.normalise(samples[start : start + POINTS_TOGETHER]))
            found.append(self._encoded(x, EVALUATIONS[1], 0.0))
            if self._late(start + len(x), len(samples)):
                break
        return torch.cat(found) if found else torch.empty(0, *self.model.sample_shape)

    def _encoded(self, x: Tensor, evaluations: int, sigma: float) -> Tensor:
        laid = self.model.plan(SolverSettings(evaluations=evaluations), sigma)
        return integrate(laid.encoder(x.to(self.model.device)), self.model.denoiser()).cpu()

    def _late(self, done: int, total: int) -> bool:
        if self.tell is not None:
            self.tell(done, total)
        return time.thread_time() > self.until


def _of_pictures(latents: Iterable[tuple[Tensor, Tensor]], common: dict[str, object]) -> Allowances | None:
    found = [profile(z, x).numpy() for z, x in latents]
    if len(found) < FEWEST_PICTURES:
        return None
    rows = np.stack(found)
    aside = np.arange(len(rows)) % 5 == 4
    allowed = picture_allowances(rows[~aside])
    refused = sum(bool(beyond(row, allowed)) for row in rows[aside])
    counts = {"measured": int((~aside).sum()), "checked": int(aside.sum()), "refused": refused}
    return Allowances.model_validate({**common, **counts, "pictures": allowed})


def picture_allowances(rows: Numbers, names: Sequence[str] = NAMES) -> PictureAllowances:
    """Allowances from the figures (N, K) of honest latents."""
    rooms = (PAIR_ROOM if name in PAIR_NAMES else ROOM for name in names)
    low, high = zip(*(_bounds(column, room) for column, room in zip(rows.T, rooms, strict=True)), strict=True)
    return PictureAllowances(names=tuple(names), low=low, high=high)


def beyond(row: Numbers, allowed: PictureAllowances) -> dict[str, tuple[float, float]]:
    """Which of a latent's figures (K,) are out of their bounds, by name, each with the bound; NaN is out of any."""
    each = zip(allowed.names, row.tolist(), allowed.low, allowed.high, strict=True)
    return {
        name: (value, low if value < low else high)
        for name, value, low, high in each
        if not low <= value <= high
    }


def _bounds(values: Numbers, room: float) -> tuple[float, float]:
    centre = float(np.median(values))
    return centre - room * upper_bound(centre - values), centre + room * upper_bound(values - centre)


def upper_bound(values: Numbers) -> float:
    """What values of this kind exceed once in 1,000, or the largest of them, whichever is more."""
    quartile = float(np.quantile(values, 0.75))
    excess = float((values[values > quartile] - quartile).mean()) if (values > quartile).any() else 0.0
    return max(float(values.max()), quartile + excess * math.log(0.25 * ONCE_IN))


def _of_points(samples: Samples, latents: Tensor, common: dict[str, object], seed: int) -> Allowances | None:
    rng = np.random.default_rng(seed)
    allowed, measured, checked, refused = [], 0, 0, 0
    for size in SIZES:
        if 2 * size > len(latents):
            break
        sets = [set_figures(latents[rows]) for rows in honest_rows(samples, size, SETS, rng)]
        found = [each for each in sets if each is not None]
        if len(found) < len(sets):
            return None
        fitted = [each for number, each in enumerate(found) if number % 5 != 4]
        one = set_allowances(size, fitted)
        allowed.append(one)
        measured += len(fitted)
        checked += len(found) - len(fitted)
        refused += sum(bool(each.beyond(one)) for each in found[4::5])
    counts = {"measured": measured, "checked": checked, "refused": refused}
    return Allowances.model_validate({**common, **counts, "points": tuple(allowed)})


def honest_rows(
    samples: Samples, size: int, count: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Rows of `count` sets of each of `PARTS`, in turn, as a user might choose them."""
    for _ in range(count):
        yield rng.choice(len(samples), size, replace=False)
        side = samples @ rng.standard_normal(samples.shape[1])
        yield rng.choice(np.argsort(side)[len(samples) // 2 :], size, replace=False)
        apart = np.square(samples - samples[rng.integers(len(samples))]).sum(axis=1)
        yield rng.choice(np.argsort(apart)[: max(2 * size, len(samples) // 8)], size, replace=False)


def set_allowances(size: int, sets: Sequence[SetFigures]) -> SetAllowances:
    """The allowances of sets in which so many points are looked at, from honest ones."""
    slope, shift, dimension = (
        np.array([getattr(each, name) for each in sets]) for name in ("slope", "shift", "dimension")
    )
    (low, high), (_, most), (least, _) = (_bounds(each, SET_ROOM) for each in (slope, shift, dimension))
    return SetAllowances(count=size, slope_low=low, slope_high=high, shift=most, dimension=least)
