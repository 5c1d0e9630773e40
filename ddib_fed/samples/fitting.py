"""Fits a picture of any size to a model's array in [-1, 1], and restores the size afterwards.

A picture is never copied whole: its planes are converted band by band, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import SettingsInvalid, ShapeMismatch
from ddib_fed.samples.formats.decoded import Picture, Pixels
from ddib_fed.samples.resampling import (
    BAND,
    ReadRows,
    bands,
    resize,
    resize_bytes,
    resize_rows,
    rows_of,
    to_pillow,
)
from ddib_fed.samples.units import Use, check_channels, check_numbers

Array = NDArray[np.float32]
Fit = Literal["pad", "crop", "resize"]

BYTES_A_BAND = 32
"""What a band takes for each of its numbers while it is converted: a few copies of four or eight bytes."""
MIN_LEVELS = 16
"""A range narrower than this many whole numbers is stretched over the type on output instead of being rounded."""


@dataclass(frozen=True, slots=True)
class PictureRule:
    """The array format and file format of a model."""

    channels: int
    height: int
    width: int
    fit: Fit = "resize"
    low: float = 0.0
    high: float = 255.0
    bits: int = 8

    def __post_init__(self) -> None:
        wrong = (
            self.channels not in {1, 3}
            or self.height < 1
            or self.width < 1
            or self.fit not in {"pad", "crop", "resize"}
            or self.bits not in {8, 16}
            or not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high)
        )
        if wrong:
            raise SettingsInvalid(f"no such rule for pictures: {self}")

    @property
    def top(self) -> int:
        return 255 if self.bits == 8 else 65535

    @property
    def output_scale(self) -> tuple[float, float]:
        """(slope, intercept): raw value = slope * number in the output file + intercept."""
        if self.low >= 0 and self.high <= self.top and self.high - self.low >= MIN_LEVELS:
            return 1.0, 0.0
        return (self.high - self.low) / self.top, self.low


@dataclass(frozen=True, slots=True)
class Geometry:
    """The original's height and width, upright, in pixels."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """A picture converted for a model."""

    samples: Array
    original: Array
    geometry: Geometry
    use: Use
    read: Callable[[], Picture]


class _Plan(NamedTuple):
    """Halved, then scaled to (height, width); its window at (top, left) meets the array at (to_top, to_left)."""

    halvings: int
    height: int
    width: int
    top: int
    left: int
    to_top: int
    to_left: int
    rows: int
    columns: int


def check_fit(picture: Picture, rule: PictureRule, *, windows: bool = False, grey: bool = False) -> Use:
    """How the values of a picture lie in the range of a model whose units they are; arguments as of `fit_picture`."""
    use = check_numbers(picture, rule.low, rule.high, windows=windows)
    if not grey:
        check_channels(picture, rule.channels, low=rule.low, high=rule.high)
    return use


def fit_picture(picture: Picture, rule: PictureRule, *, windows: bool = False, grey: bool = False) -> Fitted:
    """A picture converted for a model, after the check of its units."""
    use = check_fit(picture, rule, windows=windows, grey=grey)
    samples, geometry = to_array(picture, rule)
    original = _array(picture, rule, clip=False) if use.clipped else samples
    return Fitted(samples, original, geometry, use, lambda: picture)


def to_array(picture: Picture, rule: PictureRule) -> tuple[Array, Geometry]:
    return _array(picture, rule, clip=True), Geometry(*picture.pixels.shape[:2])


def _array(picture: Picture, rule: PictureRule, *, clip: bool) -> Array:
    """(C, H, W) float32; without clipping, values outside the range lie beyond [-1, 1]."""
    geometry = Geometry(*picture.pixels.shape[:2])
    plan = _plan(rule, geometry)
    out = np.full((rule.channels, rule.height, rule.width), -1.0, dtype=np.float32)
    for channel, read in enumerate(_planes(picture.pixels, rule, clip=clip)):
        scaled = _fit(read, geometry, plan)
        if scaled.dtype == np.uint8:
            scaled = _unit(scaled, rule, clip=clip)
        window = scaled[plan.top : plan.top + plan.rows, plan.left : plan.left + plan.columns]
        # Grey becomes RGB by repetition.
        where = slice(None) if picture.pixels.shape[2] == 1 else channel
        out[where, plan.to_top : plan.to_top + plan.rows, plan.to_left : plan.to_left + plan.columns] = window
    return out.clip(-1.0, 1.0) if clip else out  # resizing overshoots


def to_raw(x: Array, rule: PictureRule, geometry: Geometry | None = None) -> Array:
    """The picture of a model's array in raw values, with the fit undone."""
    _check_shape(x, rule)
    height, width = _size_of(rule, geometry)
    raw = np.empty((height, width, rule.channels), dtype=np.float32)
    for channel, start, stop, band in _raw_bands(x, rule, geometry):
        raw[start:stop, :, channel] = band
    return raw


def from_array(x: Array, rule: PictureRule, geometry: Geometry | None = None) -> Pixels:
    """The picture of a model's array as numbers for a file, with the fit undone."""
    _check_shape(x, rule)
    slope, intercept = rule.output_scale
    kind = np.uint8 if rule.bits == 8 else np.uint16
    pixels: Pixels = np.empty((*_size_of(rule, geometry), rule.channels), dtype=kind)
    for channel, start, stop, raw in _raw_bands(x, rule, geometry):
        numbers = np.rint((raw - np.float32(intercept)) / np.float32(slope))
        pixels[start:stop, :, channel] = numbers.clip(0, rule.top).astype(kind)
    return pixels


def fitted_size(rule: PictureRule, geometry: Geometry) -> tuple[int, int] | None:
    """(H, W) to which a picture is scaled for a model; None where that is its own size."""
    plan = _plan(rule, geometry)
    scaled = (plan.height, plan.width)
    return None if scaled == (geometry.height, geometry.width) else scaled


def own_size_mse(x: Array, rule: PictureRule, picture: Picture) -> float:
    """Mean squared error, values from -1 to 1, of a model's array whose fit is undone to the picture that was
    fitted.
    """
    geometry = Geometry(*picture.pixels.shape[:2])
    plan, (height, width) = _plan(rule, geometry), _size_of(rule, geometry)
    top, left = (
        min(round(at * whole / scaled), whole - part)
        for at, whole, scaled, part in (
            (plan.top, geometry.height, plan.height, height),
            (plan.left, geometry.width, plan.width, width),
        )
    )
    window = x[:, plan.to_top : plan.to_top + plan.rows, plan.to_left : plan.to_left + plan.columns]
    given = list(_planes(picture.pixels, rule, clip=False))
    total = 0.0
    for channel, plane in enumerate(window.clip(-1.0, 1.0).astype(np.float32)):
        image, read = to_pillow(_rows(plane), *plane.shape), given[min(channel, len(given) - 1)]
        for start, stop in bands(height, width):
            made = np.asarray(resize_rows(image, height, width, start, stop)).clip(-1.0, 1.0)
            rows = read(top + start, top + stop)[:, left : left + width]
            wanted = _unit(rows, rule, clip=False) if rows.dtype == np.uint8 else rows
            total += float(np.square(made - wanted, dtype=np.float64).sum())
    return total / (rule.channels * height * width)


def input_bytes(geometry: Geometry, itemsize: int, rule: PictureRule) -> int:
    """Bytes that `to_array` needs at most in addition to the picture; `itemsize` is that of the picture's numbers."""
    plan, size = _plan(rule, geometry), (geometry.height, geometry.width)
    first = (size[0] // 2, size[1] // 2) if plan.halvings else (plan.height, plan.width)
    return resize_bytes(size, first, 1 if itemsize == 1 else 4) + _band_bytes(*size)


def output_bytes(geometry: Geometry, rule: PictureRule) -> int:
    """Bytes needed at most to make a PNG of this size from a model's array."""
    plan, (height, width) = _plan(rule, geometry), _size_of(rule, geometry)
    numbers = height * width * rule.channels * rule.bits // 8
    plane = resize_bytes((plan.rows, plan.columns), (height, width), 4)
    copied = height * width * (4 if rule.channels == 3 else 1) if rule.bits == 8 else numbers
    return numbers + max(plane, copied) + _band_bytes(height, width)


def _band_bytes(height: int, width: int) -> int:
    return BYTES_A_BAND * min(height * width, max(BAND, width))


def _plan(rule: PictureRule, geometry: Geometry) -> _Plan:
    h, w = geometry.height, geometry.width
    if rule.fit == "pad":
        scale = min(1.0, rule.height / h, rule.width / w)
        height, width = (min(a, max(1, round(b * scale))) for a, b in ((rule.height, h), (rule.width, w)))
        to_top, to_left = (rule.height - height) // 2, (rule.width - width) // 2
        return _Plan(_halvings(h, w, height, width), height, width, 0, 0, to_top, to_left, height, width)
    halvings = _halvings(h, w, rule.height, rule.width)
    if rule.fit == "resize":
        return _Plan(halvings, rule.height, rule.width, 0, 0, 0, 0, rule.height, rule.width)
    # As in the public loader, the scale is that of the halved picture, whose odd last row or column is gone.
    h, w = h >> halvings, w >> halvings
    scale = max(rule.height / h, rule.width / w)
    height, width = max(rule.height, round(h * scale)), max(rule.width, round(w * scale))
    top, left = (height - rule.height) // 2, (width - rule.width) // 2
    return _Plan(halvings, height, width, top, left, 0, 0, rule.height, rule.width)


def _halvings(h: int, w: int, height: int, width: int) -> int:
    count = 0
    while h >= 2 * height and w >= 2 * width:
        h, w, count = h // 2, w // 2, count + 1
    return count


def _check_shape(x: Array, rule: PictureRule) -> None:
    wanted = (rule.channels, rule.height, rule.width)
    if x.shape != wanted:
        raise ShapeMismatch(
            f"the array is {x.shape}, not {wanted}", facts={"shape": str(x.shape), "expected": str(wanted)}
        )


def _size_of(rule: PictureRule, geometry: Geometry | None) -> tuple[int, int]:
    """(H, W) of the output for a model's array: the original's, or for ``crop`` the cropped part's."""
    if geometry is None:
        return rule.height, rule.width
    plan = _plan(rule, geometry)
    return (
        max(1, round(plan.rows * geometry.height / plan.height)),
        max(1, round(plan.columns * geometry.width / plan.width)),
    )


def _raw_bands(
    x: Array, rule: PictureRule, geometry: Geometry | None
) -> Iterator[tuple[int, int, int, Array]]:
    """(channel, start, stop, raw values of these rows) of a model's array with the fit undone."""
    scale, low = np.float32((rule.high - rule.low) / 2), np.float32(rule.low)
    model = np.asarray(x, dtype=np.float32).clip(-1.0, 1.0)
    if geometry is not None:
        plan = _plan(rule, geometry)
        rows = slice(plan.to_top, plan.to_top + plan.rows)
        model = model[:, rows, plan.to_left : plan.to_left + plan.columns]
    for channel, plane in enumerate(model):
        scaled = resize(to_pillow(_rows(plane), *plane.shape), *_size_of(rule, geometry))
        for start, stop, band in rows_of(scaled):
            yield channel, start, stop, (band.clip(-1.0, 1.0) + np.float32(1)) * scale + low


def _fit(read: ReadRows, geometry: Geometry, plan: _Plan) -> Pixels:
    image = to_pillow(read, geometry.height, geometry.width)
    for _ in range(plan.halvings):
        image = resize(image, image.height // 2, image.width // 2, box=True)
    scaled: Pixels = np.asarray(resize(image, plan.height, plan.width))
    return scaled


def _rows(plane: Pixels) -> ReadRows:
    return lambda start, stop: plane[start:stop]


def _unit(pixels: Pixels, rule: PictureRule, *, clip: bool) -> Array:
    scaled = (pixels.astype(np.float32) - np.float32(rule.low)) * np.float32(2 / (rule.high - rule.low))
    unit: Array = np.subtract(scaled, np.float32(1), dtype=np.float32)
    return np.clip(unit, -1.0, 1.0) if clip else unit


def _planes(pixels: Pixels, rule: PictureRule, *, clip: bool) -> Iterator[ReadRows]:
    if pixels.shape[2] == 3 and rule.channels == 1:
        yield lambda start, stop: _in_range(_grey(pixels[start:stop]), rule, clip=clip)
        return
    for channel in range(pixels.shape[2]):
        yield partial(_channel_rows, pixels, channel, rule, clip)


def _channel_rows(
    pixels: Pixels, channel: int, rule: PictureRule, clip: bool, start: int, stop: int
) -> Pixels:
    return _in_range(pixels[start:stop, :, channel], rule, clip=clip)


def _in_range(plane: Pixels, rule: PictureRule, *, clip: bool) -> Pixels:
    return plane if plane.dtype == np.uint8 else _unit(plane, rule, clip=clip)


def _grey(pixels: Pixels) -> Pixels:
    """(H, W) from RGB (H, W, 3) by luma: 0.299 R + 0.587 G + 0.114 B."""
    if pixels.dtype == np.uint8:
        from PIL import Image

        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
    grey: Array = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return grey
