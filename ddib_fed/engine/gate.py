"""The latent gate: a latent that no encoder makes neither leaves a party nor is decoded by one.

Fixed bounds hold for both sides. Whoever encodes knows the samples, too: what is unlike the model's usual latents
(`Allowances`), and some points of each set, it encodes again, beside the engine, and compares. So an honest latent
passes, however unusual its picture is. Here too is the noise that softens a node's pictures.
"""

import hashlib
import hmac
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.gaussianity import LatentStatistics, measure, patches_of
from ddib_fed.diffusion.guidance import rotated
from ddib_fed.diffusion.plans import FLOW_MAP, SolverSettings, soften
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Leg
from ddib_fed.errors import ConfigError, FileMissing, LatentNotGaussian, PolicyDenied
from ddib_fed.files import read_private, write_file
from ddib_fed.models.sidecars import Allowances, PictureAllowances, SetAllowances
from ddib_fed.networks.spectrum import cosines

Numbers = NDArray[np.float64]
Samples = NDArray[np.float32]
Told = Callable[[int, int], None]  # told (encoded, in all)

AGAIN = 16  # points of a set that are encoded again
DIFFERENT = 0.05
"""Root mean square of the difference to the latent that was made again, as a share of that latent's."""
FEWEST = 8  # points from which on repeated ones count
REPEATED = 0.5  # largest share of points that may lie on another one
UNIFORM, FEW_LEVELS, FLAT, NARROW, WIDE = 0.02, 16, 0.25, 0.3, 2.0
"""Pictures in [-1, 1] are said to be so: deviation, colours, share of one colour; deviation in the model's units."""


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What whoever encoded knows of a latent."""

    evaluations: int  # after which it was made
    samples: Tensor | None = None  # of which it was made, in the model's units and the leg's basis
    again: Callable[[list[int]], Tensor] | None = None  # makes some of its rows again
    allowances: Allowances | None = None
    given: Samples | None = None  # the samples in the units of the data


def pass_latent(latent: Tensor, leg: Leg, made: Made | None = None) -> LatentStatistics:
    """Return statistics of one item's finite latent (N, D) or (N, C, *sides); refuse one that no encoder makes.

    Of less than the whole depth none is refused, since they are no noise; nor on a leg that the wire cannot carry.
    """
    least = leg.least_evaluations
    if made is not None and leg.settings.solver != FLOW_MAP and made.evaluations < least:
        raise PolicyDenied(
            f"the latent was made with {made.evaluations} evaluations, where at least {least} are needed",
            facts={"policy": "least_evaluations", "evaluations": made.evaluations, "least": least},
        )
    if leg.settings.in_one_process or leg.settings.depth < 1.0:
        return measure(latent)
    structured = leg.settings.share < 1.0
    try:
        statistics = gaussianity.examine(latent, structured=structured)
    except LatentNotGaussian as error:
        if latent.ndim < 4 or made is None or made.given is None or made.samples is None:
            raise
        what = f"the picture is {unusual(made.given, made.samples) or 'unlike the training pictures'}"
        raise LatentNotGaussian(
            f"{what}, and the model has not learned such pictures: of its latent the {error.detail}",
            facts={**error.facts, "picture": what},
        ) from error
    if latent.ndim == 2:
        _check_set(latent)
    if made is not None and made.samples is not None and made.again is not None:
        rows = _suspects(latent, leg, made, statistics)
        expected = made.again(rows) if rows else latent[rows]
        difference = float((latent[rows] - expected).norm() / expected.norm().clamp_min(TINY))
        if not difference <= DIFFERENT:
            raise LatentNotGaussian(
                f"the latent is not what the model makes of this item: encoded again it differs by {difference:.0%}",
                hint="the engine of this node computes wrongly: restart the node, and report it if that does not help",
                facts={"differs": f"{difference:.3g}"},
            )
    return statistics


def unusual(pictures: Samples, normalised: Tensor) -> str:
    """Describe what is unusual about pictures (N, C, *sides); return an empty text for nothing."""
    reasons = []
    colours = np.moveaxis(pictures, 1, -1).reshape(-1, pictures.shape[1])
    _, counts = np.unique(colours, axis=0, return_counts=True)
    deviation = float(normalised.std())
    if float(pictures.std(axis=tuple(range(2, pictures.ndim))).max()) < UNIFORM:
        reasons.append("nearly uniform")
    elif len(counts) <= FEW_LEVELS:
        reasons.append(f"of only {len(counts)} different values")
    elif counts.max() > FLAT * counts.sum():
        reasons.append(f"to {counts.max() / counts.sum():.0%} of one value, as where there are no data")
    if deviation > WIDE or (deviation < NARROW and not reasons):
        reasons.append(f"of {deviation:.1f} times the contrast of the training pictures")
    if abs(float(normalised.mean())) > WIDE:
        reasons.append(f"much {'brighter' if normalised.mean() > 0 else 'darker'} than the training pictures")
    return " and ".join(reasons)


def _suspects(latent: Tensor, leg: Leg, made: Made, statistics: LatentStatistics) -> list[int]:
    """Rows that are to be encoded again: some points of a set, pictures whose latents are unlike the usual ones."""
    if latent.ndim == 2:
        count = len(latent) if len(latent) >= FEWEST else 0
        return [int(row) for row in np.unique(np.linspace(0, count - 1, min(count, AGAIN)).round())]
    allowed = None if made.allowances is None else made.allowances.pictures
    if allowed is None or allowed.names != NAMES or made.samples is None:
        return []
    known, z, x = statistics.correlation if len(latent) == 1 else None, latent, made.samples
    if leg.calibration is not None:
        back = torch.from_numpy(leg.calibration.matrix).T.to(latent.dtype)
        known, z, x = None, rotated(z, back), rotated(x, back)
    profiles = (profile(*pair, correlation=known).numpy() for pair in zip(z, x, strict=True))
    return [row for row, measured in enumerate(profiles) if beyond(measured, allowed)]


def _outside(figures: Iterable[tuple[str, float, float, float]]) -> dict[str, tuple[float, float]]:
    """Which figures (name, value, low, high) are out of their bounds, each with the bound; NaN is out of any."""
    return {
        name: (value, low if value < low else high)
        for name, value, low, high in figures
        if not low <= value <= high
    }


SIZES = (64, 128, 256, 512, 1024)
"""Points that are looked at, evenly over the rows: the largest of these numbers that the set has."""
MOST_DIMENSIONS = 8
"""Above, a thousand points have no neighbours to speak of, and a set is judged point by point alone."""
NEIGHBOUR = 8
DRAWS = 24
SETS_TOGETHER = 256  # points whose distances to all others are in memory at once
FILE = "usual_sets.json"
_ONE_AT_A_TIME = threading.Lock()
"""Sets of many streams are measured in turn: side by side they take memory for each, and the cores from the engine."""


@dataclass(frozen=True, slots=True)
class SetFigures:
    """Of `count` points, relative to true noise: how the density falls, how far its centre is off, local dimension."""

    count: int
    slope: float
    shift: float
    dimension: float


@lru_cache(maxsize=1)
def usual_sets() -> dict[int, SetAllowances]:
    content = (resources.files("ddib_fed.engine") / FILE).read_bytes()
    sets = [SetAllowances.model_validate(each) for each in json.loads(content)]
    return {each.count: each for each in sets}


def _check_set(latent: Tensor) -> None:
    distinct = torch.unique(latent.detach(), dim=0) if len(latent) >= FEWEST else latent
    repeated = 1.0 - len(distinct) / len(latent)
    if repeated > REPEATED:
        raise LatentNotGaussian(
            f"{repeated:.0%} of {len(latent)} points lie on another one",
            hint="translate each point once",
            facts={"points": len(latent), "repeated": f"{repeated:.3g}"},
        )
    figures = set_figures(latent if repeated == 0.0 else distinct)
    allowed = None if figures is None else usual_sets().get(figures.count)
    if figures is None or allowed is None:
        return
    outside = _outside(
        [
            ("slope", figures.slope, allowed.slope_low, allowed.slope_high),
            ("shift", figures.shift, -math.inf, allowed.shift),
            ("dimension", figures.dimension, allowed.dimension, math.inf),
        ]
    )
    if outside:
        said = "; ".join(f"{name} is {v:.3g}, {bound:.3g} is allowed" for name, (v, bound) in outside.items())
        raise LatentNotGaussian(
            f"{len(latent)} points unlike those that a model makes: {said}",
            hint="are the points in the units of the domain (ddib model show), and of more than a small piece of it?",
            facts={name: f"{value:.4g}" for name, (value, _) in outside.items()},
        )


def set_figures(latent: Tensor) -> SetFigures | None:
    """Measure a set (N, D) of finite points, hardly any repeated; None for sets too small or too wide."""
    count = max((size for size in SIZES if size <= len(latent)), default=0)
    if not count or latent.shape[1] > MOST_DIMENSIONS:
        return None
    rows = torch.linspace(0, len(latent) - 1, count, dtype=torch.float64).round().long()
    with _ONE_AT_A_TIME:
        slope, error, shift, shift_error, dimension = _density(latent.detach()[rows].double())
        usual, usual_dimension = _of_noise(count, latent.shape[1])
    return SetFigures(count, (slope - usual) / error, shift / shift_error, dimension / usual_dimension)


def _density(z: Tensor) -> tuple[float, float, float, float, float]:
    """s, its standard error, |b|, the largest standard error of b, and the local dimension, of (N, D) float64.

    The logarithm of the density, from the distance to the eighth neighbour, is fitted by a + b z - s |z|^2 / 2.
    """
    count, dim = z.shape
    closest = (
        torch.cdist(part, z).topk(4 * NEIGHBOUR + 1, dim=1, largest=False).values
        for part in torch.split(z, SETS_TOGETHER)
    )
    nearest = torch.cat(list(closest)).clamp_min(TINY)
    near, far = nearest[:, NEIGHBOUR], nearest[:, 4 * NEIGHBOUR]
    density = -dim * near.log()
    seen = torch.cat([torch.ones(count, 1, dtype=z.dtype), z, -z.square().sum(1, keepdim=True) / 2], dim=1)
    gram = torch.linalg.pinv(seen.T @ seen, hermitian=True)
    densities = gram @ (seen.T @ density)
    variance = (density - seen @ densities).square().sum() / (count - dim - 2)
    errors = (NEIGHBOUR * variance * gram.diagonal()).clamp_min(TINY).sqrt()
    spread = float((far / near).log().mean())
    dimension = math.log(4.0) / spread if spread > 0 else math.inf
    slope, shift = float(densities[-1]), float(densities[1:-1].norm())
    return slope, float(errors[-1]), shift, float(errors[1:-1].max()), dimension


@lru_cache(maxsize=64)
def _of_noise(count: int, dim: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(dim)
    sets = (torch.randn(count, dim, generator=generator, dtype=torch.float64) for _ in range(DRAWS))
    densities = [_density(z) for z in sets]
    return sum(each[0] for each in densities) / DRAWS, sum(each[4] for each in densities) / DRAWS


RINGS = (0.0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 1.0, 1.5)
"""Edges of the rings in units of the highest frequency of a side."""
FIRST_FINE = RINGS.index(1 / 2)
LEAST_SIDE = 16  # of pictures that have a profile: smaller ones leave rings empty
QUARTILES = 2 * 0.674489750196  # the quartiles of N(0, 1) are this far apart
TINY = 1e-12
ALONE = (
    *(f"band {low:.3g} to {high:.3g}" for low, high in pairwise(RINGS)),
    "aspect",
    "channels, least",
    "channels, largest",
    "bulk",
    "skewness",
    "kurtosis",
    "distance from N(0, 1)",
    "blocks",
    "patches",
)
"""Names of the figures of a latent alone."""
PAIR_NAMES = ("picture", "picture, coarse", "picture, fine")  # names of the figures that need the picture
NAMES = (*ALONE, *PAIR_NAMES)


def profile(latent: Tensor, picture: Tensor | None = None, *, correlation: float | None = None) -> Tensor:
    """Measure a latent (C, *sides): float64 figures named by `ALONE`, or with its picture by `NAMES`."""
    z = latent.detach().cpu().double()
    waves = cosines(z, z.ndim - 1)
    means, sums = _places(tuple(waves.shape[1:]))
    *rings, across, down = (means @ waves.square().mean(0).flatten()).tolist()
    blocks = patches_of(z[None]).var(-1).clamp_min(TINY).log().std()
    patches = measure(latent[None]).correlation if correlation is None else correlation
    figures = [
        *map(_log, rings),
        _log(across) - _log(down),
        *_channels(z),
        *_shape(z),
        float(blocks),
        _log(patches),
    ]
    if picture is not None:
        x = picture.detach().cpu().double()
        a, b = z - z.mean(), x - x.mean()
        figures.append(_share(float((a * b).sum()), float(a.norm() * b.norm())))
        others = cosines(x, x.ndim - 1)
        products = (
            torch.stack([waves * others, waves.square(), others.square()], dim=-1).sum(0).flatten(0, -2)
        )
        each = [_share(both, math.sqrt(of_z * of_x)) for both, of_z, of_x in (sums @ products).tolist()]
        coarse, fine = each[:FIRST_FINE], each[FIRST_FINE:]
        figures += [sum(coarse) / len(coarse), sum(fine) / len(fine)]
    return torch.tensor(figures, dtype=torch.float64)


def _channels(z: Tensor) -> list[float]:
    rows = z.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    eigenvalues = np.linalg.eigvalsh((rows @ rows.T / rows.shape[1]).numpy())
    return [_log(float(eigenvalues[0])), _log(float(eigenvalues[-1]))]


def _shape(z: Tensor) -> list[float]:
    ordered = np.sort(z.numpy(), axis=None)
    count = len(ordered)
    quartiles = float(ordered[(3 * count) // 4] - ordered[count // 4])
    unit = (ordered - ordered.mean()) / max(float(ordered.std(ddof=1)), TINY)
    after = torch.special.ndtr(torch.from_numpy(unit)).numpy() - np.arange(count) / count
    distance = max(float(np.abs(after).max()), float(np.abs(after - 1 / count).max()))
    squares = unit * unit
    kurtosis = float((squares * squares).mean()) - 3.0
    return [_log(quartiles / QUARTILES), float((squares * unit).mean()), math.asinh(kurtosis), _log(distance)]


def _log(value: float) -> float:
    return math.log(max(value, TINY))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > TINY else 0.0


@lru_cache(maxsize=16)
def _places(sides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Matrices on a channel's coefficients, flattened: means of rings and of two parts (where the frequency along the
    last side is the highest, and where that along the first one is), and sums of rings.
    """
    each = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) / side for side in sides), indexing="ij")
    radius = torch.stack(each).square().sum(0).sqrt()
    rings = [(low <= radius) & (radius < high) for low, high in pairwise(RINGS)]
    across, down = each[-1] > torch.stack(each[:-1]).amax(0), each[0] > torch.stack(each[1:]).amax(0)
    masks = torch.stack([*rings, across, down]).flatten(1).double()
    return masks / masks.sum(1, keepdim=True), masks[: len(rings)]


EVALUATIONS = (48, 24, 12)
"""Latents are measured at each in turn, so that the bounds hold for any number of evaluations."""
FEWEST_PICTURES = 40
TOGETHER = 15  # pictures of one call
ONCE_IN = 1_000.0
ROOM, PAIR_ROOM = 3.5, 2.0
"""Factors on the distance from the median: of a latent, of a latent beside its picture."""


def unmeasurable(model: DomainModel, count: int) -> str:
    """Explain why this number of samples cannot measure a model's latents; return an empty text if it can."""
    manifest = model.manifest
    if not model.is_picture:
        return "some points of every set are encoded again, and nothing is measured for that"
    if manifest.num_classes is not None:
        return "each class would need bounds of its own"
    if manifest.is_flow_map:
        return "the bounds are of latents of the ODE, and this model is distilled"
    if min(model.latent_shape[1:]) < LEAST_SIDE:
        return f"pictures have figures from {LEAST_SIDE} pixels on"
    if count < FEWEST_PICTURES:
        return (
            f"{FEWEST_PICTURES} pictures are needed that the model was not trained on, and there are {count}"
        )
    return ""


def measure_allowances(
    model: DomainModel,
    samples: Samples,
    *,
    command: str = "",
    within_s: float = math.inf,
    seed: int = 0,
    tell: Told | None = None,
) -> Allowances:
    """Measure the allowances of a model of pictures for which `unmeasurable` is empty."""
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


def _encoded(
    model: DomainModel, samples: Samples, within_s: float, seed: int, tell: Told | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each latent and its softened picture (C, H, W), encoded as on a leg, evaluations in turn."""
    sigma, until = model.manifest.soften_sigma, time.thread_time() + within_s
    generator = torch.Generator().manual_seed(seed)
    for turn, start in enumerate(range(0, len(samples), TOGETHER)):
        if start >= FEWEST_PICTURES and time.thread_time() > until:
            return
        x = model.into_units(samples[start : start + TOGETHER]).cpu()
        x = soften(x, sigma, torch.randn(x.shape, generator=generator))
        laid = model.plan(SolverSettings(evaluations=EVALUATIONS[turn % len(EVALUATIONS)]), sigma)
        z = model.integrate(x.to(model.device), laid.encoder).cpu()
        yield from zip(z, x, strict=True)
        if tell is not None:
            tell(start + len(x), len(samples))


def picture_allowances(rows: Numbers) -> PictureAllowances:
    """Derive allowances from the figures `NAMES`, (N, K), of honest latents."""
    rooms = (PAIR_ROOM if name in PAIR_NAMES else ROOM for name in NAMES)
    low, high = zip(*(bounds(column, room) for column, room in zip(rows.T, rooms, strict=True)), strict=True)
    return PictureAllowances(names=NAMES, low=low, high=high)


def beyond(row: Numbers, allowed: PictureAllowances) -> dict[str, tuple[float, float]]:
    """Which of a latent's figures (K,) are out of their bounds, by name, each with the bound; NaN is out of any."""
    return _outside(zip(allowed.names, row.tolist(), allowed.low, allowed.high, strict=True))


def bounds(values: Numbers, room: float) -> tuple[float, float]:
    """The median, less and more `room` times what values of this kind exceed once in 1,000, or the largest distance."""
    centre = float(np.median(values))
    below, above = (_rarely_exceeded(sign * (values - centre)) for sign in (-1.0, 1.0))
    return centre - room * below, centre + room * above


def _rarely_exceeded(values: Numbers) -> float:
    quartile = float(np.quantile(values, 0.75))
    above = values[values > quartile]
    excess = float((above - quartile).mean()) if len(above) else 0.0
    return max(float(values.max()), quartile + excess * math.log(0.25 * ONCE_IN))


KEY_BYTES = 32


def load_key(path: Path) -> bytes:
    """Read the node's softening key; make it, of mode 0600, when there is none."""
    try:
        key = read_private(path)
    except FileMissing:
        key = secrets.token_bytes(KEY_BYTES)
        write_file(path, key, private=True, overwrite=False)
        return key
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{path} has {len(key)} bytes, a softening key has {KEY_BYTES}",
            hint="put it back from the backup; without one remove it: pictures get other latents than before",
        )
    return key


def check_key(path: Path) -> None:
    if os.path.lexists(path):
        load_key(path)


class Softener:
    """Standard normal noise of a seed: HMAC-SHA256(key; purpose, digest of the picture or volume, peer, model)."""

    def __init__(self, key: bytes, model: str) -> None:
        self._key = key
        self._model = bytes.fromhex(model)

    def for_picture(
        self,
        picture: NDArray[np.float32],
        peer: str,
        shape: tuple[int, ...] | None = None,
        volume_sha256: bytes = b"",
    ) -> NDArray[np.float32]:
        """Return noise for a picture's latent: its own, or with the digest of a volume that of all its slices."""
        digest = volume_sha256 or hashlib.sha256(np.ascontiguousarray(picture, dtype="<f4").data).digest()
        purpose = b"volume" if volume_sha256 else b"picture"  # a volume never gets the noise of a picture
        parts = (b"ddib-fed softening 1", purpose, digest, peer.encode(), self._model)
        message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return standard_normal(hmac.digest(self._key, message, "sha256"), shape or picture.shape)


def standard_normal(seed: bytes, shape: Sequence[int]) -> NDArray[np.float32]:
    """Derive standard normal numbers from a seed (Box and Muller, 1958)."""
    count = math.prod(shape)
    pairs = -(-count // 2)
    raw = np.frombuffer(hashlib.shake_256(seed).digest(16 * pairs), dtype="<u8")
    # 53 bits make a float64 in (0, 1]: the logarithm of 0 never comes up.
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = 2.0 * np.pi * uniform[pairs:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return normal.reshape(tuple(shape)).astype(np.float32)
