"""Decodes picture files and encodes PNGs without metadata.

The content decides the format, never the name; a file's claims are checked before it is decoded; output has no
metadata. What decoding takes is known from the header.
"""

from __future__ import annotations

import io
import shlex
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Final, Literal, NamedTuple

import numpy as np

from ddib_fed.data.decoding import (
    ORIENTATION,
    PNG_MAGIC,
    ImageLimits,
    Picture,
    Pixels,
    faults_as_unreadable,
    first_page,
    jpeg_pixels,
    jpeg_scan,
    npy_pixels,
    npy_shape,
    open_pillow,
    png_header,
    png_pixels,
    segment_bytes,
    tiff_pixels,
)
from ddib_fed.data.fitting import (
    Fitted,
    Geometry,
    PictureRule,
    explain,
    fit_picture,
    input_bytes,
    name_misfit,
    output_bytes,
)
from ddib_fed.data.points import MAGIC, Header, read_header
from ddib_fed.errors import (
    DdibError,
    FileMissing,
    ImageTooLarge,
    ImageUnreadable,
    KindMismatch,
    PictureMisfit,
    PointsUnreadable,
    ShapeMismatch,
)

MANY_ROWS: Final = 16
FEW_COLUMNS: Final = 4
"""Fewer columns than any picture of at least `MANY_ROWS` rows."""
SOME_COLUMNS: Final = 16
"""Floats in so few columns and `MANY_ROWS` times as many rows are points, too."""


def refuse_points(content: bytes) -> None:
    """Return if a file expected to be a picture is not a .npy of points (N, D)."""
    header = _header(content)
    if header is None or len(header.shape) != 2:
        return
    rows, columns = header.shape
    narrow = columns <= FEW_COLUMNS and rows >= MANY_ROWS
    floats = header.dtype.kind == "f" and columns <= SOME_COLUMNS and rows >= MANY_ROWS * columns
    if columns and (narrow or floats):
        raise _mismatch(f"points, {rows} x {columns}", "pictures")


def refuse_picture(content: bytes, dim: int | None = None) -> None:
    """Return if a .npy expected to be points (N, D) is not a picture."""
    header = _header(content)
    if header is None:
        return
    shape = header.shape
    planes = len(shape) == 3 and (shape[2] in {1, 3, 4} or shape[0] in {1, 3})
    plane = (
        len(shape) == 2
        and header.dtype.kind == "u"
        and FEW_COLUMNS < shape[1] != dim
        and shape[0] < MANY_ROWS * shape[1]
    )
    if planes or plane:
        size = " x ".join(map(str, shape))[:60]
        raise _mismatch(f"a picture, {size}", f"points (N, {dim or 'D'})")


def picture_for_points(what: str, dim: int) -> KindMismatch:
    return _mismatch(f"a picture ({what})", f"points (N, {dim})")


def name_file(error: DdibError, name: str) -> DdibError:
    """The same error for a file of this name; its text is written again with the name."""
    if isinstance(error, PictureMisfit | KindMismatch):
        return name_misfit(error, name)
    if isinstance(error, ImageTooLarge) and "limit_pixels" in error.facts:
        return _too_many_pixels(error, name)
    if name not in error.detail:
        error.detail = f"{name}: {error.detail}"
        error.args = (error.detail,)
    return error


def _too_many_pixels(error: ImageTooLarge, name: str) -> ImageTooLarge:
    pixels, limit = (str(error.facts.get(key, "")) for key in ("pixels", "limit_pixels"))
    if not (
        pixels.isdecimal() and limit.isdecimal()
    ):  # text from the wire is not put into a command unchecked
        return error
    path = PurePath(name)
    smaller, most = path.with_name(f"{path.stem}-smaller.png"), shlex.quote(f"{limit}@>")
    return ImageTooLarge(
        f"{name} has {int(pixels):,} pixels, {int(limit):,} are the limit",
        hint=f"magick {shlex.quote(name)} -resize {most} {shlex.quote(str(smaller))}   (or -crop it); the limit of "
        "a node is [limits] max_pixels in its node.toml",
        facts=error.facts,
        hop=error.hop,
    )


def _mismatch(holds: str, takes: str) -> KindMismatch:
    facts = {"holds": holds, "takes": takes}
    detail, hint = explain(facts)
    return KindMismatch(detail, hint=hint, facts=facts)


def _header(content: bytes) -> Header | None:
    """The header of a .npy; None for anything else, and for a header that the decoder will refuse."""
    if content[:6] != MAGIC:
        return None
    try:
        return read_header(content)[0]
    except PointsUnreadable:
        return None


_MAGICS = (
    (PNG_MAGIC, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (MAGIC, "NPY"),
)
# Common formats that are not supported: the error says how to convert them.
_OTHERS = (
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (8, b"WEBP", "WebP"),
    (4, b"ftyp", "HEIC, AVIF or a film"),
    (0, b"\0\0\0\x0cjP", "JPEG 2000"),
    (128, b"DICM", "DICOM"),
    (344, b"n+1\0", "NIfTI"),
    (0, b"\x1f\x8b", "a gzip archive (NIfTI?)"),
    (0, b"PK\x03\x04", "a zip archive (.npz?)"),
    (0, b"%PDF", "PDF"),
)


def image_format(content: bytes) -> str | None:
    return next((name for magic, name in _MAGICS if content.startswith(magic)), None)


def decode_image(
    content: bytes,
    limits: ImageLimits | None = None,
    *,
    background: Literal["white", "black"] = "white",
) -> Picture:
    """The one picture in the bytes of a PNG, JPEG, TIFF or .npy."""
    limits = limits or ImageLimits()
    limits.check_bytes(len(content))
    kind = image_format(content)
    if kind is None or kind not in limits.formats:
        raise _unaccepted(content, kind, limits)
    refuse_points(content)
    bits = 8
    with faults_as_unreadable(kind):
        if kind == "PNG":
            pixels, bits = png_pixels(content, limits, background)
        elif kind == "JPEG":
            pixels = jpeg_pixels(content, limits)
        elif kind == "TIFF":
            pixels, bits = tiff_pixels(content, limits, background)
        else:
            pixels, bits = npy_pixels(content, limits)
    return Picture(pixels if pixels.flags.writeable else pixels.copy(), bits, kind)


def read_image(
    path: Path, limits: ImageLimits | None = None, *, background: Literal["white", "black"] = "white"
) -> Picture:
    """The picture in a file; see `decode_image`."""
    content = read_content(path, limits or ImageLimits())
    try:
        return decode_image(content, limits, background=background)
    except (KindMismatch, ImageTooLarge) as error:
        raise name_file(error, str(path)) from error


def read_fitted(
    path: Path,
    rule: PictureRule,
    limits: ImageLimits | None = None,
    *,
    windows: bool = False,
    grey: bool = False,
) -> Fitted:
    """The picture in a file, converted for a model; arguments as of `read_image` and `fit_picture`."""
    picture = read_image(path, limits)
    try:
        found = fit_picture(picture, rule, windows=windows, grey=grey)
        return replace(found, read=lambda: read_image(path, limits))  # one in memory at a time
    except PictureMisfit as error:
        raise name_misfit(error, str(path)) from error


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
    file = io.BytesIO()
    if pixels.dtype == np.uint8:
        # Pillow filters rows as the standard recommends, pypng does not: smaller files.
        from PIL import Image

        image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        del pixels  # Pillow has a copy: callers that hold no other have the memory for the file
        image.save(file, "PNG")
    else:
        import png  # Pillow has no 16-bit colour

        writer = png.Writer(width=width, height=height, greyscale=channels == 1, bitdepth=16)
        writer.write(file, pixels.reshape(height, width * channels))
    return file.getvalue()


def _unaccepted(content: bytes, kind: str | None, limits: ImageLimits) -> ImageUnreadable:
    accepted = ", ".join(limits.formats)
    seen = kind or next((name for at, magic, name in _OTHERS if content[at:].startswith(magic)), None)
    what = f"the file is {seen or 'nothing that begins like a picture'}" if content else "the file is empty"
    return ImageUnreadable(
        f"{what}; accepted are {accepted}",
        hint="convert it to PNG, 16-bit TIFF or .npy first" if seen else "is it a complete picture file?",
        facts={"formats": accepted},
    )


_PNG_SAMPLES: Final = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}
"""By colour type."""
_PALETTE: Final = 3
FIXED = 32 << 20
"""Of a large picture: what decoders keep for themselves."""


class PictureCost(NamedTuple):
    """What a header says: memory needs in bytes, for decoding and of the pixels; size, and the numbers of a pixel."""

    decoding: int
    pixels: int
    itemsize: int
    geometry: Geometry
    dtype: str
    channels: int


def memory_of(content: bytes, limits: ImageLimits, rule: PictureRule) -> int:
    """Upper bound of the memory to read this file and write a picture of its size, in bytes; without the file."""
    cost = cost_of(content, limits)
    lying = Geometry(cost.geometry.width, cost.geometry.height)
    after = max(
        max(cost.pixels + input_bytes(way, cost.itemsize, rule), output_bytes(way, rule))
        for way in (cost.geometry, lying)
    )
    return fixed_bytes(cost.geometry) + max(cost.decoding, after)


def fixed_bytes(geometry: Geometry) -> int:
    return min(FIXED, (1 << 20) + 64 * geometry.height * geometry.width)


def cost_of(content: bytes, limits: ImageLimits) -> PictureCost:
    """Memory needed for decoding, from the header: of Pillow's picture (4 bytes a pixel but for grey), of the pixels as
    read, and of the copy in which they are flat or upright.
    """
    kind, extra, dtype = image_format(content) or "", 0, ""
    height, width, most, flat, itemsize = 1, 1, 0, 0, 1
    with faults_as_unreadable(kind):
        if kind == "PNG":
            width, height, depth, colour = png_header(content)
            samples, itemsize = _PNG_SAMPLES.get(colour, 4), 2 if depth == 16 else 1
            flat = (1 if samples < 3 else 3) * itemsize
            held = itemsize if samples == 1 else 4
            converted = 4 if colour == _PALETTE else 0  # to another of Pillow's pictures
            read = samples * itemsize if itemsize == 2 else flat
            most = max(held + converted + read, read + flat)
            extra, dtype = len(content), f"uint{8 * itemsize}"
        elif kind == "JPEG":
            image = open_pillow(content, "JPEG")
            height, width, samples, dtype = image.height, image.width, len(image.getbands()), "uint8"
            held, flat = (1, 1) if samples == 1 else (4, 3)
            scan = content[(start := jpeg_scan(content)) : start + 5]
            in_one = (
                scan[:2] == b"\xff\xda" and scan[4:] == bytes([samples]) and "progressive" not in image.info
            )
            coefficients = 0 if in_one else 2 * samples
            converted = 4 if samples == 4 else 0  # CMYK to another of Pillow's pictures
            most = max(held + coefficients, held + converted + flat, 2 * flat)
        elif kind == "TIFF":
            page = first_page(content)
            height, width = int(page.imagelength), int(page.imagewidth)
            samples, whole = max(1, int(page.samplesperpixel)), max(1, int(page.bitspersample) // 8)
            stored, itemsize = samples * whole, min(whole, 4)
            flat = (1 if samples < 3 else 3) * (whole if whole <= 2 else 4)
            # Separate planes, rotated and inverted pictures are copied once more as stored.
            moved = page.planarconfig == 2 or page.photometric == 0 or ORIENTATION in page.tags
            by_pillow = 8 + max(flat, 4) if whole <= 4 else 0
            most = max(stored + (max(stored, flat) if moved else flat), by_pillow)
            extra = 2 * segment_bytes(page) + len(content)
        elif kind == "NPY":
            height, width, samples, whole = npy_shape(content)
            flat, itemsize = samples * (whole if whole <= 2 else 4), min(whole, 4)
            most = 2 * flat
    limits.check_size(height, width)
    count = height * width
    return PictureCost(
        count * most + extra, count * flat, itemsize, Geometry(height, width), dtype, flat // itemsize
    )
