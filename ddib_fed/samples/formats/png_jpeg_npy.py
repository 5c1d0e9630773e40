"""Decodes PNG, JPEG and .npy files to pixels.

A PNG is stripped to its critical chunks and checked (sums, size, frames) before a decoder sees it, so that
text, profiles and animation are ignored; sixteen bits stay sixteen bits.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ddib_fed.errors import ImageTooLarge, ImageUnreadable, PointsUnreadable
from ddib_fed.samples.formats.decoded import ImageLimits, Pixels, flatten, settle, too_many_frames, upright
from ddib_fed.samples.formats.libtiff import silence_libtiff
from ddib_fed.samples.points import Header, read_header
from ddib_fed.samples.resampling import bands, rows_of

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 274
PILLOW_BLOCK = 64 << 20
"""Bytes of a picture that Pillow asks for at once: of 16 MiB, its default, the C library keeps what was freed."""
_GREY, _RGB, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 4, 6  # "colour type" of the PNG specification
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


class _Chunk(NamedTuple):
    name: bytes
    start: int
    end: int


# Behind the end of an image: of two in one file decoders read the first and say nothing.
_ANOTHER_PNG = re.compile(rb"\x00*" + re.escape(PNG_MAGIC))
_ANOTHER_JPEG = re.compile(rb"\xff\xd9\x00*\xff\xd8\xff")


def png_pixels(content: bytes, limits: ImageLimits, background: str) -> tuple[Pixels, int]:
    """(H, W, C) pixels of a PNG, 8 or 16 bit, and the bits of its samples."""
    kept: list[bytes | memoryview] = [PNG_MAGIC]
    orientation, key, view = 1, b"", memoryview(content)
    width, height, depth, colour = png_header(content)
    limits.check_size(height, width)
    chunks = list(_chunks(content))
    for chunk in chunks:
        if chunk.name == b"IHDR" and chunk is not chunks[0]:
            raise ImageUnreadable("the PNG has two headers")  # of which a decoder would use the last
        if chunk.name == b"acTL":
            raise too_many_frames("the animated PNG")
        if chunk.name == b"eXIf":
            orientation = exif_orientation(content[chunk.start + 8 : chunk.end - 4])
        if chunk.name == b"tRNS" and colour in {_GREY, _RGB}:
            # One colour that counts as transparent: compared here, because Pillow gets it wrong below 8 bits.
            key = content[chunk.start + 8 : chunk.end - 4]
        elif chunk.name in _KEPT:
            kept.append(view[chunk.start : chunk.end])
    if _ANOTHER_PNG.match(content, chunks[-1].end):
        raise too_many_frames("the PNG")
    plain = b"".join(kept)
    pixels = _png16(plain, colour) if depth == 16 else pillow_pixels(open_pillow(plain, "PNG"), background)
    if key:
        _hide(pixels, key, depth, background)
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


def _hide(pixels: Pixels, key: bytes, depth: int, background: str) -> None:
    """Put the background where a pixel has the colour `key`, which the file states in `depth` bits; in place."""
    if len(key) != 2 * pixels.shape[2]:
        raise ImageUnreadable("the PNG's transparent colour has the wrong length")
    top = np.iinfo(pixels.dtype).max
    colour = np.frombuffer(key, dtype=">u2").astype(np.uint32) * top // (2**depth - 1)
    for start, stop in bands(*pixels.shape[:2]):
        band = pixels[start:stop]
        band[(band == colour).all(axis=2)] = top if background == "white" else 0


def _chunks(content: bytes) -> Iterator[_Chunk]:
    """The chunks of a PNG from the first to IEND, each with a right sum; start and end are the whole chunk's."""
    position = len(PNG_MAGIC)
    while True:
        if position + 12 > len(content):
            raise ImageUnreadable("the PNG is cut short")
        (length,) = struct.unpack_from(">I", content, position)
        end = position + 12 + length
        if end > len(content):
            raise ImageUnreadable("the PNG is cut short")
        name = content[position + 4 : position + 8]
        (stated,) = struct.unpack_from(">I", content, end - 4)
        if name in _KEPT and zlib.crc32(memoryview(content)[position + 4 : end - 4]) != stated:
            raise ImageUnreadable(f"the PNG's part {name.decode()} is damaged: its sum is wrong")
        yield _Chunk(name, position, end)
        if name == b"IEND":
            return
        position = end
