"""The aggregate that a target publishes about its pictures: one noised histogram, and no value of any picture.

    cell        a box of colours in the model's units: `bins` intervals a channel
    unit        one picture, or a group of pictures that belong together (one patient, one scan)
    histogram   h = (1 / M) sum_i h_i, h_i the shares of unit i's pixels in each cell: the mean over its pictures
    published   round((h + N(0, sigma^2)) / QUANTUM), one integer a cell

Which units are counted, and M, follow from names and the number asked for, never from a pixel. So replacing the content
of one unit changes h by at most sqrt(2) / M in L2, whatever the number of cells. sigma is that of the analytic Gaussian
mechanism (Balle and Wang, 2018, Theorem 8) for the stated epsilon and delta; rounding is post-processing. Epsilon is
for one unit. Each further publication of the same units adds its epsilon and delta. Names, and the normalisation's mean
and deviation, count as public.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat, ValidationError, model_validator

from ddib_fed.calibration.record import Sha256, units_digest
from ddib_fed.data.folder import expand
from ddib_fed.errors import InputError
from ddib_fed.files import canonical_json, problem_text
from ddib_fed.models.units import Normalisation
from ddib_fed.names import is_domain
from ddib_fed.record import Frozen

Floats = npt.NDArray[np.floating]
Numbers = npt.NDArray[np.float64]
Unit = Literal["picture", "group"]

MAX_BYTES = 64 * 1024  # of an aggregate's canonical JSON
MAX_CELLS = 4096
MOST_CHANNELS = 6  # of four intervals each
LEAST_COUNTED, MOST_COUNTED = 200, 1_000_000  # units of an aggregate
DEFAULT_COUNTED = 4000
"""Largest number of units that are counted unless asked otherwise, evenly spaced over those there are."""
COUNTED_TOGETHER = 256
DELTA = 1e-5
QUANTUM = 1e-5
LARGEST_COUNT = 2_000_000  # of either sign: all of the mass, and the noise of the smallest epsilon on it
REACH = 3.0  # units that are cut into bins, either way from 0; what lies beyond counts in the outermost
GREY_BINS = 48
COLOUR_BINS = ((2000.0, 10), (700.0, 8), (0.0, 6))
"""Intervals of each of three channels from so much M x epsilon on: more cells than the noise allows say less."""
Epsilon = Annotated[FiniteFloat, Field(ge=0.01, le=8.0)]
Delta = Annotated[FiniteFloat, Field(ge=1e-12, le=1e-3)]


class Cells(Frozen):
    """How colours are cut: `bins` intervals a channel, of equal width on [-reach, reach] in the model's units."""

    channels: int = Field(ge=1, le=MOST_CHANNELS)
    bins: int = Field(ge=4, le=64)
    reach: FiniteFloat = Field(default=REACH, ge=1, le=8)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.bins,) * self.channels

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def centres(self) -> Numbers:
        """Return centres of the intervals of one channel, (bins,)."""
        width = 2 * self.reach / self.bins
        return np.linspace(width / 2 - self.reach, self.reach - width / 2, self.bins)

    @model_validator(mode="after")
    def _bounded(self) -> Cells:
        if self.count > MAX_CELLS:
            raise ValueError(f"{self.count} cells are more than {MAX_CELLS}")
        return self


class Aggregate(Frozen):
    """What the target publishes: a mean over `counted` units, noised by `sigma` for replacing one of them.

    `counts` are the shares in multiples of QUANTUM, in the order of `Cells.shape`, the last index fastest.
    """

    format: Literal[1] = 1
    domain: str = Field(max_length=64)
    units_sha256: Sha256
    cells: Cells
    counted: int = Field(ge=LEAST_COUNTED, le=MOST_COUNTED)
    unit: Unit = "picture"
    epsilon: Epsilon
    delta: Delta
    sigma: FiniteFloat = Field(gt=0)
    counts: tuple[Annotated[int, Field(ge=-LARGEST_COUNT, le=LARGEST_COUNT, strict=True)], ...] = Field(
        max_length=MAX_CELLS
    )

    @property
    def canonical(self) -> bytes:
        """The canonical JSON that crosses and that is hashed; at most MAX_BYTES."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.canonical).digest()

    @property
    def shares(self) -> Numbers:
        """The noised shares, of the shape of the cells; some are negative."""
        return np.array(self.counts, dtype=np.float64).reshape(self.cells.shape) * QUANTUM

    @property
    def making(self) -> dict[str, Any]:
        """What a calibration that was made from it states of it: fields of `Making`."""
        return {
            "target_pictures": self.counted,
            "target_unit": self.unit,
            "aggregate_sha256": self.sha256.hex(),
            "crossed_bytes": len(self.canonical),
            "epsilon": self.epsilon,
            "delta": self.delta,
        }

    def describe(self) -> str:
        """Describe what would leave, in a few lines for the operator."""
        return (
            f"aggregate of {self.domain}: {self.cells.count} whole numbers, {len(self.canonical)} bytes\n"
            f"  one histogram of pixel values ({self.cells.bins} intervals of each channel), the mean over "
            f"{self.counted} {self.unit}s\n"
            "  no picture, no pixel and no position is in it\n"
            f"  noise of deviation {self.sigma:.2g} on each share\n"
            f"  epsilon {self.epsilon:g}, delta {self.delta:g} for each {self.unit}\n"
            f"  sha256 {self.sha256.hex()}"
        )

    @model_validator(mode="after")
    def _fits(self) -> Aggregate:
        if not is_domain(self.domain):
            raise ValueError("the domain is no name of a domain")
        if len(self.counts) != self.cells.count:
            raise ValueError(f"{len(self.counts)} counts for {self.cells.count} cells")
        if self.sigma < 0.999 * noise_sigma(self.counted, self.epsilon, self.delta):
            raise ValueError("the noise is less than epsilon and delta demand")
        if len(self.canonical) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes of JSON")
        return self


@dataclass(frozen=True, slots=True)
class Counted:
    """The exact histogram of a domain's pictures, without noise: it stays on this machine."""

    domain: str
    normalisation: Normalisation
    cells: Cells
    shares: Numbers = field(repr=False)
    units: int
    unit: Unit = "picture"
    notes: tuple[str, ...] = ()

    def noised(
        self, epsilon: float, delta: float = DELTA, generator: np.random.Generator | None = None
    ) -> Aggregate:
        """Return the aggregate that may be published; `generator` repeats the noise of what stays here."""
        sigma = noise_sigma(self.units, epsilon, delta)
        # What leaves has noise from the operating system.
        draw = secure_normal if generator is None else generator.standard_normal
        shares = self.shares + sigma * draw(self.cells.count).reshape(self.cells.shape)
        try:
            return Aggregate(
                domain=self.domain,
                units_sha256=units_digest(self.normalisation),
                cells=self.cells,
                counted=self.units,
                unit=self.unit,
                epsilon=epsilon,
                delta=delta,
                sigma=sigma,
                counts=tuple(int(count) for count in np.rint(shares / QUANTUM).ravel()),
            )
        except ValidationError as error:
            problem = f"no such aggregate: {problem_text(error)}"
            raise InputError(problem, hint="epsilon is from 0.01 to 8") from error


def count_array(
    pictures: npt.NDArray[Any],
    normalisation: Normalisation,
    domain: str,
    *,
    epsilon: float = 1.0,
    at_most: int = DEFAULT_COUNTED,
    cells: Cells | None = None,
) -> Counted:
    """The histogram of an array of pictures (N, C, H, W) in [-1, 1], or of their bytes, of at most so many of them."""
    taken = thinned(pictures, at_most)
    check_counted(len(taken), "picture")
    chosen = cells or default_cells(taken.shape[1], len(taken) * epsilon)
    shares = np.zeros(chosen.shape)
    for first in range(0, len(taken), COUNTED_TOGETHER):
        part = expand(taken[first : first + COUNTED_TOGETHER])
        shares += histogram(normalisation.plain.apply(part), chosen) * (len(part) / len(taken))
    return Counted(domain, normalisation, chosen, shares, len(taken))


def check_counted(count: int, unit: Unit) -> None:
    if count < LEAST_COUNTED:
        raise InputError(
            f"an aggregate is over at least {LEAST_COUNTED} {unit}s, and there are {count}",
            hint=f"add {unit}s; or calibrate from anchors, docs/calibration.md",
        )


def read_aggregate(content: bytes) -> Aggregate:
    """Read an aggregate from its JSON; raise InputError if a bound is exceeded."""
    if len(content) > MAX_BYTES:
        raise InputError(f"{len(content)} bytes are more than an aggregate may have, {MAX_BYTES}")
    try:
        return Aggregate.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"no aggregate: {problem_text(error)}") from error


def default_cells(channels: int, strength: float) -> Cells:
    if channels > MOST_CHANNELS:
        raise InputError(
            f"a histogram of {channels} channels has more cells than an aggregate may have; at most {MOST_CHANNELS} "
            "are counted",
            hint="calibrate colours instead of latents: ddib calibrate --kind colour-map",
        )
    bins = GREY_BINS if channels == 1 else next(bins for least, bins in COLOUR_BINS if strength >= least)
    if channels not in {1, 3}:  # of latents as many cells as of colours
        bins = max(4, round(bins ** (3 / channels)))
    return Cells.model_validate({"channels": channels, "bins": bins})


def thinned(pictures: npt.NDArray[Any], at_most: int) -> npt.NDArray[Any]:
    """Return at most so many pictures, evenly spaced, the first among them."""
    if len(pictures) <= at_most:
        return pictures
    return pictures[np.arange(at_most) * len(pictures) // at_most]


def histogram(units: Floats, cells: Cells) -> Numbers:
    """Return the mean over pictures (N, C, H, W), in the model's units, of the shares of pixels in each cell."""
    scaled = (units + cells.reach) * (cells.bins / (2 * cells.reach))
    places = np.floor(scaled).clip(0, cells.bins - 1).astype(np.int64)
    flat = np.ravel_multi_index([place.ravel() for place in np.moveaxis(places, 1, 0)], cells.shape)
    counts = np.bincount(flat, minlength=cells.count).astype(np.float64)
    shaped: Numbers = (counts / flat.size).reshape(cells.shape)
    return shaped


def noise_sigma(counted: int, epsilon: float, delta: float) -> float:
    """Return the least deviation of Gaussian noise on shares with (epsilon, delta) under replacing one of M units."""
    low, high = 1e-3, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _spent(middle, epsilon) <= delta else (middle, high)
    return high * math.sqrt(2.0) / counted


def _spent(ratio: float, epsilon: float) -> float:
    inner, shift = 0.5 / ratio, epsilon * ratio
    # exp(epsilon) Phi(x) where Phi is tiny: epsilon is at most 8, so neither factor overflows.
    return _phi(inner - shift) - math.exp(epsilon) * _phi(-inner - shift)


def _phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def secure_normal(count: int) -> Numbers:
    source = SystemRandom()
    return np.array([source.normalvariate() for _ in range(count)])
