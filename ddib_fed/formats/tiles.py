"""Cuts a large picture into overlapping tiles and blends translated tiles into one picture without seams.

Each tile is translated alone, so neighbours may differ in brightness. `blend` first gives every tile the offset with
which overlaps agree best (least squares, pulled towards none), then averages with weights that fall to the edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import UsageError

Floats = NDArray[np.float32]

PULL = 0.01
"""Weight of an offset's own square, beside the mean square that is left in an overlap."""
SWEEPS = 400
"""Gauss-Seidel sweeps over the tiles at most."""
SETTLED = 1e-4
"""Of the range: offsets that change by less are settled."""


@dataclass(frozen=True)
class Grid:
    """Where the tiles of a picture lie.

    Attributes:
        height: Of the picture, pixels.
        width: The same.
        tile: (height, width) of every tile; no larger than the picture.
        overlap: Pixels that neighbours share at least.
    """

    height: int
    width: int
    tile: tuple[int, int]
    overlap: int

    @classmethod
    def of(cls, height: int, width: int, tile: tuple[int, int] | None, overlap: int | None = None) -> Grid:
        """The grid of a picture.

        Args:
            height: Of the picture.
            width: The same.
            tile: (height, width) of a tile; None for the whole picture.
            overlap: Half a tile by default.

        Raises:
            UsageError: The overlap is no shorter than a tile.
        """
        if tile is None:
            return cls(height, width, (height, width), 0)
        rows, columns = min(tile[0], height), min(tile[1], width)
        shared = min(tile) // 2 if overlap is None else overlap
        if not 0 <= shared < min(tile):
            raise UsageError(
                f"tiles of {tile[0]} x {tile[1]} pixels cannot overlap by {shared}",
                hint=f"--overlap {min(tile) // 2}",
            )
        return cls(height, width, (rows, columns), shared)

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """First rows of the tiles, evenly spread."""
        return _starts(self.height, self.tile[0], self.overlap)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """First columns."""
        return _starts(self.width, self.tile[1], self.overlap)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def windows(self) -> Iterator[tuple[slice, slice]]:
        """Each tile's place, row by row."""
        for top in self.rows:
            for left in self.columns:
                yield slice(top, top + self.tile[0]), slice(left, left + self.tile[1])

    @property
    def edges(self) -> tuple[list[int], list[int]]:
        """Rows and columns within the picture at which a tile begins or ends."""
        rows, columns = (
            sorted({line for start in starts for line in (start, start + size) if 0 < line < whole})
            for starts, size, whole in (
                (self.rows, self.tile[0], self.height),
                (self.columns, self.tile[1], self.width),
            )
        )
        return rows, columns

    def neighbours(self) -> Iterator[tuple[int, int]]:
        """Pairs of tiles beside and below one another."""
        across = len(self.columns)
        for row in range(len(self.rows)):
            for column in range(across):
                here = row * across + column
                if column + 1 < across:
                    yield here, here + 1
                if row + 1 < len(self.rows):
                    yield here, here + across


def cut(picture: NDArray[Any], grid: Grid) -> list[NDArray[Any]]:
    """The tiles of a picture (H, W, C), row by row, as views."""
    return [picture[window] for window in grid.windows()]


def blend(
    tiles: Sequence[NDArray[Any] | None], grid: Grid, channels: int, *, background: float = 0.0
) -> tuple[Floats, Floats]:
    """One picture of translated tiles.

    Args:
        tiles: (h, w, C) of the grid's tiles, row by row; None for one that was not translated.
        grid: Of the picture.
        channels: C.
        background: The number where there is no tile.

    Returns:
        (H, W, C) float32, and the offsets (N, C) float32 that the tiles were given.
    """
    offsets = _offsets(tiles, grid, channels)
    total = np.zeros((grid.height, grid.width, channels), dtype=np.float32)
    weight = np.zeros((grid.height, grid.width, 1), dtype=np.float32)
    window = _weights(grid)
    for place, tile, offset in zip(grid.windows(), tiles, offsets, strict=True):
        if tile is not None:
            total[place] += window * (tile.astype(np.float32) + offset)
            weight[place] += window
    return np.where(weight > 0, total / np.maximum(weight, 1e-12), np.float32(background)), offsets


def _starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    if tile >= length:
        return (0,)
    step = max(1, tile - overlap)
    count = 1 + -(-(length - tile) // step)
    return tuple(round(i * (length - tile) / (count - 1)) for i in range(count))


def _weights(grid: Grid) -> Floats:
    """(h, w, 1): from next to nothing at a tile's edges to 1, as a squared sine over the overlap."""
    sides = [_ramp(size, starts) for size, starts in zip(grid.tile, (grid.rows, grid.columns), strict=True)]
    window: Floats = (sides[0][:, None] * sides[1][None, :])[:, :, None].astype(np.float32)
    return window


def _ramp(size: int, starts: Sequence[int]) -> Floats:
    shared = max((before + size - after for before, after in pairwise(starts)), default=0)
    if shared < 1:
        return np.ones(size, dtype=np.float32)
    shared = min(shared, size // 2 or 1)
    edge = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    ramp: Floats = (np.sin(np.pi / 2 * np.clip(edge / shared, 0, 1)) ** 2).astype(np.float32)
    return ramp


def _offsets(tiles: Sequence[NDArray[Any] | None], grid: Grid, channels: int) -> Floats:
    """(N, C): minimise sum_ij (m_ij + b_i - b_j)^2 + PULL sum_i b_i^2, m_ij the mean of tile i less tile j."""
    offsets = np.zeros((len(tiles), channels), dtype=np.float64)
    links: list[list[tuple[int, NDArray[Any]]]] = [[] for _ in tiles]
    places = list(grid.windows())
    for first, second in grid.neighbours():
        gap = _gap(tiles[first], tiles[second], places[first], places[second])
        if gap is not None:
            links[first].append((second, gap))
            links[second].append((first, -gap))
    width = max((float(np.ptp(tile)) for tile in tiles if tile is not None), default=0.0)
    for _ in range(SWEEPS):
        moved = 0.0
        for here, found in enumerate(links):
            if found:
                wanted = sum((offsets[other] - gap for other, gap in found), np.zeros(channels))
                new = wanted / (len(found) + PULL)
                moved = max(moved, float(np.abs(new - offsets[here]).max()))
                offsets[here] = new
        if moved <= SETTLED * width:
            break
    return offsets.astype(np.float32)


def _gap(
    first: NDArray[Any] | None,
    second: NDArray[Any] | None,
    here: tuple[slice, slice],
    there: tuple[slice, slice],
) -> NDArray[Any] | None:
    """Mean difference (C,) of two tiles where they overlap; None where they do not."""
    if first is None or second is None:
        return None
    common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(here, there, strict=True)]
    if any(side.start >= side.stop for side in common):
        return None
    parts = [
        tile[tuple(slice(c.start - p.start, c.stop - p.start) for c, p in zip(common, place, strict=True))]
        for tile, place in ((first, here), (second, there))
    ]
    gap: NDArray[Any] = (parts[0].astype(np.float64) - parts[1]).mean(axis=(0, 1))
    return gap
