"""Small pictures of large ones, for pages and sheets: one file at a time, in the range that its record says."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import DdibError, UsageError
from ddib_fed.metrics.pictures import Pictures
from ddib_fed.reports.sheets import to_pixels
from ddib_fed.reports.translations import Scale
from ddib_fed.samples.images import ImageLimits, PictureRule, encode_png, read_image, to_array

MOST_BYTES = 1 << 30
JPEG_FROM = 64
"""Pixels of the longer side from which a preview is a JPEG: as a PNG it would have three times the bytes."""
Preview = NDArray[np.uint8]


def preview(
    path: Path, side: int, *, span: tuple[float, float] | None, scale: tuple[float, float] = (1.0, 0.0)
) -> Preview | None:
    """The picture in a file, (H, W, 3) of 0 to 255, its longer side at most `side`; None if it cannot be drawn."""
    try:
        picture = read_image(path, ImageLimits(max_bytes=MOST_BYTES))
        height, width = picture.pixels.shape[:2]
        try:
            low, high = Scale(1, 1, span).numbers(picture, path, scale)
        except UsageError:
            low, high = float(picture.pixels.min()), float(picture.pixels.max())
        factor = min(1.0, side / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        rule = PictureRule(3, *size, "resize", low, max(high, low + 1e-6))
        drawn: Preview = to_pixels(to_array(picture, rule)[0][None])[0]
    except DdibError:
        return None
    return drawn


def encoded(pixels: Preview) -> bytes:
    """A preview as a file: PNG where it is small, else JPEG."""
    if max(pixels.shape[:2]) < JPEG_FROM:
        return encode_png(pixels)
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()


def squared(pixels: Preview | None, side: int) -> Pictures:
    """A preview in the middle of a white square, (3, side, side) in [-1, 1]; it is cut to every n-th pixel to fit."""
    square = np.ones((3, side, side), np.float32)
    if pixels is None:
        return square
    step = -(-max(pixels.shape[:2]) // side)
    small = pixels[::step, ::step]
    factor = max(1, side // max(small.shape[:2]))
    small = small.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = small.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = small.transpose(2, 0, 1) / 127.5 - 1
    return square
