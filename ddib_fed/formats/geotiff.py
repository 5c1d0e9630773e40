"""GeoTIFF: a map in tiles, and one of the same georeference out.

Of the input's header only the reference system, the transform, control points or polynomials, and the mask go into it.
"""

from __future__ import annotations

import math
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed import __version__, studies
from ddib_fed.errors import ImageUnreadable, extra

_GDAL_CACHE: Final = 64 << 20
"""Of decoded tiles, in bytes: GDAL would take a twentieth of the machine's memory."""
_FILLING: Final = 24  # bytes of a pixel that filling the holes of a band takes
_BLOCK: Final = 512


class Georeference(NamedTuple):
    """What a map keeps of its file."""

    crs: Any
    transform: Any
    gcps: tuple[Any, Any]
    rpcs: Any


@dataclass(frozen=True, slots=True)
class GeoTiffStudy(studies.TiledStudy):
    georeference: Georeference
    valid: studies.Mask

    kind = "GeoTIFF"

    def values_of(self, made: Path) -> studies.Pixels:
        return _read(made)[0]

    def assemble(self, translated: studies.StudyResults) -> studies.Assembled:
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
        return studies.Assembled(
            {self.origin.outputs[0]: content}, report, (), self.pixels.figures(translated)[0]
        )

    def _file(self, made: studies.Pixels, valid: studies.Mask, translated: studies.StudyResults) -> bytes:
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
            studies.faults_as_unreadable("GeoTIFF"),
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


def read_geotiff(origin: studies.Origin, options: studies.Options) -> GeoTiffStudy:
    values, valid, where, units = _read(origin.given)
    tiles = studies.Tiles.of(values, studies.chosen_rule(options, values), options.tile, valid, units)
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


def _read(path: Path) -> tuple[NDArray[Any], studies.Mask, Georeference, dict[str, list[float]]]:
    """Values (H, W, C) with holes filled, where there are data (H, W), the georeference, and how values were stored."""
    rasterio, given = _rasterio(), shlex.quote(str(path))
    interp = rasterio.enums.ColorInterp
    with (
        studies.faults_as_unreadable("GeoTIFF"),
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
        studies.ImageLimits().check_memory(
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
    of_values = studies.memory_of_values(pixels * bands, itemsize)
    return of_values + pixels * (2 + holes) + 2 * tile * bands * itemsize + _GDAL_CACHE


def _filled(rasterio: Any, band: NDArray[Any], valid: studies.Mask) -> NDArray[Any]:
    # GDAL fills in 32-bit floats, which have small steps around zero alone.
    mean = band[valid].mean(dtype=np.float64)
    clean = np.where(valid, band - mean, 0).astype(np.float32)
    filled = mean + rasterio.fill.fillnodata(clean, mask=valid.astype(np.uint8), max_search_distance=64)
    made: NDArray[Any] = np.where(valid, band, filled.round() if band.dtype.kind in "iu" else filled)
    return made.astype(band.dtype)
