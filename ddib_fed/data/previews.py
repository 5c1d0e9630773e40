"""Files of pictures, volumes and points as a browser shows them: PNG or JPEG of 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.pictures import Pixels, encode_png, image_format, shown_pixels
from ddib_fed.data.points import FEW_COLUMNS, parse_npy, read_header

MEDIA: Final = {"PNG": "image/png", "JPEG": "image/jpeg"}
WINDOW: Final = (0.5, 99.5)  # percentiles of black and white
Window = tuple[float, float]  # numbers of black and white
MAX_POINTS: Final = 10_000_000
SIZE: Final = 256  # pixels of a drawing of points, height and width
_SPREAD: Final = 1.06
_PNG_BITS_AT: Final = 24  # where a PNG has the bits of a value


def preview(path: Path, window: Window | None = None) -> tuple[bytes, str]:
    """Return bytes and media type of a file as a browser shows it."""
    content = path.read_bytes()
    kind = image_format(content)
    if kind == "JPEG" or (kind == "PNG" and b"\x00" < content[_PNG_BITS_AT : _PNG_BITS_AT + 1] <= b"\x08"):
        return content, MEDIA[kind]
    shape = read_header(content).shape if kind == "NPY" else ()
    if len(shape) == 2 and shape[1] <= FEW_COLUMNS:
        pixels = density(parse_npy(content, max_bytes=len(content), max_points=MAX_POINTS))
    else:
        pixels = shown(shown_pixels(content), window)
    return encode_png(pixels), MEDIA["PNG"]


def window_of(paths: Sequence[Path]) -> Window:
    """Return the numbers between which the middle 99 % of the values of some files lie."""
    return _window(np.concatenate([shown_pixels(path.read_bytes()).ravel() for path in paths]))


def _window(values: Pixels) -> Window:
    low, high = np.percentile(values, WINDOW)
    return float(low), float(high)


def shown(values: Pixels, window: Window | None = None) -> NDArray[np.uint8]:
    """Return pixels (H, W, C) as 8 bits, the window's numbers black and white; pixels of 8 bits stay."""
    if values.dtype == np.uint8:
        return np.asarray(values, np.uint8)
    low, high = window or _window(values)
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    return np.asarray(np.clip(scaled, 0.0, 1.0) * 255.0 + 0.5, np.uint8)


def density(points: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw (SIZE, SIZE, 1) the first two coordinates of points (N, D): the darker, the more points."""
    across = points[:, 0].astype(np.float64)
    up = points[:, min(1, points.shape[1] - 1)].astype(np.float64)
    half = max(float(np.ptp(across)), float(np.ptp(up)), 1e-9) / 2 * _SPREAD
    middle = (across.max() + across.min()) / 2, (up.max() + up.min()) / 2
    edges = [np.linspace(each - half, each + half, SIZE + 1) for each in middle]
    counts, _, _ = np.histogram2d(across, up, bins=edges)
    dark = np.log1p(counts.T[::-1])
    return (255.0 - 230.0 * dark / max(float(dark.max()), 1e-9)).astype(np.uint8)[..., None]
