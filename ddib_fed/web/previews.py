"""What a browser can show of a file: pictures of more than 8 bits in their own window, points as a density.

Files that a browser shows as they are (8-bit PNG and JPEG) are given as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import KindMismatch
from ddib_fed.samples.formats.decoded import Pixels
from ddib_fed.samples.images import encode_png, image_format, read_image
from ddib_fed.samples.kinds import FEW_COLUMNS
from ddib_fed.samples.points import parse_npy, read_header

MEDIA: Final = {"PNG": "image/png", "JPEG": "image/jpeg"}
WINDOW: Final = (0.5, 99.5)
"""Percentiles of the values that are shown black and white."""
Window = tuple[float, float]
"""The numbers that are shown black and white."""
MAX_POINTS: Final = 10_000_000
SIZE: Final = 256
"""Pixels of a drawing of points, height and width."""
_SPREAD: Final = 1.06
_PNG_BITS_AT: Final = 24
"""Where a PNG says how many bits a value has."""


def preview(path: Path, window: Window | None = None) -> tuple[bytes, str]:
    """Bytes and media type of what a browser shows."""
    content = path.read_bytes()
    kind = image_format(content)
    if kind == "JPEG" or (kind == "PNG" and b"\x00" < content[_PNG_BITS_AT : _PNG_BITS_AT + 1] <= b"\x08"):
        return content, MEDIA[kind]
    pixels = density(_points(content)) if kind == "NPY" and _is_points(content) else _of_picture(path, window)
    return encode_png(pixels), MEDIA["PNG"]


def _is_points(content: bytes) -> bool:
    shape = read_header(content)[0].shape
    return len(shape) == 2 and shape[1] <= FEW_COLUMNS


def _points(content: bytes) -> NDArray[Any]:
    return parse_npy(content, max_bytes=len(content), max_points=MAX_POINTS)


def _of_picture(path: Path, window: Window | None) -> NDArray[np.uint8]:
    pixels = read_image(path).pixels
    return shown(pixels, window or own_window(pixels))


def own_window(values: Pixels) -> Window:
    """The numbers between which the middle 99 % of some values lie; those of 8 bits have all."""
    if values.dtype == np.uint8:
        return 0.0, 255.0
    low, high = np.percentile(values, WINDOW)
    return float(low), float(high)


def shown(values: Pixels, window: Window) -> NDArray[np.uint8]:
    """Pixels (H, W, C) as 8 bits, the window's numbers black and white; those of 8 bits are as they are."""
    if values.dtype == np.uint8:
        return np.asarray(values, np.uint8)
    low, high = window
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    return np.asarray(np.clip(scaled, 0.0, 1.0) * 255.0 + 0.5, np.uint8)


def density(points: NDArray[Any]) -> NDArray[np.uint8]:
    """A drawing (SIZE, SIZE, 1) of the first two coordinates of points (N, D): the darker, the more points."""
    if points.ndim != 2 or points.shape[0] == 0 or points.shape[1] == 0:
        raise KindMismatch(f"an array of shape {points.shape} is no set of points")
    across = points[:, 0].astype(np.float64)
    up = points[:, min(1, points.shape[1] - 1)].astype(np.float64)
    half = max(float(np.ptp(across)), float(np.ptp(up)), 1e-9) / 2 * _SPREAD
    middle = (across.max() + across.min()) / 2, (up.max() + up.min()) / 2
    edges = [np.linspace(each - half, each + half, SIZE + 1) for each in middle]
    counts, _, _ = np.histogram2d(across, up, bins=edges)
    dark = np.log1p(counts.T[::-1])
    return (255.0 - 230.0 * dark / max(float(dark.max()), 1e-9)).astype(np.uint8)[..., None]
