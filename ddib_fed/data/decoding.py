"""Decodes PNG, JPEG and .npy files to pixels.

A PNG is stripped to its critical chunks and checked (sums, size, frames) before a decoder sees it, so that
text, profiles and animation are ignored; sixteen bits stay sixteen bits.
"""

from __future__ import annotations

import ctypes
import functools
import io
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.points import Header, read_header
from ddib_fed.errors import DdibError, ImageTooLarge, ImageUnreadable, PointsUnreadable

Pixels = NDArray[Any]

FORMATS = ("PNG", "JPEG", "TIFF", "NPY")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits that are checked before a file is decoded."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 89_000_000
    formats: tuple[str, ...] = FORMATS

    def check_bytes(self, size: int) -> None:
        if size > self.max_bytes:
            raise ImageTooLarge(
                f"{size} bytes, {self.max_bytes} are the limit",
                facts={"size_bytes": size, "limit_bytes": self.max_bytes},
            )

    def check_size(self, height: int, width: int) -> None:
        if height < 1 or width < 1:
            raise ImageUnreadable(f"it claims {height} x {width} pixels")
        if height * width > self.max_pixels:
            raise ImageTooLarge(
                f"{height} x {width} pixels, {self.max_pixels} are the limit",
                facts={"pixels": height * width, "limit_pixels": self.max_pixels},
            )


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded picture, upright, without transparency."""

    pixels: Pixels
    bits: int
    format: str


def too_many_frames(what: str, frames: int | None = None) -> ImageTooLarge:
    """The error for a file of several pictures; `frames` when the number is known."""
    count = f"{frames} frames" if frames else "more than one frame"
    return ImageTooLarge(
        f"{what} holds {count}, one is the limit",
        hint="write each frame or slice to a separate file",
        facts={"frames": frames or "several", "limit_frames": 1},
    )


@contextmanager
def faults_as_unreadable(format_name: str) -> Iterator[None]:
    """Maps every exception of a decoder on untrusted bytes to `ImageUnreadable`."""
    try:
        yield
    except DdibError:
        raise
    except Exception as error:  # decoders raise any exception on forged files, MemoryError included
        raise ImageUnreadable(
            f"the {format_name} cannot be decoded: {type(error).__name__}: {error}"[:300],
            hint="it may be truncated or damaged: open it in a viewer and save it again",
        ) from error


def settle(pixels: Pixels) -> Pixels:
    """(H, W, C) in C order and of one of the four types of a `Picture`."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in {1, 3}:
        raise ImageUnreadable(f"an array of shape {pixels.shape} is neither grey nor RGB")
    kind = pixels.dtype.newbyteorder("=").name
    kind = kind if kind in {"uint8", "uint16", "int16"} else "int16" if kind == "int8" else "float32"
    with np.errstate(over="ignore", invalid="ignore"):
        pixels = np.ascontiguousarray(pixels, dtype=kind)
    if kind == "float32":
        count = sum(int(np.count_nonzero(~np.isfinite(pixels[a:b]))) for a, b in bands(*pixels.shape[:2]))
        if count:
            raise ImageUnreadable(
                f"{count} of {pixels.size} values are NaN or infinite",
                hint="replace them first, e.g. by numpy.nan_to_num",
                facts={"not_finite": count},
            )
    return pixels if pixels.flags.writeable else pixels.copy()


def flatten(pixels: Pixels, background: str) -> Pixels:
    """Colours over a background: (c a + b (max - a)) / max, rounded to the nearest whole number."""
    top = int(np.iinfo(pixels.dtype).max)
    behind = top if background == "white" else 0
    out = np.empty((*pixels.shape[:2], pixels.shape[2] - 1), dtype=pixels.dtype)
    # The wide numbers of a large picture would be eight times its size.
    for start, stop in bands(*pixels.shape[:2]):
        wide = pixels[start:stop].astype(np.uint64)
        colour, alpha = wide[..., :-1], wide[..., -1:]
        out[start:stop] = (colour * alpha + behind * (top - alpha) + top // 2) // top
    return out


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """The upright picture, by EXIF's tag 274 (1 to 8; other values count as 1)."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@functools.cache
def silence_libtiff() -> None:
    """Silence libtiff's own error messages in this process, if its symbol is accessible in Pillow's build."""
    from PIL import _imaging

    with suppress(OSError, AttributeError):
        # The symbol is looked up in the library that Pillow's module is linked with: its own copy, or the system's.
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


Plane = NDArray[Any]
"""(H, W), uint8 or float32."""

BAND = 1 << 16
"""Pixels of a band, as far as one row is not more already."""


def bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, BAND // max(1, width))
    return ((start, min(start + step, height)) for start in range(0, height, step))


def rows_of(image: Any) -> Iterator[tuple[int, int, Plane]]:
    """(start, stop, these rows) of one of Pillow's pictures, each (rows, W) or (rows, W, C)."""
    for start, stop in bands(image.height, image.width):
        whole = (start, stop) == (0, image.height)
        yield start, stop, np.asarray(image if whole else image.crop((0, start, image.width, stop)))


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 274
PILLOW_BLOCK = 64 << 20
"""Bytes of a picture that Pillow asks for at once: of 16 MiB, its default, the C library keeps what was freed."""
_GREY, _RGB, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 4, 6  # "colour type" of the PNG specification
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


# Behind the end of an image: of two in one file decoders read the first and say nothing.
_ANOTHER_PNG = re.compile(rb"\x00*" + re.escape(PNG_MAGIC))
_ANOTHER_JPEG = re.compile(rb"\xff\xd9\x00*\xff\xd8\xff")


def png_pixels(content: bytes, limits: ImageLimits, background: str) -> tuple[Pixels, int]:
    """(H, W, C) pixels of a PNG, 8 or 16 bit, and the bits of its samples."""
    kept: list[bytes | memoryview] = [PNG_MAGIC]
    orientation, key, view, end = 1, b"", memoryview(content), 0
    width, height, depth, colour = png_header(content)
    limits.check_size(height, width)
    for name, start, end in _chunks(content):
        if name == b"IHDR" and start > len(PNG_MAGIC):
            raise ImageUnreadable("the PNG has two headers")  # of which a decoder would use the last
        if name == b"acTL":
            raise too_many_frames("the animated PNG")
        if name == b"eXIf":
            orientation = exif_orientation(content[start + 8 : end - 4])
        if name == b"tRNS" and colour in {_GREY, _RGB}:
            # One colour that counts as transparent: compared here, because Pillow gets it wrong below 8 bits.
            key = content[start + 8 : end - 4]
        elif name in _KEPT:
            kept.append(view[start:end])
    if _ANOTHER_PNG.match(content, end):
        raise too_many_frames("the PNG")
    plain = b"".join(kept)
    pixels = _png16(plain, colour) if depth == 16 else pillow_pixels(open_pillow(plain, "PNG"), background)
    if key:
        if len(key) != 2 * pixels.shape[2]:
            raise ImageUnreadable("the PNG's transparent colour has the wrong length")
        top = np.iinfo(pixels.dtype).max
        hidden = np.frombuffer(key, dtype=">u2").astype(np.uint32) * top // (2**depth - 1)
        for start, stop in bands(height, width):
            band = pixels[start:stop]
            band[(band == hidden).all(axis=2)] = top if background == "white" else 0
    if pixels.shape[2] in {2, 4}:
        pixels = flatten(pixels, background)
    return upright(pixels, orientation), 16 if depth == 16 else 8


def png_header(content: bytes) -> tuple[int, int, int, int]:
    """(width, height, depth, colour type) of a PNG."""
    start = len(PNG_MAGIC)
    if content[start : start + 8] != b"\0\0\0\x0dIHDR" or len(content) < start + 25:
        raise ImageUnreadable("the PNG does not begin with its header")
    width, height, depth, colour = struct.unpack_from(">IIBB", content, start + 8)
    return width, height, depth, colour


def jpeg_scan(content: bytes) -> int:
    """Where the pixels of a JPEG begin: behind its segments, which may hold small pictures of their own."""
    position = 2
    while (
        content[position : position + 1] == b"\xff"
        and (marker := content[position + 1 : position + 2]) > b"\0"
    ):
        if marker == b"\xda":
            break
        if marker == b"\xff":  # fills
            position += 1
        elif marker == b"\x01" or b"\xd0" <= marker <= b"\xd8":  # of no length
            position += 2
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return position


def jpeg_pixels(content: bytes, limits: ImageLimits) -> Pixels:
    """(H, W, C) uint8 pixels of a JPEG, upright; CMYK becomes RGB."""
    image = open_pillow(content, "JPEG")
    limits.check_size(image.height, image.width)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise too_many_frames("the JPEG (MPO)", frames)
    if _ANOTHER_JPEG.search(content, jpeg_scan(content)):
        raise too_many_frames("the JPEG")
    orientation = image.getexif().get(ORIENTATION, 1)
    return upright(pillow_pixels(image, "white"), orientation)


def npy_pixels(content: bytes, limits: ImageLimits) -> tuple[Pixels, int]:
    """(H, W, C) pixels of a .npy of real numbers and their bits; pickles are never read."""
    header, start, planes_first = _npy_header(content)
    shape = header.shape
    limits.check_size(*(shape[1:] if planes_first else shape[:2]))
    # Python's whole numbers: the product of forged lengths would wrap round in numpy's.
    size = shape[0] * shape[1] * (shape[2] if len(shape) == 3 else 1) * header.dtype.itemsize
    if size != len(content) - start:
        raise ImageUnreadable(f"the .npy claims {size} bytes of numbers, there are {len(content) - start}")
    raw = np.frombuffer(content, dtype=header.dtype, offset=start)
    array = raw.reshape(shape, order="F" if header.fortran_order else "C")
    bits = 8 * min(header.dtype.itemsize, 4)
    return settle(np.moveaxis(array, 0, 2) if planes_first else array), bits


def npy_shape(content: bytes) -> tuple[int, int, int, int]:
    """(height, width, samples, bytes of a number) of the picture in a .npy, from its header."""
    header, _, planes_first = _npy_header(content)
    shape = header.shape if len(header.shape) == 3 else (*header.shape, 1)
    samples, height, width = shape if planes_first else (shape[2], shape[0], shape[1])
    return height, width, samples, header.dtype.itemsize


def _npy_header(content: bytes) -> tuple[Header, int, bool]:
    """The header, where the numbers start, and whether the planes come first."""
    try:
        header, start = read_header(content)
    except PointsUnreadable as error:
        raise ImageUnreadable(f"the .npy cannot be read: {error.detail}", facts=error.facts) from error
    shape = header.shape
    planes_first = len(shape) == 3 and shape[2] not in {1, 3} and shape[0] in {1, 3}
    if len(shape) != 2 and not (len(shape) == 3 and (planes_first or shape[2] in {1, 3})):
        raise ImageUnreadable(
            f"a .npy of shape {str(shape)[:80]} is not one picture",
            hint="save (H, W), (H, W, 1) or (H, W, 3), one picture a file",
        )
    return header, start, planes_first


def open_pillow(content: bytes, format_name: str) -> Any:
    """The picture, opened but not decoded, as this format only: no other decoder of Pillow can be reached."""
    from PIL import Image

    if format_name == "TIFF":
        silence_libtiff()
    Image.core.set_block_size(PILLOW_BLOCK)  # type: ignore[attr-defined]  # as PILLOW_BLOCK_SIZE does
    try:
        return Image.open(io.BytesIO(content), formats=[format_name])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels, limit = re.findall(r"\d+", str(error))[:2]
        raise ImageTooLarge(
            f"{pixels} pixels, {limit} are the limit", facts={"pixels": pixels, "limit_pixels": limit}
        ) from error


def pillow_pixels(image: Any, background: str) -> Pixels:
    """(H, W, C) pixels of any of Pillow's modes, C 1 or 3; palettes and other colour spaces become RGB."""
    if "transparency" in image.info and image.mode not in {"LA", "RGBA", "PA"}:
        # A colour, or entries of the palette, that count as transparent.
        image = image.convert("LA" if image.mode in {"1", "L"} else "RGBA")
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode in {"PA", "RGBa", "RGBX"}:
        image = image.convert("RGBA" if image.mode != "RGBX" else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in {"L", "LA", "RGB", "RGBA", "I", "F"} and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    return pixels_of(image, background if image.mode in {"LA", "RGBA"} else None)


def pixels_of(image: Any, background: str | None = None) -> Pixels:
    """(H, W, C) of a Pillow image, read by bands: numpy's conversion needs three times the memory."""
    pixels: Pixels | None = None
    for start, stop, rows in rows_of(image):
        band = np.atleast_3d(rows) if background is None else flatten(rows, background)
        if pixels is None:
            pixels = np.empty((image.height, *band.shape[1:]), dtype=band.dtype)
        pixels[start:stop] = band
    assert pixels is not None
    return pixels


def exif_orientation(exif: bytes) -> int:
    """Tag 274 of a block of EXIF; 1 when there is none or the block is broken."""
    from PIL import Image

    block = Image.Exif()
    try:
        block.load(exif)
        value = block.get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 -- unreadable metadata must not fail the picture
        return 1
    return value if isinstance(value, int) else 1


def sixteen_bits(content: bytes, format_name: str, mode: str, *, byte_order: str) -> Pixels:
    """(H, W, C) uint16 of a picture for which Pillow's own modes keep only the high bytes."""
    pixels: Pixels | None = None
    for order in ("B", "L"):
        image = open_pillow(content, format_name)
        image.tile = [_retold(tile, f"{mode};16{order}") for tile in image.tile]
        if pixels is None:
            pixels = np.zeros((image.height, image.width, len(mode)), dtype=np.uint16)
        # Pillow keeps the first byte as stored with "B" and the second with "L".
        shift = 8 if (order == "B") == (byte_order == "big") else 0
        for start, stop, band in rows_of(image):
            pixels[start:stop] |= band.astype(np.uint16) << shift
    assert pixels is not None
    return pixels


def _retold(tile: Any, raw_mode: str) -> Any:
    """One of Pillow's tiles, to be unpacked as another raw mode."""
    codec, extents, offset, args = tile
    arguments = (raw_mode, *args[1:]) if isinstance(args, tuple) else raw_mode
    return (
        type(tile)(codec, extents, offset, arguments)
        if hasattr(tile, "_fields")
        else (codec, extents, offset, arguments)
    )


def _png16(content: bytes, colour: int) -> Pixels:
    """(H, W, 1 to 4) uint16 of a PNG with 16 bits a sample."""
    if colour in {_RGB, _RGB_ALPHA}:
        return sixteen_bits(content, "PNG", "RGB" if colour == _RGB else "RGBA", byte_order="big")
    image = open_pillow(content, "PNG")
    if colour == _GREY:
        return pixels_of(image).astype(np.uint16, copy=False)
    # Grey and alpha of 16 bits are four bytes per pixel, as in 8-bit RGBA.
    image.tile = [_retold(tile, "RGBA") for tile in image.tile]
    pixels: Pixels = np.empty((image.height, image.width, 2), dtype=np.uint16)
    for start, stop, band in rows_of(image):
        four = band.astype(np.uint16)
        pixels[start:stop] = four[..., 0::2] << 8 | four[..., 1::2]
    return pixels


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of the whole chunks of a PNG from the first to IEND, each with a right sum."""
    position = len(PNG_MAGIC)
    while True:
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if end > len(content):
            raise ImageUnreadable("the PNG is cut short")
        name = content[position + 4 : position + 8]
        (stated,) = struct.unpack_from(">I", content, end - 4)
        if name in _KEPT and zlib.crc32(memoryview(content)[position + 4 : end - 4]) != stated:
            raise ImageUnreadable(f"the PNG's part {name.decode()} is damaged: its sum is wrong")
        yield name, position, end
        if name == b"IEND":
            return
        position = end


_NONE, _ADOBE_DEFLATE, _DEFLATE = 1, 8, 32946
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _COLOUR = 0, 1, 2
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
        # ImageJ writes a stack behind one page, and states it only in its own tag.
        planes = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
        second = False
        with suppress(IndexError):  # `len` would look at every page of a forged file
            second = file.pages[1] is not None
        if second or page.imagedepth != 1 or planes != 1:
            frames = max(page.imagedepth, planes)
            raise too_many_frames("the TIFF", frames if frames > 1 else None)
        check_segments(page)
        if page.dtype is None or page.samplesperpixel > MAX_SAMPLES:
            raise _refused(page)
        plain = page.photometric in {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _COLOUR} and page.bitspersample >= 8
        if page.dtype != np.uint8 and plain and _readable(page, content):
            tag = page.tags.get(ORIENTATION)
            turned = int(tag.value) if tag is not None and isinstance(tag.value, int) else 1
            pixels = upright(_from_tifffile(page), turned)
        else:
            pixels = _from_pillow(content, page, background, plain=plain)
        bits = 8 * min(page.dtype.itemsize, 4)
    if pixels.shape[2] in {2, 4}:
        if pixels.dtype.name not in {"uint8", "uint16"}:
            raise ImageUnreadable(
                f"a TIFF with transparency of type {pixels.dtype}", hint="save it without alpha"
            )
        pixels = flatten(pixels, background)
    return settle(pixels), bits


def first_page(content: bytes) -> Any:
    """The first page of a TIFF, with only its tags read and the size of its tiles checked."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        check_segments(page)
        return page


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


def _from_pillow(content: bytes, page: Any, background: str, *, plain: bool) -> Pixels:
    """(H, W, C) by libtiff, upright: Pillow turns TIFFs itself; raises where Pillow would lose bits."""
    samples, kind = page.samplesperpixel, page.dtype.name
    if kind in {"uint8", "bool"}:
        return pillow_pixels(open_pillow(content, "TIFF"), background)
    exact = plain and page.planarconfig == 1 and page.photometric != _WHITE_IS_ZERO
    if exact and kind == "uint16" and samples in {3, 4}:
        return sixteen_bits(content, "TIFF", "RGB" if samples == 3 else "RGBA", byte_order=sys.byteorder)
    if not exact or samples != 1 or kind not in {"uint16", "int16", "float32"}:
        raise _refused(page)
    return pillow_pixels(open_pillow(content, "TIFF"), background).astype(kind)


def _refused(page: Any) -> ImageUnreadable:
    name = getattr(page.compression, "name", page.compression)
    bits = page.bitspersample
    return ImageUnreadable(
        f"a TIFF of {page.samplesperpixel} x {bits} bit stored as {name} cannot be read exactly here",
        hint="convert it to an uncompressed or deflated TIFF (tiffcp -c zip IN OUT), or to PNG or .npy",
    )
