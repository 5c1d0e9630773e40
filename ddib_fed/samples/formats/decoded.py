"""A decoded picture, the limits on decoding, and the mapping of library exceptions to ours.

The claimed size of a file (bytes, pixels, frames) is checked against the limits before memory is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import DdibError, ImageTooLarge, ImageUnreadable

Pixels = NDArray[Any]

FORMATS = ("PNG", "JPEG", "TIFF", "NPY")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits that are checked before a file is decoded."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 89_000_000
    formats: tuple[str, ...] = FORMATS

    def check_bytes(self, size: int) -> None:
        """Raise `ImageTooLarge` when a file of `size` bytes is over the limit."""
        if size > self.max_bytes:
            raise ImageTooLarge(
                f"{size} bytes, {self.max_bytes} are the limit",
                facts={"size_bytes": size, "limit_bytes": self.max_bytes},
            )

    def check_size(self, height: int, width: int) -> None:
        """Raise when a picture has no pixels, or more than the limit."""
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
    kind = pixels.dtype.newbyteorder("=")
    if kind == np.dtype(np.int8):
        kind = np.dtype(np.int16)
    elif kind not in {np.dtype(t) for t in (np.uint8, np.uint16, np.int16, np.float32)}:
        kind = np.dtype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        pixels = np.ascontiguousarray(pixels, dtype=kind)
    count = _not_finite(pixels) if kind.kind == "f" else 0
    if count:
        raise ImageUnreadable(
            f"{count} of {pixels.size} values are NaN or infinite",
            hint="replace them first, e.g. by numpy.nan_to_num",
            facts={"not_finite": count},
        )
    return pixels if pixels.flags.writeable else pixels.copy()


def _not_finite(pixels: Pixels) -> int:
    step = max(1, (1 << 18) // pixels.shape[1])
    return sum(
        int(np.count_nonzero(~np.isfinite(pixels[start : start + step])))
        for start in range(0, len(pixels), step)
    )


def flatten(pixels: Pixels, background: str) -> Pixels:
    """Colours over a background: (c a + b (max - a)) / max, rounded to the nearest whole number."""
    top = int(np.iinfo(pixels.dtype).max)
    behind = top if background == "white" else 0
    out = np.empty((*pixels.shape[:2], pixels.shape[2] - 1), dtype=pixels.dtype)
    rows = max(
        1, (1 << 15) // pixels.shape[1]
    )  # the wide numbers of a large picture would be eight times its size
    for start in range(0, len(pixels), rows):
        wide = pixels[start : start + rows].astype(np.uint64)
        colour, alpha = wide[..., :-1], wide[..., -1:]
        out[start : start + rows] = (colour * alpha + behind * (top - alpha) + top // 2) // top
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
