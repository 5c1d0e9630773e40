"""Coronal slices and cortical sheets of the head template in `nilearn`; the T2 contrast is simulated.

The head is cut into slabs with gaps of `GAP` slices between them; a slab belongs to one side or to the test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ddib_fed.datasets.packaged import package_folder

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# The visible part of a coronal slice of the 1 mm template, and its reduced size.
FIELD = (slice(18, 178), slice(0, 160))
SLICE, FINER = 48, 3
"""Pixels along a side, and places along a pixel's side that it is the mean of."""
FIRST_SLICE, LAST_SLICE = 45, 190
"""Where a slice is large; beyond lie the tips of the head."""
GAP = 5
SLABS = MappingProxyType({"source": 6, "test": 12, "target": 6})
"""Slices of a slab of each owner, in the order in which they follow one another, over and over."""
NEIGHBOURS = 4
"""Adjacent test slices, of 1 mm, that count as one in intervals."""

# One averaged head has few slices: number of training sheets through the slabs of a domain, and their largest shift.
SHEETS = 5_000
SHEET_SEED = 1_521
TURN = 8.0
"""Degrees."""
STRETCH = 0.2
"""Of the logarithm of the scale."""
SHIFT = 0.12
"""Of half the field."""
KNOTS, BEND = 5, 4.0
"""Places along a side where a sheet is pulled within its plane, and the standard deviation of the pull in mm."""
CURVE = 0.7
"""Standard deviation of the pull out of the plane at the same places, in half thicknesses of the slab; kept in it."""

# Spin echo: repetition and echo time in ms; proton density, T1 and T2 in ms of grey matter, white matter and fluid.
REPETITION, ECHO = 5000.0, 100.0
TISSUES = MappingProxyType(
    {"gm": (0.82, 1330.0, 95.0), "wm": (0.70, 830.0, 75.0), "fluid": (1.0, 4000.0, 1500.0)}
)
BRIGHTEST = float(TISSUES["fluid"][0] * (1 - np.exp(-REPETITION / 4000.0)) * np.exp(-ECHO / 1500.0))
"""Signal of pure fluid, which becomes white."""


@lru_cache(maxsize=3)
def _volume(kind: str) -> Bytes:
    import nibabel

    folder = package_folder("nilearn", "nilearn") / "datasets" / "data"
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
    # The template shows only brain, so that the remainder after grey and white is fluid.
    fluid = np.where(t1 > 0, np.clip(1.0 - grey - white, 0.0, 1.0), 0.0).astype(np.float32)
    inside = (t1 > 0).astype(np.float32)
    signal = spin_echo(grey * inside, white * inside, fluid)
    return (signal / BRIGHTEST).astype(np.float32)


def slab_slices(side: str, part: str) -> list[int]:
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


def head_clusters() -> NDArray[np.int64]:
    """A number for each test slice, (N,): `NEIGHBOURS` adjacent slices of a slab have the same."""
    sizes = [len(slab) for slab in _slabs("source", "test")]
    blocks = [np.arange(size) // NEIGHBOURS for size in sizes]
    starts = np.cumsum([0, *(int(block[-1]) + 1 for block in blocks[:-1])])
    return np.concatenate([block + start for block, start in zip(blocks, starts, strict=True)])


def cut_head(name: str, side: str) -> Callable[[str], Bytes]:
    """A function that cuts the slices (N, 1, 48, 48) of a part from the head in the contrast `name`, for one side."""
    # Down, through the slices, across.
    volume = np.ascontiguousarray(_head(name)[FIELD[0], :, FIELD[1]].transpose(2, 1, 0)[::-1])

    def cut(part: str) -> Bytes:
        if part == "train":
            generator, slabs = np.random.default_rng(SHEET_SEED), _slabs(side, part)
            sheets = [_sheet(volume, slabs[i % len(slabs)], generator) for i in range(SHEETS)]
        else:
            flat = [np.float32(number) for number in slab_slices(side, part)]
            sheets = [_seen(volume, _places_of_pixels(), number) for number in flat]
        levels = np.clip(np.stack(sheets), 0.0, 1.0) * 255.0
        pictures: Bytes = np.rint(levels).astype(np.uint8)[:, None]
        return pictures

    return cut


def _sheet(volume: Floats, slab: range, generator: np.random.Generator) -> Floats:
    """A curved sheet through a slab, rotated, stretched, shifted and bent: augmentation of one head."""
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
    sides = [part.stop - part.start for part in (FIELD[1], FIELD[0])]
    count = SLICE * FINER
    lines = [(np.arange(count) + 0.5) * side / count - 0.5 for side in sides]
    return np.stack(np.meshgrid(*lines, indexing="ij"))


def _smooth(knots: NDArray[np.float64]) -> NDArray[np.float64]:
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
