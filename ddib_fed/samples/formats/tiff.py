"""Decodes TIFF files to pixels: 8 and 16 bit, signed, float, one page.

Tifffile parses the file and reads uncompressed and deflated data; Pillow's libtiff reads the
other compressions (LZW, PackBits, JPEG); data that neither reads exactly is refused, with a format to convert to.
"""

from __future__ import annotations

import io
import sys
import zlib
from typing import Any

import numpy as np

from ddib_fed.errors import ImageTooLarge, ImageUnreadable
from ddib_fed.samples.formats.decoded import ImageLimits, Pixels, flatten, settle, too_many_frames, upright
from ddib_fed.samples.formats.png_jpeg_npy import ORIENTATION, open_pillow, pillow_pixels, sixteen_bits

_NONE, _ADOBE_DEFLATE, _DEFLATE = 1, 8, 32946
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
MAX_SAMPLES = 4
MOST_PADDING = 4
"""Tiles at the edges may reach beyond the picture: together, and each, to this many times its size."""
SMALL_SEGMENT = 1 << 22
"""Bytes of a tile that are let pass whatever the picture's size."""
INFLATED_PIECE = 1 << 20


def tiff_pixels(content: bytes, limits: ImageLimits, background: str) -> tuple[Pixels, int]:
    """(H, W, C) pixels of a TIFF (also BigTIFF) and the bits of its samples."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        limits.check_size(page.imagelength, page.imagewidth)
        _check_one(file, page)
        check_segments(page)
        if page.dtype is None or page.samplesperpixel > MAX_SAMPLES:
            raise _refused(page)
        if page.dtype != np.uint8 and _plain(page) and _readable(page, content):
            pixels = upright(_from_tifffile(page), _orientation(page))
        else:
            pixels = _from_pillow(content, page, background)
        bits = 8 * min(page.dtype.itemsize, 4)
    return settle(_opaque(pixels, background)), bits


def first_page(content: bytes) -> Any:
    """The first page of a TIFF, with only its tags read and the size of its tiles checked."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        check_segments(page)
        return page


def _plain(page: Any) -> bool:
    return page.photometric in {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB} and page.bitspersample >= 8


def _opaque(pixels: Pixels, background: str) -> Pixels:
    if pixels.shape[2] not in {2, 4}:
        return pixels
    if pixels.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        raise ImageUnreadable(
            f"a TIFF with transparency of type {pixels.dtype}", hint="save it without alpha"
        )
    return flatten(pixels, background)


def _check_one(file: Any, page: Any) -> None:
    """Raise unless there is one page with one plane in depth."""
    try:
        file.pages[1]
    except IndexError:
        pass
    else:
        raise too_many_frames("the TIFF")
    # ImageJ writes a stack behind one page, and states it only in its own tag.
    planes = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
    if page.imagedepth != 1 or planes != 1:
        raise too_many_frames("the TIFF", max(page.imagedepth, int(planes)))


def _readable(page: Any, content: bytes) -> bool:
    """Whether tifffile reads it without further packages, and deflated data is not larger than the picture."""
    if page.compression == _NONE:
        return True
    if page.compression not in {_ADOBE_DEFLATE, _DEFLATE} or page.predictor not in {1, 2}:
        return False
    # Bounded: zlib alone would expand a few bytes to gigabytes.
    left = page.nbytes * MOST_PADDING + SMALL_SEGMENT
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        left -= _inflated(memoryview(content)[start : start + size], left)
        if left < 0:
            raise ImageUnreadable("the TIFF unpacks to more than its picture")
    return True


def _inflated(packed: memoryview, most: int) -> int:
    """The inflated size, counted up to `most` and one block more; the data is discarded."""
    inflater, rest, found = zlib.decompressobj(), bytes(packed), 0
    while found <= most and not inflater.eof:
        piece = inflater.decompress(rest, INFLATED_PIECE)
        rest, found = inflater.unconsumed_tail, found + len(piece)
        if not piece and not rest:
            break
    return found


def segment_bytes(page: Any) -> int:
    """Bytes of one decoded strip or tile, and of the row of them that a decoder may hold."""
    height = (
        page.tilelength if page.is_tiled else min(page.rowsperstrip or page.imagelength, page.imagelength)
    )
    width = page.tilewidth if page.is_tiled else page.imagewidth
    return int(height) * int(width) * int(page.samplesperpixel) * max(1, int(page.bitspersample) // 8)


def check_segments(page: Any) -> None:
    """Raise if a tile is much larger than its picture: decoders allocate the whole tile."""
    picture = page.imagelength * page.imagewidth * page.samplesperpixel * max(1, page.bitspersample // 8)
    size = segment_bytes(page)
    if size > MOST_PADDING * picture + SMALL_SEGMENT:
        raise ImageTooLarge(
            f"the TIFF's tiles have {size} bytes, the whole picture {picture}",
            hint="write it in strips, or in tiles no larger than the picture",
            facts={"tile_bytes": size, "picture_bytes": picture},
        )


def _from_tifffile(page: Any) -> Pixels:
    """(H, W, C) as stored: tifffile gives (C, H, W) for colours in separate planes."""
    array: Pixels = page.asarray()
    if array.ndim == 3 and page.planarconfig == 2 and page.samplesperpixel > 1:
        array = np.moveaxis(array, 0, 2)
    array = array.reshape(page.imagelength, page.imagewidth, -1)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if page.photometric == _WHITE_IS_ZERO and array.dtype.kind == "u":
        array = np.iinfo(array.dtype).max - array
    return array


def _from_pillow(content: bytes, page: Any, background: str) -> Pixels:
    """(H, W, C) by libtiff, upright: Pillow turns TIFFs itself; raises where Pillow would lose bits."""
    samples, kind = page.samplesperpixel, page.dtype
    if kind in {np.dtype(np.uint8), np.dtype(np.bool_)}:
        return pillow_pixels(open_pillow(content, "TIFF"), background)
    exact = _plain(page) and page.planarconfig == 1 and page.photometric != _WHITE_IS_ZERO
    if exact and kind == np.dtype(np.uint16) and samples in {3, 4}:
        return sixteen_bits(content, "TIFF", "RGB" if samples == 3 else "RGBA", byte_order=sys.byteorder)
    if not exact or samples != 1 or kind not in {np.dtype(t) for t in (np.uint16, np.int16, np.float32)}:
        raise _refused(page)
    return pillow_pixels(open_pillow(content, "TIFF"), background).astype(kind)


def _orientation(page: Any) -> int:
    tag = page.tags.get(ORIENTATION)
    return int(tag.value) if tag is not None and isinstance(tag.value, int) else 1


def _refused(page: Any) -> ImageUnreadable:
    name = getattr(page.compression, "name", page.compression)
    bits = page.bitspersample
    return ImageUnreadable(
        f"a TIFF of {page.samplesperpixel} x {bits} bit stored as {name} cannot be read exactly here",
        hint="convert it to an uncompressed or deflated TIFF (tiffcp -c zip IN OUT), or to PNG or .npy",
    )
