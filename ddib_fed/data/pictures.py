"""Decodes PNG, JPEG, TIFF and .npy files to pixels, volumes to voxels, and encodes PNGs without metadata.

The content decides the format, never the name; a file's claims, and what decoding takes, are checked before. A PNG is
stripped to its critical chunks. A TIFF is read by tifffile where that needs no more packages, else by libtiff. Sixteen
bits stay sixteen bits: what would lose some is refused.
"""

from __future__ import annotations

import ctypes
import functools
import io
import math
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

from ddib_fed.data.points import MAGIC, Header, name_file, npy_bytes, read_header, refuse_points
from ddib_fed.errors import (
    DdibError,
    FileMissing,
    ImageTooLarge,
    ImageUnreadable,
    InputError,
    PointsUnreadable,
    ShapeMismatch,
)

Pixels = NDArray[Any]
FORMATS = ("PNG", "JPEG", "TIFF", "NPY")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 274  # tag of EXIF and of TIFF
PILLOW_BLOCK = 64 << 20
"""Bytes of a picture that Pillow asks for at once: of 16 MiB, its default, the C library keeps what was freed."""
BAND = 1 << 16  # pixels of a band, as far as one row is not more already
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6  # "colour type" of the PNG specification
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# Behind the end of an image: of two in one file decoders read the first and say nothing.
_ANOTHER_PNG = re.compile(rb"\x00*" + re.escape(PNG_MAGIC))
_ANOTHER_JPEG = re.compile(rb"\xff\xd9\x00*\xff\xd8\xff")
_MAGICS = (
    (PNG_MAGIC, "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"), (MAGIC, "NPY"),
)  # fmt: skip
# Common formats that are not supported: the error names them.
_OTHERS = (
    (0, b"GIF8", "GIF"), (0, b"BM", "BMP"), (8, b"WEBP", "WebP"), (4, b"ftyp", "HEIC, AVIF or a film"),
    (0, b"\0\0\0\x0cjP", "JPEG 2000"), (128, b"DICM", "DICOM"), (344, b"n+1\0", "NIfTI"),
    (0, b"\x1f\x8b", "a gzip archive (NIfTI?)"), (0, b"PK\x03\x04", "a zip archive (.npz?)"), (0, b"%PDF", "PDF"),
)  # fmt: skip
_NONE, _ADOBE_DEFLATE, _DEFLATE = 1, 8, 32946
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _COLOUR = 0, 1, 2
_SEPARATE = 2
MAX_SAMPLES = 4
MOST_PADDING, SMALL_SEGMENT = 4, 1 << 22
"""A deflated TIFF may unpack to this many times its picture, and so many bytes more."""
INFLATED_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits that are checked by headers before anything is decoded: of a node, the client, the receiver and pages."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 89_000_000
    formats: tuple[str, ...] = FORMATS
    max_memory: int = 5 << 30
    """Bytes that reading one picture, or a whole series, volume or map, may take at most."""

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

    def check_memory(self, size: int, hint: str = "cut it into parts", what: str = "it") -> None:
        if size > self.max_memory:
            size_mib, limit_mib = size >> 20, self.max_memory >> 20
            raise ImageTooLarge(
                f"{what} takes {size_mib} MiB of memory to decode, {limit_mib} are the limit",
                hint=hint,
                facts={"memory_mib": size_mib, "limit_mib": limit_mib},
            )


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded picture (H, W, C), upright, without transparency: uint8, uint16, int16 or float32."""

    pixels: Pixels
    format: str

    @property
    def bits(self) -> int:
        return 8 * self.pixels.dtype.itemsize


class Geometry(NamedTuple):
    """The original's height and width, upright, in pixels."""

    height: int
    width: int


def image_format(content: bytes) -> str | None:
    return next((name for magic, name in _MAGICS if content.startswith(magic)), None)


def decode_image(content: bytes, limits: ImageLimits | None = None) -> Picture:
    """The one picture in the bytes of a PNG, JPEG, TIFF or .npy."""
    limits = limits or ImageLimits()
    limits.check_bytes(len(content))
    kind = image_format(content)
    if kind is None or kind not in limits.formats:
        raise _unaccepted(content, kind, limits)
    decode = {"PNG": _png_pixels, "JPEG": _jpeg_pixels, "TIFF": _tiff_pixels, "NPY": _npy_pixels}[kind]
    cost_of(content, limits)
    with faults_as_unreadable(kind):
        pixels = decode(content)
    return Picture(pixels if pixels.flags.writeable else pixels.copy(), kind)


def read_image(path: Path, limits: ImageLimits | None = None) -> Picture:
    """The picture in a file; see `decode_image`. Errors name the file."""
    content = read_content(path, limits or ImageLimits())
    try:
        return decode_image(content, limits)
    except InputError as error:
        raise name_file(error, str(path)) from error


def read_content(path: Path, limits: ImageLimits) -> bytes:
    """The bytes of a file, at most one more than the limit."""
    try:
        with path.open("rb") as file:
            limits.check_bytes(path.stat().st_size)
            return file.read(limits.max_bytes + 1)
    except FileNotFoundError as error:
        raise FileMissing(f"no such picture: {path}") from error
    except OSError as error:
        raise ImageUnreadable(f"{path} cannot be opened: {error.strerror}") from error


def encode_png(pixels: Pixels) -> bytes:
    """A PNG of the pixels and nothing else: no text, time, profile or resolution; the same for the same pixels."""
    if pixels.ndim != 3 or pixels.shape[2] not in {1, 3} or 0 in pixels.shape:
        raise ShapeMismatch(
            f"an array of shape {pixels.shape} is no picture", facts={"expected": "(H, W, 1 or 3)"}
        )
    if pixels.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        raise ShapeMismatch(f"{pixels.dtype} is no type of a PNG", facts={"expected": "uint8 or uint16"})
    height, width, channels = pixels.shape
    step, colour = channels * pixels.itemsize, _GREY if channels == 1 else _RGB
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, 0)
    packer, file = zlib.compressobj(), io.BytesIO()
    file.write(PNG_MAGIC + _chunk(b"IHDR", header))
    for start, stop in bands(height, width):
        band = np.ascontiguousarray(pixels[start:stop], pixels.dtype.newbyteorder(">"))
        samples = band.view(np.uint8).reshape(stop - start, -1)
        rows = np.insert(samples, 0, 1, axis=1)  # filter 1: differences from the pixel on the left
        rows[:, 1 + step :] -= samples[:, :-step]
        if packed := packer.compress(rows.tobytes()):
            file.write(_chunk(b"IDAT", packed))
    file.write(_chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b""))
    return file.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _unaccepted(content: bytes, kind: str | None, limits: ImageLimits) -> ImageUnreadable:
    accepted = ", ".join(limits.formats)
    seen = kind or next((name for at, magic, name in _OTHERS if content[at:].startswith(magic)), None)
    what = f"the file is {seen or 'nothing that begins like a picture'}" if content else "the file is empty"
    return ImageUnreadable(
        f"{what}; accepted are {accepted}",
        hint="convert it to PNG, 16-bit TIFF or .npy first" if seen else "is it a complete picture file?",
        facts={"formats": accepted},
    )


def too_many_frames(what: str, frames: int | None = None) -> ImageTooLarge:
    """The error for a file of several pictures; `frames` when the number is known."""
    count = f"{frames} frames" if frames else "more than one frame"
    return ImageTooLarge(
        f"{what} holds {count}, one is the limit",
        hint="write each frame or slice to a separate file",
        facts={"frames": frames or "several", "limit_frames": 1},
    )


@contextmanager
def faults(what: str, hint: str, hop: str = "") -> Iterator[None]:
    """Raise ImageUnreadable for whatever a library raises inside: on a damaged or forged file it may be anything."""
    try:
        yield
    except DdibError:
        raise
    except Exception as error:  # MemoryError included
        why = f"{type(error).__name__}: {error}".partition("\nTraceback")[0]
        raise ImageUnreadable(f"{what}: {' '.join(why.split())[:300]}", hop=hop, hint=hint) from error


@contextmanager
def faults_as_unreadable(format_name: str) -> Iterator[None]:
    """Raise ImageUnreadable for whatever the decoder of a plain file raises inside."""
    hint = "it may be truncated or damaged: open it in a viewer and save it again"
    try:
        with faults(f"the {format_name} cannot be decoded", hint):
            yield
    except PointsUnreadable as error:
        raise ImageUnreadable(f"the .npy cannot be read: {error.detail}", facts=error.facts) from error


def bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, BAND // max(1, width))
    return ((start, min(start + step, height)) for start in range(0, height, step))


def rows_of(image: Any) -> Iterator[tuple[int, int, Pixels]]:
    """(start, stop, these rows) of one of Pillow's pictures, each (rows, W) or (rows, W, C)."""
    for start, stop in bands(image.height, image.width):
        whole = (start, stop) == (0, image.height)
        yield start, stop, np.asarray(image if whole else image.crop((0, start, image.width, stop)))


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
    return pixels


def flatten(pixels: Pixels) -> Pixels:
    """Colours over white: (c a + max (max - a)) / max, rounded to the nearest whole number."""
    top = int(np.iinfo(pixels.dtype).max)
    out = np.empty((*pixels.shape[:2], pixels.shape[2] - 1), dtype=pixels.dtype)
    # The wide numbers of a large picture would be eight times its size.
    for start, stop in bands(*pixels.shape[:2]):
        wide = pixels[start:stop].astype(np.uint64)
        colour, alpha = wide[..., :-1], wide[..., -1:]
        out[start:stop] = (colour * alpha + top * (top - alpha) + top // 2) // top
    return out


def upright(pixels: Pixels, orientation: object) -> Pixels:
    """The upright picture, by EXIF's tag 274 (1 to 8; other values count as 1)."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def open_pillow(content: bytes, format_name: str) -> Any:
    """The picture, opened but not decoded, as this format only: no other decoder of Pillow can be reached."""
    Image.core.set_block_size(PILLOW_BLOCK)  # type: ignore[attr-defined]  # as PILLOW_BLOCK_SIZE does
    try:
        return Image.open(io.BytesIO(content), formats=[format_name])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels, limit = re.findall(r"\d+", str(error))[:2]
        raise ImageTooLarge(
            f"{pixels} pixels, {limit} are the limit", facts={"pixels": pixels, "limit_pixels": limit}
        ) from error


def decode_pillow(content: bytes, format_name: str) -> Pixels:
    """Return the one picture (H, W, C) in a file of a format that Pillow reads, upright; raise as `decode_image`."""
    with faults_as_unreadable(format_name), warnings.catch_warnings(action="ignore", category=UserWarning):
        image = open_pillow(content, format_name)
        ImageLimits().check_size(image.height, image.width)
        return _one_upright(image, format_name)


def _one_upright(image: Any, format_name: str) -> Pixels:
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise too_many_frames(f"the {format_name}", frames)
    orientation = image.getexif().get(ORIENTATION, 1)
    return upright(pillow_pixels(image), orientation)


def pillow_pixels(image: Any) -> Pixels:
    """(H, W, C) pixels of any of Pillow's modes, C 1 or 3; palettes and other colour spaces become RGB."""
    if "transparency" in image.info and image.mode not in {"LA", "RGBA", "PA"}:
        # A colour, or entries of the palette, that count as transparent.
        image = image.convert("LA" if image.mode in {"1", "L"} else "RGBA")
    wanted = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB", "1": "L"}.get(image.mode)
    if wanted or (
        image.mode not in {"L", "LA", "RGB", "RGBA", "I", "F"} and not image.mode.startswith("I;16")
    ):
        image = image.convert(wanted or "RGB")
    return pixels_of(image, flat=image.mode in {"LA", "RGBA"})


def pixels_of(image: Any, *, flat: bool = False) -> Pixels:
    """(H, W, C) of a Pillow image, read by bands: numpy's conversion needs three times the memory."""
    pixels: Pixels | None = None
    for start, stop, rows in rows_of(image):
        band = flatten(rows) if flat else np.atleast_3d(rows)
        if pixels is None:
            pixels = np.empty((image.height, *band.shape[1:]), dtype=band.dtype)
        pixels[start:stop] = band
    assert pixels is not None
    return pixels


def sixteen_bits(content: bytes, format_name: str, mode: str, *, byte_order: str) -> Pixels:
    """(H, W, C) uint16 of a picture for which Pillow's own modes keep only the high bytes."""
    pixels: Pixels | None = None
    for order in ("B", "L"):
        image = _unpacked_as(open_pillow(content, format_name), f"{mode};16{order}")
        if pixels is None:
            pixels = np.zeros((image.height, image.width, len(mode)), dtype=np.uint16)
        # Pillow keeps the first byte as stored with "B" and the second with "L".
        shift = 8 if (order == "B") == (byte_order == "big") else 0
        for start, stop, band in rows_of(image):
            pixels[start:stop] |= band.astype(np.uint16) << shift
    assert pixels is not None
    return pixels


def _unpacked_as(image: Any, raw_mode: str) -> Any:
    """One of Pillow's pictures, whose tiles will be unpacked as another raw mode."""
    for number, (codec, extents, offset, args) in enumerate(image.tile):
        arguments = (raw_mode, *args[1:]) if isinstance(args, tuple) else raw_mode
        image.tile[number] = type(image.tile[number])(codec, extents, offset, arguments)
    return image


def _png_pixels(content: bytes) -> Pixels:
    """(H, W, C) pixels of a PNG, 8 or 16 bit."""
    kept: list[bytes | memoryview] = [PNG_MAGIC]
    orientation: object = 1
    key, view, end = b"", memoryview(content), 0
    width, height, depth, colour = _png_header(content)
    for name, start, end in _chunks(content):
        if name == b"IHDR" and start > len(PNG_MAGIC):
            raise ImageUnreadable("the PNG has two headers")  # of which a decoder would use the last
        if name == b"acTL":
            raise too_many_frames("the animated PNG")
        if name == b"eXIf":
            orientation = _exif_orientation(content[start + 8 : end - 4])
        if name == b"tRNS" and colour in {_GREY, _RGB}:
            # One colour that counts as transparent: compared here, because Pillow gets it wrong below 8 bits.
            key = content[start + 8 : end - 4]
        elif name in _KEPT:
            kept.append(view[start:end])
    if _ANOTHER_PNG.match(content, end):
        raise too_many_frames("the PNG")
    plain = b"".join(kept)
    pixels = _png16(plain, colour) if depth == 16 else pillow_pixels(open_pillow(plain, "PNG"))
    if key:
        if len(key) != 2 * pixels.shape[2]:
            raise ImageUnreadable("the PNG's transparent colour has the wrong length")
        top = np.iinfo(pixels.dtype).max
        hidden = np.frombuffer(key, dtype=">u2").astype(np.uint32) * top // (2**depth - 1)
        for start, stop in bands(height, width):
            band = pixels[start:stop]
            band[(band == hidden).all(axis=2)] = top
    if pixels.shape[2] in {2, 4}:
        pixels = flatten(pixels)
    return upright(pixels, orientation)


def _png_header(content: bytes) -> tuple[int, int, int, int]:
    """(width, height, depth, colour type) of a PNG."""
    start = len(PNG_MAGIC)
    if content[start : start + 8] != b"\0\0\0\x0dIHDR" or len(content) < start + 25:
        raise ImageUnreadable("the PNG does not begin with its header")
    width, height, depth, colour = struct.unpack_from(">IIBB", content, start + 8)
    return width, height, depth, colour


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of the whole chunks of a PNG from the first to IEND, each with a right sum."""
    position, name = len(PNG_MAGIC), b""
    while name != b"IEND":
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if end > len(content):
            raise ImageUnreadable("the PNG is cut short")
        name = content[position + 4 : position + 8]
        stated = int.from_bytes(content[end - 4 : end], "big")
        if name in _KEPT and zlib.crc32(memoryview(content)[position + 4 : end - 4]) != stated:
            raise ImageUnreadable(f"the PNG's part {name.decode()} is damaged: its sum is wrong")
        yield name, position, end
        position = end


def _exif_orientation(exif: bytes) -> object:
    """Tag 274 of a block of EXIF; 1 when there is none or the block is broken."""
    block = Image.Exif()
    try:
        block.load(exif)
        return block.get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 -- unreadable metadata must not fail the picture
        return 1


def _png16(content: bytes, colour: int) -> Pixels:
    """(H, W, 1 to 4) uint16 of a PNG with 16 bits a sample."""
    if colour in {_RGB, _RGB_ALPHA}:
        return sixteen_bits(content, "PNG", "RGB" if colour == _RGB else "RGBA", byte_order="big")
    image = open_pillow(content, "PNG")
    if colour == _GREY:
        return pixels_of(image).astype(np.uint16, copy=False)
    # Grey and alpha of 16 bits are four bytes per pixel, as in 8-bit RGBA.
    pixels: Pixels = np.empty((image.height, image.width, 2), dtype=np.uint16)
    for start, stop, band in rows_of(_unpacked_as(image, "RGBA")):
        four = band.astype(np.uint16)
        pixels[start:stop] = four[..., 0::2] << 8 | four[..., 1::2]
    return pixels


def _jpeg_pixels(content: bytes) -> Pixels:
    """(H, W, C) uint8 pixels of a JPEG, upright; CMYK becomes RGB."""
    if _ANOTHER_JPEG.search(content, _jpeg_scan(content)):
        raise too_many_frames("the JPEG")
    return _one_upright(open_pillow(content, "JPEG"), "JPEG")


def _jpeg_scan(content: bytes) -> int:
    """Where the pixels of a JPEG begin: behind its segments, which may hold small pictures of their own."""
    position = 2
    while content[position : position + 1] == b"\xff" and (marker := content[position + 1 : position + 2]):
        if marker in {b"\0", b"\xda"}:
            break
        if marker == b"\xff":  # fills
            position += 1
        elif marker == b"\x01" or b"\xd0" <= marker <= b"\xd8":  # of no length
            position += 2
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return position


def _npy_pixels(content: bytes) -> Pixels:
    """(H, W, C) pixels of a .npy of real numbers; pickles are never read."""
    refuse_points(content)
    header, planes_first = _npy_header(content)
    array = header.numbers(content)
    return settle(np.moveaxis(array, 0, 2) if planes_first else array)


def _npy_header(content: bytes) -> tuple[Header, bool]:
    """The header, and whether the planes come first."""
    header = read_header(content)
    shape = header.shape
    planes_first = len(shape) == 3 and shape[2] not in {1, 3} and shape[0] in {1, 3}
    if len(shape) != 2 and not (len(shape) == 3 and (planes_first or shape[2] in {1, 3})):
        raise ImageUnreadable(
            f"a .npy of shape {str(shape)[:80]} is not one picture",
            hint="save (H, W), (H, W, 1) or (H, W, 3), one picture a file",
        )
    return header, planes_first


def volume_shape(header: Header) -> tuple[int, int, int, int]:
    """(D, H, W, C) of the one volume in a .npy (D, H, W) or (D, H, W, C)."""
    shape = header.shape if len(header.shape) == 4 else (*header.shape, 1)
    if len(shape) != 4 or shape[3] not in {1, 3} or 0 in shape:
        raise ImageUnreadable(
            f"a .npy of shape {str(header.shape)[:80]} is not one volume",
            hint="save (D, H, W) or (D, H, W, 3), one volume a file",
        )
    depth, height, width, channels = shape
    return depth, height, width, channels


def decode_volume(content: bytes, limits: ImageLimits | None = None) -> Pixels:
    """The voxels (D, H, W, C) in the bytes of a .npy, of a type as a `Picture`."""
    with faults_as_unreadable("NPY"):
        header = read_header(content)
        shape = volume_shape(header)
        (limits or ImageLimits()).check_memory(2 * math.prod(shape) * max(2, min(header.dtype.itemsize, 4)))
        return settle(header.numbers(content).reshape(-1, *shape[2:])).reshape(shape)


def encode_volume(voxels: Pixels) -> bytes:
    """The .npy (D, H, W), or (D, H, W, C) of colours, of voxels (D, H, W, C)."""
    return npy_bytes(voxels[..., 0] if voxels.shape[3] == 1 else voxels)


def middle_slices(volume: Pixels) -> Pixels:
    """The axial, coronal and sagittal slice (H, W, C) through the middle of (D, H, W, C), the head up, side by side."""
    depth, height, width, channels = volume.shape
    slices = volume[depth // 2], volume[::-1, height // 2], volume[::-1, :, width // 2]
    size = max(depth, height), 2 * width + height, channels
    drawn, left = np.full(size, volume.min(), volume.dtype), 0
    for each in slices:
        drawn[: each.shape[0], left : left + each.shape[1]] = each
        left += each.shape[1]
    return drawn


def holds_volume(content: bytes) -> bool:
    """Whether a file is a .npy of a volume by its shape, which is no picture's."""
    shape = read_header(content).shape if image_format(content) == "NPY" else ()
    return len(shape) == 4 or (len(shape) == 3 and not {shape[0], shape[2]} & {1, 3})


def shown_pixels(content: bytes, limits: ImageLimits | None = None) -> Pixels:
    """(H, W, C) of the picture in a file, of a volume its middle slices."""
    if holds_volume(content):
        return middle_slices(decode_volume(content, limits))
    return decode_image(content, limits).pixels


def _tiff_pixels(content: bytes) -> Pixels:
    """(H, W, C) pixels of a TIFF of one page."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        # ImageJ writes a stack behind one page, and states it only in its own tag.
        planes = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
        second = False
        with suppress(IndexError):  # `len` would look at every page of a forged file
            second = file.pages[1] is not None
        if second or page.imagedepth != 1 or planes != 1:
            frames = max(page.imagedepth, planes)
            raise too_many_frames("the TIFF", frames if frames > 1 else None)
        if page.dtype is None or page.samplesperpixel > MAX_SAMPLES:
            raise _refused(page)
        plain = page.photometric in {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _COLOUR} and page.bitspersample >= 8
        if page.dtype != np.uint8 and plain and _is_readable(page, content):
            tag = page.tags.get(ORIENTATION)
            pixels = upright(_by_tifffile(page), 1 if tag is None else tag.value)
        else:
            pixels = _by_pillow(content, page, plain=plain)
    if pixels.shape[2] in {2, 4}:
        if pixels.dtype.name not in {"uint8", "uint16"}:
            raise ImageUnreadable(
                f"a TIFF with transparency of type {pixels.dtype}", hint="save it without alpha"
            )
        pixels = flatten(pixels)
    return settle(pixels)


def _tiff_cost(content: bytes) -> tuple[int, int, int, int, int, int]:
    """Height, width, and the memory that decoding takes (see `cost_of`), from the tags of the first page:
    bytes of a pixel at most, of a pixel as read, of one of its numbers, and bytes beside the pixels.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        samples, whole = max(1, int(page.samplesperpixel)), max(1, int(page.bitspersample) // 8)
        stored = samples * whole
        flat = (1 if samples < 3 else 3) * (whole if whole <= 2 else 4)
        # Separate planes, rotated and inverted pictures are copied once more as stored.
        moved = (
            page.planarconfig == _SEPARATE or page.photometric == _WHITE_IS_ZERO or ORIENTATION in page.tags
        )
        by_pillow = 8 + max(flat, 4) if whole <= 4 else 0
        most = max(stored + (max(stored, flat) if moved else flat), by_pillow)
        extra = 2 * _segment_bytes(page) + len(content)
        return int(page.imagelength), int(page.imagewidth), most, flat, min(whole, 4), extra


def _is_readable(page: Any, content: bytes) -> bool:
    """Whether tifffile reads it without further packages, and deflated data is not larger than the picture."""
    if page.compression == _NONE:
        return True
    if page.compression not in {_ADOBE_DEFLATE, _DEFLATE} or page.predictor not in {1, 2}:
        return False
    # Bounded: zlib alone would expand a few bytes to gigabytes.
    left = page.nbytes * MOST_PADDING + SMALL_SEGMENT
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        inflater, packed = zlib.decompressobj(), content[start : start + size]
        while left >= 0 and packed and not inflater.eof:
            left -= len(inflater.decompress(packed, INFLATED_PIECE))
            packed = inflater.unconsumed_tail
        if left < 0:
            raise ImageUnreadable("the TIFF unpacks to more than its picture")
    return True


def _segment_bytes(page: Any) -> int:
    """Bytes of one decoded strip or tile, and of the row of them that a decoder may hold."""
    height = (
        page.tilelength if page.is_tiled else min(page.rowsperstrip or page.imagelength, page.imagelength)
    )
    width = page.tilewidth if page.is_tiled else page.imagewidth
    return int(height) * int(width) * int(page.samplesperpixel) * max(1, int(page.bitspersample) // 8)


def _by_tifffile(page: Any) -> Pixels:
    """(H, W, C) as stored: tifffile gives (C, H, W) for colours in separate planes."""
    array: Pixels = page.asarray()
    if array.ndim == 3 and page.planarconfig == _SEPARATE and page.samplesperpixel > 1:
        array = np.moveaxis(array, 0, 2)
    array = array.reshape(page.imagelength, page.imagewidth, -1)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if page.photometric == _WHITE_IS_ZERO and array.dtype.kind == "u":
        array = np.iinfo(array.dtype).max - array
    return array


def _by_pillow(content: bytes, page: Any, *, plain: bool) -> Pixels:
    """(H, W, C) by libtiff, upright: Pillow turns TIFFs itself; raises where Pillow would lose bits."""
    _silence_libtiff()
    samples, kind = page.samplesperpixel, page.dtype.name
    if kind in {"uint8", "bool"}:
        return pillow_pixels(open_pillow(content, "TIFF"))
    exact = plain and page.planarconfig != _SEPARATE and page.photometric != _WHITE_IS_ZERO
    if exact and kind == "uint16" and samples in {3, 4}:
        return sixteen_bits(content, "TIFF", "RGB" if samples == 3 else "RGBA", byte_order=sys.byteorder)
    if not exact or samples != 1 or kind not in {"uint16", "int16", "float32"}:
        raise _refused(page)
    return pillow_pixels(open_pillow(content, "TIFF")).astype(kind)


@functools.cache
def _silence_libtiff() -> None:
    """Silence libtiff's own error messages in this process, if its symbol is accessible in Pillow's build."""
    with suppress(OSError, AttributeError):
        # The symbol is looked up in the library that Pillow's module is linked with: its own copy, or the system's.
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def _refused(page: Any) -> ImageUnreadable:
    name = getattr(page.compression, "name", page.compression)
    return ImageUnreadable(
        f"a TIFF of {page.samplesperpixel} x {page.bitspersample} bit stored as {name} cannot be read exactly here",
        hint="convert it to an uncompressed or deflated TIFF (tiffcp -c zip IN OUT), or to PNG or .npy",
    )


class PictureCost(NamedTuple):
    """What a header says: memory needs in bytes, for decoding, of the pixels and of one number; and the size."""

    decoding: int
    pixels: int
    itemsize: int
    geometry: Geometry


def cost_of(content: bytes, limits: ImageLimits) -> PictureCost:
    """Memory needed for decoding, from the header, if within the limits: of Pillow's picture (4 bytes a pixel but for
    grey), of the pixels as read, and of the copy in which they are flat or upright.
    """
    kind, extra = image_format(content) or "", 0
    height, width, most, flat, itemsize = 1, 1, 0, 0, 1
    with faults_as_unreadable(kind):
        if kind == "PNG":
            width, height, depth, colour = _png_header(content)
            samples = {_GREY: 1, _RGB: 3, _GREY_ALPHA: 2}.get(colour, 4)
            itemsize = 2 if depth == 16 else 1
            flat = (1 if samples < 3 else 3) * itemsize
            held = itemsize if samples == 1 else 4
            converted = 4 if colour == _PALETTE else 0  # to another of Pillow's pictures
            read = samples * itemsize if itemsize == 2 else flat
            most = max(held + converted + read, read + flat)
            extra = len(content)
        elif kind == "JPEG":
            image = open_pillow(content, "JPEG")
            height, width, samples = image.height, image.width, len(image.getbands())
            held, flat = (1, 1) if samples == 1 else (4, 3)
            converted = 4 if samples == 4 else 0  # CMYK to another of Pillow's pictures
            scan = content[(start := _jpeg_scan(content)) : start + 5]
            in_one = scan[:2] == b"\xff\xda" and scan[4:] == bytes([samples])
            # Several scans are decoded from coefficients, of two bytes each.
            coefficients = 0 if in_one and "progressive" not in image.info else 2 * samples
            most = max(held + coefficients, held + converted + flat, 2 * flat)
        elif kind == "TIFF":
            height, width, most, flat, itemsize, extra = _tiff_cost(content)
        elif kind == "NPY":
            header, planes_first = _npy_header(content)
            whole = header.dtype.itemsize
            shape = header.shape if len(header.shape) == 3 else (*header.shape, 1)
            samples, height, width = shape if planes_first else (shape[2], shape[0], shape[1])
            flat, itemsize = samples * (whole if whole <= 2 else 4), min(whole, 4)
            most = 2 * flat
    limits.check_size(height, width)
    count = height * width
    limits.check_memory(count * most + extra)
    return PictureCost(count * most + extra, count * flat, itemsize, Geometry(height, width))
