"""Pictures and maps in overlapping tiles of a model's size, and results put together.

Where nothing was translated the result is background, and a mask says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.pictures import ImageLimits, Pixels, decode_image, encode_png, read_content
from ddib_fed.data.previews import shown
from ddib_fed.data.study import (
    AUTO,
    Assembled,
    IntensityRule,
    Options,
    Origin,
    Planes,
    Study,
    StudyResults,
    is_empty,
    require_size,
)
from ddib_fed.errors import ImageUnreadable
from ddib_fed.record import digits, tiles_in, undigits

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TileGrid:
    height: int
    width: int
    tile: tuple[int, int]
    overlap: int

    @classmethod
    def of(cls, height: int, width: int, tile: tuple[int, int] | None) -> TileGrid:
        """Tiles that overlap by half their side, or the whole picture."""
        if tile is None:
            return cls(height, width, (height, width), 0)
        return cls(height, width, (min(tile[0], height), min(tile[1], width)), min(tile) // 2)

    @cached_property
    def sides(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The tiles' places down and across the picture."""
        (height, width), overlap = self.tile, self.overlap
        return _places(self.height, height, overlap), _places(self.width, width, overlap)

    def __len__(self) -> int:
        return len(self.sides[0]) * len(self.sides[1])

    def windows(self) -> list[tuple[slice, slice]]:
        """Each tile's place, row by row."""
        return [*product(*self.sides)]


def _places(length: int, tile: int, overlap: int) -> tuple[slice, ...]:
    gaps = -(-(length - tile) // max(1, tile - overlap))
    starts = (round(i * (length - tile) / max(1, gaps)) for i in range(gaps + 1))
    return tuple(slice(start, start + tile) for start in starts)


def blend(
    tiles: Sequence[NDArray[Any] | None], grid: TileGrid, channels: int, *, background: float = 0.0
) -> tuple[Floats, Mask]:
    """Blend tiles by a raised sine over what they share; return (H, W, C), and where any tile is (H, W)."""
    sides = []
    for size, places in zip(grid.tile, grid.sides, strict=True):
        shared = max((before.stop - after.start for before, after in pairwise(places)), default=0)
        shared = min(shared, size // 2 or 1)
        edge = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
        sides.append(np.sin(np.pi / 2 * np.clip(edge / max(shared, 0.5), 0, 1)) ** 2)
    window = (sides[0][:, None] * sides[1][None, :])[:, :, None].astype(np.float32)
    total = np.zeros((grid.height, grid.width, channels), dtype=np.float32)
    weight = np.zeros((grid.height, grid.width, 1), dtype=np.float32)
    for place, tile in zip(grid.windows(), tiles, strict=True):
        if tile is not None:
            total[place] += window * tile.astype(np.float32)
            weight[place] += window
    there = weight > 0
    return np.where(there, total / np.maximum(weight, 1e-12), np.float32(background)), there[..., 0]


@dataclass(frozen=True, slots=True)
class Tiles(Planes):
    """A picture (H, W, C) in the numbers that a model takes."""

    grid: TileGrid

    @classmethod
    def of(
        cls,
        values: NDArray[Any],
        rule: IntensityRule,
        tile: tuple[int, int] | None,
        valid: Mask | None = None,
        units: Mapping[str, Any] | None = None,
    ) -> Tiles:
        """Cut a picture (H, W, C) into tiles (None: one whole), and send those that show something; raise if none does.

        `valid` (H, W) is where there are data: without it a picture of one tile is sent whatever it shows.
        """
        data = values if valid is None or valid.all() else values[valid]
        intensity, grid = rule.on(data), TileGrid.of(values.shape[0], values.shape[1], tile)
        numbers, record = intensity.numbers(values), intensity.record(data) | dict(units or {})
        if valid is None and len(grid) == 1:
            return cls(numbers, (0,), record, rule.text, grid)
        width = max(float(numbers.max()) - float(numbers.min()), 1e-9)
        sent = []
        for at, window in enumerate(grid.windows()):
            part = numbers[window]
            has_data = valid is None or valid[window].any()
            if has_data and not is_empty(part, float(part.min()), width * 1e-3):
                sent.append(at)
        if not sent:
            raise ImageUnreadable("it shows nothing: all its pixels are alike or without data")
        return cls(numbers, tuple(sent), record, rule.text, grid)

    @property
    def places(self) -> list[tuple[slice, slice]]:
        return self.grid.windows()

    def together(
        self, planes: Sequence[Pixels | None], channels: int, background: float
    ) -> tuple[Floats, Mask]:
        """Blend the results of the tiles that were sent, as `blend` does."""
        tiles: list[Pixels | None] = [None] * len(self.grid)
        for at, plane in zip(self.sent, planes, strict=True):
            if plane is not None:
                require_size(plane, self.grid.tile)
                tiles[at] = plane
        return blend(tiles, self.grid, channels, background=background)

    def result(self, translated: StudyResults) -> tuple[Pixels, Mask, dict[str, Any]]:
        """The picture of the results, where it was translated, and the sections of the provenance."""
        blended, covered = self.together(translated.planes, translated.channels, translated.background)
        size = {"size": list(self.grid.tile), "overlap": self.grid.overlap}
        return _rounded(blended, translated.dtype), covered, self.report(translated, "tiles", **size)

    def figures(self, translated: StudyResults) -> tuple[dict[str, Any], Floats | None]:
        """Return size, difference from the map and round trip for the record, and the returned picture, if any."""
        figures: dict[str, Any] = {"height": self.grid.height, "width": self.grid.width}
        pictures = [record and record.picture for record in translated.records]
        texts = [picture.differs_at if picture else "" for picture in pictures]
        if any(texts):
            parts = [undigits(text, self.grid.tile)[..., None] if text else None for text in texts]
            figures["differs_at"] = digits(self.together(parts, 1, 0.0)[0][..., 0])
        picture = translated.first.picture
        if picture and picture.fitted_height and picture.fitted_width:  # of one tile
            figures["fitted_height"] = round(picture.fitted_height * self.grid.height / self.grid.tile[0])
            figures["fitted_width"] = round(picture.fitted_width * self.grid.width / self.grid.tile[1])
        scale = None if picture is None else picture.back_scale
        span = None if picture is None else picture.source_range
        channels = next((plane.shape[2] for plane in translated.returned if plane is not None), 0)
        if not channels:
            return figures, None
        back, there = self.together(translated.returned, channels, 0.0)
        if scale is None or span is None:
            return figures, back
        given = self.numbers.astype(np.float32)
        if channels < given.shape[2]:
            given = given.mean(2, keepdims=True)
        gap = (back * scale[0] + scale[1] - given)[there] * (2 / (span[1] - span[0]))
        mse = float(np.square(gap, dtype=np.float64).mean())
        figures |= {"cycle_mse": mse, "cycle_psnr": float(min(120.0, 10 * np.log10(4 / max(mse, 4e-12))))}
        return figures, back


def _rounded(picture: Floats, dtype: np.dtype[Any]) -> Pixels:
    return np.rint(picture).clip(0, np.iinfo(dtype).max).astype(dtype)


@dataclass(frozen=True, slots=True)
class TiledStudy(Study):
    """A study whose items may be tiles of one picture."""

    pixels: Tiles

    @property
    def in_tiles(self) -> bool:
        return self.planes > 1

    def values_of(self, made: Path) -> Pixels | None:
        """Read the file of the translation (H, W, C), to show it; None where that is not done."""
        del made
        return None

    def views(self, made: Path, side: int) -> dict[str, bytes]:
        try:
            other = self.values_of(made) if self.in_tiles else None
        except ImageUnreadable:
            return {}
        if other is None:
            return {}
        drawn = {}
        for part, pixels in (("source", self.pixels.numbers), ("translation", other)):
            step = -(-max(pixels.shape[:2]) // side)
            drawn[part] = encode_png(shown(pixels[::step, ::step]))
        return drawn


@dataclass(frozen=True, slots=True)
class PictureStudy(TiledStudy):
    """A picture that becomes a PNG: of a format that nodes do not take, or larger than a model of parts of pictures."""

    called: str  # what it is, in words

    @classmethod
    def of(cls, origin: Origin, pixels: Pixels, options: Options, called: str) -> PictureStudy:
        """Cut pixels (H, W, C), if they are more than a model of parts of pictures takes."""
        auto = options.intensity == AUTO
        rule = IntensityRule("values") if auto else IntensityRule.parse(options.intensity)
        height, width = pixels.shape[:2]
        tile = tile_of(height, width, options.picture_tile, options.most_tiles)
        return cls(origin, Tiles.of(pixels, rule, tile), called)

    @property
    def kind(self) -> str:
        return self.called if self.planes == 1 else f"{self.called} in tiles"

    def values_of(self, made: Path) -> Pixels:
        return decode_image(read_content(made, ImageLimits())).pixels

    def assemble(self, translated: StudyResults) -> Assembled:
        made, covered, report = self.pixels.result(translated)
        figures, back = self.pixels.figures(translated)
        said, files = list[str](), {self.origin.outputs[0]: encode_png(made)}
        if not covered.all():
            files[f"{self.name}.mask.png"] = encode_png(covered[..., None].astype(np.uint8) * np.uint8(255))
            share = 100 * float(1 - covered.mean())
            said.append(f"{share:.1f} % of it was not translated and is background: {self.name}.mask.png")
        if back is not None:
            returned = next(plane for plane in translated.returned if plane is not None)
            files[f"{self.name}.returned.png"] = encode_png(_rounded(back, returned.dtype))
        return Assembled(files, report, tuple(said), figures if self.planes > 1 else {})


def tile_of(
    height: int, width: int, tile: tuple[int, int] | None, most: int | None
) -> tuple[int, int] | None:
    """Return the size of the tiles of a picture; None if it is sent whole."""
    count = 0 if tile is None else tiles_in(height, width, tile)
    return tile if 0 < count <= (most or count) else None
