"""Pictures and maps in overlapping tiles of the model's size: JPEG 2000, WebP and BMP, and GeoTIFF.

A picture becomes a PNG; a map becomes one of the same georeference, and of the input's header only the reference
system, the transform, control points or polynomials, and the mask go into it. Where nothing was translated the result
is background, and a mask says so.
"""

from __future__ import annotations

import math
import shlex
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.pictures import (
    ORIENTATION,
    ImageLimits,
    Pixels,
    decode_image,
    encode_png,
    faults_as_unreadable,
    open_pillow,
    pillow_pixels,
    read_content,
    too_many_frames,
    upright,
)
from ddib_fed.data.previews import shown
from ddib_fed.errors import ImageUnreadable, extra
from ddib_fed.formats.study import (
    AUTO,
    LATENT,
    Assembled,
    IntensityRule,
    Options,
    Origin,
    Planes,
    Study,
    StudyResults,
    chosen_rule,
    is_empty,
    memory_of_values,
    require_size,
)
from ddib_fed.names import __version__
from ddib_fed.recognition import PICTURES, tile_of
from ddib_fed.record import digits, undigits

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
        cls, numbers: Pixels, grid: TileGrid, intensity: dict[str, Any], rule: str, valid: Mask | None = None
    ) -> Tiles:
        """The tiles that show something: not those of one value, nor those without data by `valid` (H, W)."""
        width = max(float(numbers.max()) - float(numbers.min()), 1e-9)
        sent = []
        for at, window in enumerate(grid.windows()):
            tile = numbers[window]
            has_data = valid is None or valid[window].any()
            if has_data and not is_empty(tile, float(tile.min()), width * 1e-3):
                sent.append(at)
        if not sent:
            raise ImageUnreadable("it shows nothing: all its pixels are alike or without data")
        return cls(numbers, tuple(sent), intensity, rule, grid)

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

    @classmethod
    @abstractmethod
    def read(cls, origin: Origin, options: Options) -> TiledStudy:
        """Read a file of the same format."""

    def views(self, made: Path, side: int) -> dict[str, bytes]:
        if not self.in_tiles:
            return {}
        try:
            other = self.read(replace(self.origin, given=made), Options(intensity="values"))
        except ImageUnreadable:
            return {}
        drawn = {}
        for part, pixels in (("source", self.pixels.numbers), ("translation", other.pixels.numbers)):
            step = -(-max(pixels.shape[:2]) // side)
            drawn[part] = encode_png(shown(pixels[::step, ::step]))
        return drawn


@dataclass(frozen=True, slots=True)
class PictureStudy(TiledStudy):
    """A picture of a format that nodes do not take, or one that is larger than a model of parts of pictures."""

    format: str

    @classmethod
    def read(cls, origin: Origin, options: Options) -> PictureStudy:
        return read_picture(origin, options)

    @property
    def kind(self) -> str:
        kind = {"JPEG2000": "JPEG 2000", "WEBP": "WebP", "PNG": "picture"}.get(self.format, self.format)
        return kind if self.planes == 1 else f"{kind} in tiles"

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


def picture_origin(path: Path, options: Options, within: str = "") -> Origin:
    settings = options.settings("intensity", "picture_tile", "most_tiles")
    beside = (".mask.png", ".returned.png", LATENT)
    return Origin.of_file(path, settings, suffix=path.suffix, within=within, results=(".png",), beside=beside)


def read_picture(origin: Origin, options: Options) -> PictureStudy:
    path, limits = origin.given, ImageLimits()
    kind = PICTURES.get(path.suffix.lower(), "PNG")
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        content = read_content(path, limits)
        pixels = decode_image(content).pixels if kind == "PNG" else _pixels(content, kind, limits)
    rule = IntensityRule("values") if options.intensity == AUTO else IntensityRule.parse(options.intensity)
    intensity = rule.on(pixels)
    height, width = pixels.shape[:2]
    grid = TileGrid.of(height, width, tile_of(height, width, options.picture_tile, options.most_tiles))
    numbers, record = intensity.numbers(pixels), intensity.record(pixels)
    whole = Tiles(numbers, (0,), record, rule.text, grid)
    return PictureStudy(origin, Tiles.of(numbers, grid, record, rule.text) if len(grid) > 1 else whole, kind)


def _pixels(content: bytes, kind: str, limits: ImageLimits) -> Pixels:
    with faults_as_unreadable(kind):
        image = open_pillow(content, kind)
        limits.check_size(image.height, image.width)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise too_many_frames(f"the {kind}", frames)
        at = content.find(b"\xff\x4f\xff\x51")  # the header of a JPEG 2000 codestream
        bits = (content[at + 42] & 0x7F) + 1 if at >= 0 and len(content) > at + 42 else 8
        if kind == "JPEG2000" and image.mode not in {"L", "I;16"} and bits > 8:
            raise ImageUnreadable(
                f"it has {bits} bits in several channels, which cannot be read exactly here",
                hint="convert it to a 16-bit PNG or TIFF first",
            )
        orientation = image.getexif().get(ORIENTATION, 1)
        return upright(pillow_pixels(image), orientation)


_GDAL_CACHE: Final = 64 << 20
"""Of decoded tiles, in bytes: GDAL would take a twentieth of the machine's memory."""
_FILLING: Final = 24
"""Bytes of a pixel that filling the holes of a band takes."""
_BLOCK: Final = 512


class Georeference(NamedTuple):
    """What a map keeps of its file."""

    crs: Any
    transform: Any
    gcps: tuple[Any, Any]
    rpcs: Any


@dataclass(frozen=True, slots=True)
class GeoTiffStudy(TiledStudy):
    georeference: Georeference
    valid: Mask

    kind = "GeoTIFF"

    @classmethod
    def read(cls, origin: Origin, options: Options) -> GeoTiffStudy:
        return read_geotiff(origin, options)

    def assemble(self, translated: StudyResults) -> Assembled:
        made, covered, report = self.pixels.result(translated)
        where, (height, width) = self.georeference, self.valid.shape
        report["geometry"] = {
            "height": height, "width": width,
            "crs": None if where.crs is None else where.crs.to_string(),
            "transform": None if where.transform is None else list(where.transform)[:6],
            "control_points": len(where.gcps[0]),
            "rational_polynomials": where.rpcs is not None,
        }  # fmt: skip
        content = self._file(made, self.valid & covered, translated)
        return Assembled({self.origin.outputs[0]: content}, report, (), self.pixels.figures(translated)[0])

    def _file(self, made: Pixels, valid: Mask, translated: StudyResults) -> bytes:
        """The map with a header of its own, tiled and deflated."""
        rasterio, where = _rasterio(), self.georeference
        height, width, bands = made.shape
        profile: dict[str, Any] = {
            "driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": made.dtype.name,
            "crs": where.crs, "compress": "deflate", "photometric": "rgb" if bands == 3 else "minisblack",
            "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK,
        }  # fmt: skip
        profile |= {} if where.transform is None else {"transform": where.transform}
        tags = {
            "SYNTHETIC": "YES",
            "TIFFTAG_SOFTWARE": f"ddib-fed {__version__}",
            "TIFFTAG_IMAGEDESCRIPTION": f"Synthetic: translated from {translated.source} to {translated.target}",
        }
        with (
            faults_as_unreadable("GeoTIFF"),
            warnings.catch_warnings(action="ignore"),
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.io.MemoryFile() as memory,
        ):
            with memory.open(**profile) as out:
                out.write(made.transpose(2, 0, 1))
                if not valid.all():
                    out.write_mask(valid)
                if where.gcps[0]:
                    out.gcps = where.gcps
                if where.rpcs is not None:
                    out.rpcs = where.rpcs
                if not translated.plain:
                    out.scales, out.offsets = [translated.slope] * bands, [translated.intercept] * bands
                out.update_tags(**tags)
            return bytes(memory.read())


def geotiff_origin(path: Path, options: Options, within: str = "") -> Origin:
    settings = options.settings("intensity", "tile")
    return Origin.of_file(path, settings, suffix=path.suffix, within=within)


def read_geotiff(origin: Origin, options: Options) -> GeoTiffStudy:
    values, valid, where, units = _read(origin.given)
    rule = chosen_rule(options, values)
    seen = values if valid.all() else values[valid]
    intensity = rule.on(seen)
    grid = TileGrid.of(valid.shape[0], valid.shape[1], options.tile)
    record = intensity.record(seen) | units
    tiles = Tiles.of(intensity.numbers(values), grid, record, rule.text, valid)
    return GeoTiffStudy(origin, tiles, where, valid)


def _rasterio() -> Any:
    with extra(
        "geotiff",
        "rasterio",
        "reading a georeferenced TIFF needs rasterio, which is not installed",
        otherwise="remove its georeference: `tiffcp` or ImageMagick write a plain TIFF",
    ):
        import rasterio
        import rasterio.fill
        import rasterio.io
    return rasterio


def _read(path: Path) -> tuple[NDArray[Any], Mask, Georeference, dict[str, list[float]]]:
    """Values (H, W, C) with holes filled, where there are data (H, W), the georeference, and how values were stored."""
    rasterio, given = _rasterio(), shlex.quote(str(path))
    interp = rasterio.enums.ColorInterp
    with (
        faults_as_unreadable("GeoTIFF"),
        warnings.catch_warnings(action="ignore"),
        rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE),
        rasterio.open(path, driver="GTiff") as file,
    ):
        height, width, kind = file.height, file.width, np.dtype(file.dtypes[0])
        kinds = zip(file.indexes, file.colorinterp, strict=True)
        bands = [band for band, kind_of in kinds if kind_of != interp.alpha]
        scales, offsets = ([of_all[band - 1] for band in bands] for of_all in (file.scales, file.offsets))
        stored = set(scales) <= {1.0} and set(offsets) <= {0.0}
        what = how = ""
        if file.subdatasets:
            what, how = f"it holds {len(file.subdatasets)} maps, one is expected", f"tiffsplit {given}"
        elif len(bands) not in {1, 3} or kind.kind == "c":
            what = f"it has {len(bands)} bands of {kind}; one band, or red, green and blue, are translated"
            how = f"rio stack {given} --bidx 1,2,3 -o rgb.tif"
        elif file.colorinterp[0] == interp.palette:
            what, how = "its colours are a palette", f"gdal_translate -expand rgb {given} rgb.tif"
        if what:
            raise ImageUnreadable(what, hint=how)
        ImageLimits().check_memory(
            _memory_of(file, len(bands), kind.itemsize if stored else 8),
            f"gdal_retile.py -ps 8192 8192 -targetDir {shlex.quote(path.stem)} {given}",
        )
        values = file.read(bands)
        # The mask of the whole file would call a pixel valid where any band is.
        valid = np.ones((height, width), np.bool_)
        for band, plane in zip(bands, values, strict=True):
            valid &= (file.read_masks(band) > 0) & np.isfinite(plane)
        if not valid.any():
            raise ImageUnreadable("none of its pixels has data")
        for plane in () if valid.all() else values:
            plane[:] = _filled(rasterio, plane, valid)
        transform = None if file.transform.is_identity else file.transform
        where = Georeference(file.crs, transform, file.gcps, file.rpcs)
    values = np.ascontiguousarray(values.transpose(1, 2, 0))
    units = {"scales": scales, "offsets": offsets}
    return values if stored else values * scales + offsets, valid, where, units


def _memory_of(file: Any, bands: int, itemsize: int) -> int:
    """Return the bytes that reading a map takes: GDAL reads its tiles whole, and what has holes is copied twice."""
    pixels, tile = int(file.height * file.width), int(math.prod(file.block_shapes[0]))
    full = all(flags == [_rasterio().enums.MaskFlags.all_valid] for flags in file.mask_flag_enums)
    holes = 0 if full and np.dtype(file.dtypes[0]).kind != "f" else _FILLING + bands * itemsize
    of_values = memory_of_values(pixels * bands, itemsize)
    return of_values + pixels * (2 + holes) + 2 * tile * bands * itemsize + _GDAL_CACHE


def _filled(rasterio: Any, band: NDArray[Any], valid: Mask) -> NDArray[Any]:
    # GDAL fills in 32-bit floats, which have small steps around zero alone.
    mean = band[valid].mean(dtype=np.float64)
    clean = np.where(valid, band - mean, 0).astype(np.float32)
    filled = mean + rasterio.fill.fillnodata(clean, mask=valid.astype(np.uint8), max_search_distance=64)
    made: NDArray[Any] = np.where(valid, band, filled.round() if band.dtype.kind in "iu" else filled)
    return made.astype(band.dtype)
