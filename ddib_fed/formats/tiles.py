"""Cuts a large picture into overlapping tiles and blends translated tiles into one picture without seams.

Each tile is translated alone, and the mean is taken with weights that fall to the tiles' edges. Offsets that make
overlaps agree were measured and do not help: seams stay as they are, and the picture drifts away from the truth.
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
from ddib_fed.formats.intensity import is_empty, item_bytes
from ddib_fed.formats.measures import measure_seams
from ddib_fed.formats.study import Translated, require_size
from ddib_fed.samples.formats.decoded import Pixels

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Where the tiles of a picture lie."""

    height: int
    width: int
    tile: tuple[int, int]
    overlap: int

    @classmethod
    def of(cls, height: int, width: int, tile: tuple[int, int] | None, overlap: int | None = None) -> Grid:
        """The grid of a picture."""
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
        return _starts(self.height, self.tile[0], self.overlap)

    @cached_property
    def columns(self) -> tuple[int, ...]:
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


def cut(picture: NDArray[Any], grid: Grid) -> list[NDArray[Any]]:
    return [picture[window] for window in grid.windows()]


def blend(
    tiles: Sequence[NDArray[Any] | None], grid: Grid, channels: int, *, background: float = 0.0
) -> tuple[Floats, NDArray[np.bool_]]:
    """One picture of translated tiles."""
    total = np.zeros((grid.height, grid.width, channels), dtype=np.float32)
    weight = np.zeros((grid.height, grid.width, 1), dtype=np.float32)
    window = _weights(grid)
    for place, tile in zip(grid.windows(), tiles, strict=True):
        if tile is not None:
            total[place] += window * tile.astype(np.float32)
            weight[place] += window
    there = weight > 0
    return np.where(there, total / np.maximum(weight, 1e-12), np.float32(background)), there[..., 0]


@dataclass(frozen=True, slots=True)
class Tiles:
    """A picture that is sent in tiles."""

    numbers: Pixels
    grid: Grid
    sent: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Pixels, grid: Grid, valid: NDArray[np.bool_] | None = None) -> Tiles:
        """The tiles that show something: not those of one value, nor those without data by `valid` (H, W)."""
        width = max(float(np.ptp(numbers)), 1e-9)
        sent = tuple(
            at
            for at, (tile, window) in enumerate(zip(cut(numbers, grid), grid.windows(), strict=True))
            if (valid is None or valid[window].any()) and not is_empty(tile, float(tile.min()), width * 1e-3)
        )
        return cls(numbers, grid, sent)

    def items(self) -> Iterator[bytes]:
        """Each tile as a file of pixels."""
        tiles = cut(self.numbers, self.grid)
        for at in self.sent:
            yield item_bytes(tiles[at])

    def together(
        self, planes: Sequence[Pixels | None], channels: int, background: float
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """What came of the tiles that were sent, as `blend` gives it."""
        tiles: list[Pixels | None] = [None] * len(self.grid)
        for at, plane in zip(self.sent, planes, strict=True):
            if plane is not None:
                require_size(plane, self.grid.tile)
                tiles[at] = plane
        return blend(tiles, self.grid, channels, background=background)

    def report(self, translated: Translated, made: Floats) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Sections of the provenance, and lines for the person; `made` is the picture of the results."""
        seams = measure_seams(self.numbers, made, *self.grid.edges)
        report = {
            "output": translated.record(),
            "tiles": {
                "count": len(self.grid),
                "size": list(self.grid.tile),
                "overlap": self.grid.overlap,
                "sent": len(self.sent),
                "refused": [
                    at for at, plane in zip(self.sent, translated.planes, strict=True) if plane is None
                ],
            },
            "seams": None if seams is None else seams.record(),
        }
        return report, () if seams is None else (seams.say(),)

    def figures(self, translated: Translated) -> tuple[dict[str, float], Floats | None]:
        """The size, and the round trip at it, as fields of a record; and the picture that came back, in its numbers."""
        figures: dict[str, float] = {"height": self.grid.height, "width": self.grid.width}
        picture = translated.first.picture
        scale = None if picture is None else picture.back_scale
        span = None if picture is None else picture.source_range
        channels = next((plane.shape[2] for plane in translated.returned if plane is not None), 0)
        if scale is None or span is None or not channels:
            return figures, None
        back, there = self.together(translated.returned, channels, 0.0)
        given = self.numbers.astype(np.float32)
        if channels < given.shape[2]:
            given = given.mean(2, keepdims=True)
        gap = (back * scale[0] + scale[1] - given)[there] * (2 / (span[1] - span[0]))
        mse = float(np.square(gap, dtype=np.float64).mean())
        figures |= {"cycle_mse": mse, "cycle_psnr": float(min(120.0, 10 * np.log10(4 / max(mse, 4e-12))))}
        return figures, back


def _starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    if tile >= length:
        return (0,)
    step = max(1, tile - overlap)
    count = 1 + -(-(length - tile) // step)
    return tuple(round(i * (length - tile) / (count - 1)) for i in range(count))


def _weights(grid: Grid) -> Floats:
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
