"""Resizes one plane of a picture with Pillow's filters, without whole copies on the way in and out.

Pillow resizes the whole plane, because the order of its two passes determines the rounding;
its input and output are copied by bands of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[Any]
"""(H, W), uint8 or float32."""
ReadRows = Callable[[int, int], Plane]
"""Rows `start` to `stop` of a plane, (stop - start, W)."""

BAND = 1 << 18
"""Numbers in a band, as far as one row is not more already."""


def bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, BAND // max(1, width))
    return ((start, min(start + step, height)) for start in range(0, height, step))


def to_pillow(read: ReadRows, height: int, width: int) -> Any:
    """A plane as Pillow's: mode ``L`` of uint8, ``F`` of float32."""
    from PIL import Image

    image = None
    for start, stop in bands(height, width):
        band = Image.fromarray(np.ascontiguousarray(read(start, stop)))
        if image is None:
            image = band if stop == height else Image.new(band.mode, (width, height))
        if image is not band:
            image.paste(band, (0, start))
    return image


def rows_of(image: Any) -> Iterator[tuple[int, int, Plane]]:
    """(start, stop, these rows) of one of Pillow's pictures, each (rows, W) or (rows, W, C)."""
    for start, stop in bands(image.height, image.width):
        whole = (start, stop) == (0, image.height)
        yield start, stop, np.asarray(image if whole else image.crop((0, start, image.width, stop)))


def resize(image: Any, height: int, width: int, *, box: bool = False) -> Any:
    """One of Pillow's pictures at another size: by its box filter, or else its bicubic one."""
    from PIL import Image

    kind = Image.Resampling.BOX if box else Image.Resampling.BICUBIC
    return image if image.size == (width, height) else image.resize((width, height), resample=kind)


def resize_rows(image: Any, height: int, width: int, start: int, stop: int) -> Any:
    """The rows from `start` to `stop` of `resize(image, height, width)`, but for its rounding."""
    from PIL import Image

    box = (0.0, start * image.height / height, float(image.width), stop * image.height / height)
    return image.resize((width, stop - start), resample=Image.Resampling.BICUBIC, box=box)


def resize_bytes(size: tuple[int, int], wanted: tuple[int, int], itemsize: int) -> int:
    """Bytes needed at most for a plane (H, W) and its resizing: the plane, the intermediate one, the result."""
    (height, width), (to_height, to_width) = size, wanted
    between = max(height * to_width, width * to_height)
    return itemsize * (height * width + between + to_height * to_width)
