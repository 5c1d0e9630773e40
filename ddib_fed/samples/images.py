"""Decodes picture files and encodes PNGs without metadata.

The content decides the format, never the name; a file's claims are checked before it is decoded;
output has no metadata. The map between pictures and a model's arrays is in `fitting`, and is exported here too.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ddib_fed.errors import (
    FileMissing,
    ImageTooLarge,
    ImageUnreadable,
    KindMismatch,
    PictureMisfit,
    ShapeMismatch,
)
from ddib_fed.samples.fitting import (
    Fit,
    Fitted,
    Geometry,
    PictureRule,
    check_fit,
    fit_picture,
    from_array,
    to_array,
    to_raw,
)
from ddib_fed.samples.formats.decoded import FORMATS, ImageLimits, Picture, Pixels, faults_as_unreadable
from ddib_fed.samples.formats.png_jpeg_npy import PNG_MAGIC, jpeg_pixels, npy_pixels, png_pixels
from ddib_fed.samples.formats.tiff import tiff_pixels
from ddib_fed.samples.kinds import name_file, refuse_points
from ddib_fed.samples.points import MAGIC as NPY_MAGIC
from ddib_fed.samples.units import name_misfit

__all__ = [
    "FORMATS",
    "Fit",
    "Fitted",
    "Geometry",
    "ImageLimits",
    "Picture",
    "PictureRule",
    "Pixels",
    "check_fit",
    "decode_image",
    "encode_png",
    "fit_picture",
    "from_array",
    "image_format",
    "read_fitted",
    "read_image",
    "to_array",
    "to_raw",
]

_MAGICS = (
    (PNG_MAGIC, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (NPY_MAGIC, "NPY"),
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
