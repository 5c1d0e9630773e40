"""Fits a picture of any size to a model's array in [-1, 1] after a check of its units, and restores the size after.

A picture is never copied whole: its planes are converted one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddib_fed.data.pictures import Geometry, ImageLimits, Picture, Pixels, bands, cost_of, read_image, rows_of
from ddib_fed.data.points import explain, name_file
from ddib_fed.errors import PictureMisfit, SettingsInvalid, ShapeMismatch

Problem = Literal["type", "scale", "window", "colour"]

TYPE_RANGES: Final = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "int16": (-32768.0, 32767.0)}
OWN_RANGES: Final = frozenset({*TYPE_RANGES.values(), (0.0, 1.0), (-1.0, 1.0)})
"""Ranges that are a complete scale: values far outside belong to another one."""
LEAST_HELD: Final = 0.95  # part of a model's range that a picture's type must be able to hold
FEW: Final = 0.01  # part of a picture's values that decides nothing, like a detector's bright pixel
BYTE_WIDTH: Final = 128.0  # a range within 0 to 255 that is so wide has 8 bits, whatever percentiles cut it
UNIT_WIDTH: Final = 64.0
"""Floats in [-1, 1] are no raw values of so wide a range; a faint picture of one to 20 or 50, as of rain, has them."""
_TOPS: Final = {"uint8": (255,), "uint16": (4095, 16383, 65535)}  # 12 and 14 bits lie in files of 16, too
# Beyond a range: (widths of it that count as far, part of the values that may lie outside, widths that one value may).
# A whole scale has nothing outside but what a filter overshoots by and a bright pixel; a window of a longer scale has,
# and Hounsfield units, which go below zero, lie many widths outside a window of the brain.
_WHOLE: Final = (0.05, 1.0, 1.0)
_WINDOW: Final = (8.0, 0.5, np.inf)
_SIGNED_WINDOW: Final = (64.0, 0.95, np.inf)
LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow has it


@dataclass(frozen=True, slots=True)
class Use:
    """Statistics of a picture's values relative to a range."""

    low: float
    high: float
    clipped: int
    outside: float
    far: float
    used: float


def check_numbers(picture: Picture, low: float, high: float, *, windows: bool = False) -> Use:
    """Return statistics of a picture's values; raise PictureMisfit unless they are in the units of a range."""
    pixels, width = picture.pixels, high - low
    least, most = float(pixels.min()), float(pixels.max())
    slack = 1e-6 * width  # 255.00001 is a rounding of 255
    clipped = far = 0
    if least < low - slack or most > high + slack:
        reach = _allowance(pixels.dtype, low, high, least)[0] * width
        for start, stop in bands(*pixels.shape[:2]):
            block = pixels[start:stop]
            clipped += int(np.count_nonzero((block < low - slack) | (block > high + slack)))
            far += int(np.count_nonzero((block < low - reach) | (block > high + reach)))
    used = max(0.0, min(most, high) - max(least, low)) / width
    use = Use(least, most, clipped, clipped / pixels.size, far / pixels.size, used)
    problem = _problem(pixels.dtype, low, high, use)
    if problem is not None and not (windows and problem == "window"):
        raise _misfit(pixels, problem, low, high, use)
    return use


def check_fit(picture: Picture, rule: PictureRule, *, windows: bool = False, grey: bool = False) -> Use:
    """Raise PictureMisfit unless a picture is in the units and colours of a model; arguments as of `fit_picture`."""
    use = check_numbers(picture, rule.low, rule.high, windows=windows)
    if rule.channels == 1 and not grey and picture.pixels.shape[2] == 3:
        # Whether more than a few pixels have channels that differ by a 32nd of the range's width.
        least = (rule.high - rule.low) / 32
        height, width, _ = picture.pixels.shape
        blocks = (picture.pixels[start:stop].astype(np.float32) for start, stop in bands(height, width))
        count = sum(int(np.count_nonzero(np.ptp(block, axis=2) > least)) for block in blocks)
        if count > FEW * height * width:
            raise _misfit(picture.pixels, "colour", rule.low, rule.high, use)
    return use


def _problem(dtype: np.dtype[np.generic], low: float, high: float, use: Use) -> Problem | None:
    """Return why values of a type cannot be in the units of a range; None if they can."""
    width = high - low
    span = TYPE_RANGES.get(dtype.name)
    if span is not None and min(span[1], high) - max(span[0], low) < LEAST_HELD * width:
        return "type"
    if span is None and -1 <= use.low < use.high <= 1 and width >= UNIT_WIDTH:
        return "scale"
    _, most_outside, most_beyond = allowance = _allowance(dtype, low, high, use.low)
    beyond = max(low - use.low, use.high - high)
    if use.far <= FEW and use.outside <= most_outside and beyond <= most_beyond * width:
        return None
    return "scale" if allowance == _WHOLE else "window"


def _allowance(dtype: np.dtype[Any], low: float, high: float, least: float) -> tuple[float, float, float]:
    eight_bits = dtype == np.uint16 and low >= 0 and high <= 255 and high - low >= BYTE_WIDTH
    if (low, high) in OWN_RANGES or eight_bits:
        return _WHOLE
    return _SIGNED_WINDOW if least < 0 else _WINDOW


def _misfit(pixels: Pixels, problem: Problem, low: float, high: float, use: Use) -> PictureMisfit:
    least, most = _own_range(pixels.dtype, problem, use)
    colours = "RGB" if pixels.shape[2] == 3 else "grey"
    facts = {
        "problem": problem,
        "holds": f"{colours} {pixels.dtype.name} from {use.low:g} to {use.high:g}",
        "takes": "grey pictures" if problem == "colour" else f"{low:g} to {high:g}",
        "fits": f"{least:g}:{most:g}",
        "range": f"{low:g}:{high:g}",
    }
    detail, hint = explain(facts)
    return PictureMisfit(detail, hint=hint, facts=facts)


def _own_range(dtype: np.dtype[np.generic], problem: Problem, use: Use) -> tuple[float, float]:
    """Return the probable range of a model for such pictures, judging from one picture."""
    if problem == "scale" and dtype.kind == "f" and -1 <= use.low < use.high <= 1:
        return (0.0, 1.0) if use.low >= 0 else (-1.0, 1.0)
    if problem != "window" and dtype.name in _TOPS:
        return 0.0, float(next(top for top in _TOPS[dtype.name] if use.high <= top))
    if use.low < use.high:
        return use.low, use.high
    return min(use.low, 0.0), max(use.high, 1.0)


Array = NDArray[np.float32]
Fit = Literal["pad", "crop", "resize"]

MIN_LEVELS = 16  # a narrower range is stretched over the type on output instead of being rounded


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
        sized = self.channels in {1, 3} and min(self.height, self.width) >= 1 and self.bits in {8, 16}
        ranged = np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high
        if not (sized and ranged and self.fit in {"pad", "crop", "resize"}):
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
class Fitted:
    samples: Array
    original: Array
    geometry: Geometry
    use: Use


class _Plan(NamedTuple):
    """Halved, then scaled to (height, width); its window, of (rows, columns), is put to a place in the array."""

    halvings: int
    height: int
    width: int
    window: tuple[slice, slice]
    place: tuple[slice, slice]
    size: tuple[int, int]


def fit_picture(picture: Picture, rule: PictureRule, *, windows: bool = False, grey: bool = False) -> Fitted:
    """Convert a picture for a model, after the check of its units.

    With `windows` a range may be a window of a longer scale; with `grey` colours may become grey.
    """
    use = check_fit(picture, rule, windows=windows, grey=grey)
    samples, geometry = to_array(picture, rule)
    original = _array(picture, rule, clip=False) if use.clipped else samples
    return Fitted(samples, original, geometry, use)


def read_fitted(path: Path, rule: PictureRule, *, windows: bool = False, grey: bool = False) -> Fitted:
    """Read the picture in a file, converted for a model; arguments as of `read_image` and `fit_picture`."""
    picture = read_image(path)
    try:
        return fit_picture(picture, rule, windows=windows, grey=grey)
    except PictureMisfit as error:
        raise name_file(error, str(path)) from error


def to_array(picture: Picture, rule: PictureRule) -> tuple[Array, Geometry]:
    """Return the array (C, H, W) of a picture, float32 in [-1, 1], and its size."""
    return _array(picture, rule, clip=True), Geometry(*picture.pixels.shape[:2])


def _array(picture: Picture, rule: PictureRule, *, clip: bool) -> Array:
    """Without clipping, values outside the range lie beyond [-1, 1]."""
    plan = _plan(rule, Geometry(*picture.pixels.shape[:2]))
    out = np.full((rule.channels, rule.height, rule.width), -1.0, dtype=np.float32)
    for channel, plane in enumerate(_planes(picture.pixels, rule.channels)):
        scaled = plane
        if plane.shape != (plan.height, plan.width):
            image = _pillow(plane) if plane.dtype == np.uint8 else _unit_image(plane, rule, clip=clip)
            for _ in range(plan.halvings):
                image = _resize(image, image.height // 2, image.width // 2, box=True)
            scaled = np.asarray(_resize(image, plan.height, plan.width))
        elif plane.dtype != np.uint8:
            scaled = _unit(plane, rule, clip=clip)
        if scaled.dtype == np.uint8:
            scaled = _unit(scaled, rule, clip=clip)
        # Grey becomes RGB by repetition.
        out[(slice(None) if picture.pixels.shape[2] == 1 else channel, *plan.place)] = scaled[plan.window]
    return out.clip(-1.0, 1.0) if clip else out  # resizing overshoots


def file_range(
    pixels: Pixels, span: tuple[float, float] | None, scale: tuple[float, float]
) -> tuple[float, float] | None:
    """Return the numbers in a file that are black and white: of a span of raw values, or of its whole type."""
    if span is not None:
        slope, intercept = scale
        return (span[0] - intercept) / slope, (span[1] - intercept) / slope
    return (0.0, float(np.iinfo(pixels.dtype).max)) if pixels.dtype.kind == "u" else None


def from_array(x: Array, rule: PictureRule, geometry: Geometry | None = None) -> Pixels:
    """Return the picture of a model's array (C, H, W) as numbers for a file, with the fit undone."""
    wanted = (rule.channels, rule.height, rule.width)
    if x.shape != wanted:
        facts = {"shape": str(x.shape), "expected": str(wanted)}
        raise ShapeMismatch(f"the array is {x.shape}, not {wanted}", facts=facts)
    slope, intercept = (np.float32(part) for part in rule.output_scale)
    scale, low = np.float32((rule.high - rule.low) / 2), np.float32(rule.low)
    kind = np.uint8 if rule.bits == 8 else np.uint16
    pixels: Pixels = np.empty((*_size_of(rule, geometry), rule.channels), dtype=kind)
    for channel, start, stop, band in _restored(x, rule, geometry):
        raw = (band + np.float32(1)) * scale + low
        pixels[start:stop, :, channel] = np.rint((raw - intercept) / slope).clip(0, rule.top)
    return pixels


def _restored(
    x: Array, rule: PictureRule, geometry: Geometry | None
) -> Iterator[tuple[int, int, int, Array]]:
    """Yield (channel, start, stop, these rows) of a model's array with the fit undone, in [-1, 1]."""
    if geometry is not None:
        x = x[(slice(None), *_plan(rule, geometry).place)]
    size = _size_of(rule, geometry)
    for channel, plane in enumerate(np.asarray(x, dtype=np.float32).clip(-1.0, 1.0)):
        if plane.shape == size:
            yield from ((channel, start, stop, plane[start:stop]) for start, stop in bands(*size))
            continue
        for start, stop, band in rows_of(_resize(_pillow(plane), *size)):
            yield channel, start, stop, band.clip(-1.0, 1.0)


def fitted_size(rule: PictureRule, geometry: Geometry) -> tuple[int, int] | None:
    """Return (H, W) to which a picture is scaled for a model; None for its own size."""
    plan = _plan(rule, geometry)
    scaled = (plan.height, plan.width)
    return None if scaled == geometry else scaled


def own_size_mse(x: Array, rule: PictureRule, picture: Picture) -> float:
    """Return the mean squared error in [-1, 1] of a model's array, the fit undone, to the fitted picture."""
    geometry = Geometry(*picture.pixels.shape[:2])
    plan, (height, width) = _plan(rule, geometry), _size_of(rule, geometry)
    top, left = (
        min(round(at * whole / scaled), whole - part)
        for at, whole, scaled, part in (
            (plan.window[0].start, geometry.height, plan.height, height),
            (plan.window[1].start, geometry.width, plan.width, width),
        )
    )
    planes = list(_planes(picture.pixels[top : top + height, left : left + width], rule.channels))
    total = 0.0
    for channel, start, stop, band in _restored(x, rule, geometry):
        wanted = planes[min(channel, len(planes) - 1)]
        gap = band - _unit(wanted[start:stop], rule, clip=False)
        total += float(np.square(gap, dtype=np.float64).sum())
    return total / (rule.channels * height * width)


FIXED: Final = 32 << 20  # memory of decoders, for a large picture


def memory_of(content: bytes, limits: ImageLimits, rule: PictureRule) -> int:
    """Return the most bytes needed to read this file and write a picture of its size, without the file."""
    cost = cost_of(content, limits)
    lying = Geometry(cost.geometry.width, cost.geometry.height)
    after = max(
        max(cost.pixels + _input_bytes(way, cost.itemsize, rule), output_bytes(way, rule))
        for way in (cost.geometry, lying)
    )
    return fixed_bytes(cost.geometry) + max(cost.decoding, after)


def fixed_bytes(geometry: Geometry) -> int:
    return min(FIXED, (1 << 20) + 64 * geometry.height * geometry.width)


def _input_bytes(geometry: Geometry, itemsize: int, rule: PictureRule) -> int:
    """Return the most bytes that `to_array` needs beside a picture with numbers of `itemsize` bytes."""
    plan = _plan(rule, geometry)
    first = (geometry.height // 2, geometry.width // 2) if plan.halvings else (plan.height, plan.width)
    of_one = 1 if itemsize == 1 else 4
    return of_one * geometry.height * geometry.width + _resize_bytes(geometry, first, of_one)


def output_bytes(geometry: Geometry, rule: PictureRule) -> int:
    """Return the most bytes needed to make a PNG of this size from a model's array, or to compare them."""
    plan, (height, width) = _plan(rule, geometry), _size_of(rule, geometry)
    numbers = height * width * rule.channels * rule.bits // 8
    plane = _resize_bytes(plan.size, (height, width), 4)
    return numbers + max(plane, numbers)  # a PNG of noise is as large as its numbers


def _resize_bytes(size: tuple[int, int], wanted: tuple[int, int], itemsize: int) -> int:
    """Return the most bytes needed for a plane (H, W), the intermediate one and the result of its resizing."""
    (height, width), (to_height, to_width) = size, wanted
    between = max(height * to_width, width * to_height)
    return itemsize * (height * width + between + to_height * to_width)


def _plan(rule: PictureRule, geometry: Geometry) -> _Plan:
    (h, w), model = geometry, (rule.height, rule.width)
    if rule.fit == "pad":
        scale = min(1.0, rule.height / h, rule.width / w)
        height, width = (min(a, max(1, round(b * scale))) for a, b in zip(model, (h, w), strict=True))
        place = _part((rule.height - height) // 2, (rule.width - width) // 2, height, width)
        halvings = _halvings(h, w, height, width)
        return _Plan(halvings, height, width, _part(0, 0, height, width), place, (height, width))
    halvings = _halvings(h, w, *model)
    if rule.fit == "resize":
        return _Plan(halvings, *model, _part(0, 0, *model), _part(0, 0, *model), model)
    # As in the public loader, the scale is that of the halved picture, whose odd last row or column is gone.
    h, w = h >> halvings, w >> halvings
    scale = max(rule.height / h, rule.width / w)
    height, width = max(rule.height, round(h * scale)), max(rule.width, round(w * scale))
    window = _part((height - rule.height) // 2, (width - rule.width) // 2, *model)
    return _Plan(halvings, height, width, window, _part(0, 0, *model), model)


def _part(top: int, left: int, height: int, width: int) -> tuple[slice, slice]:
    return slice(top, top + height), slice(left, left + width)


def _halvings(h: int, w: int, height: int, width: int) -> int:
    count = 0
    while h >= 2 * height and w >= 2 * width:
        h, w, count = h // 2, w // 2, count + 1
    return count


def _size_of(rule: PictureRule, geometry: Geometry | None) -> tuple[int, int]:
    """Return (H, W) of the output for a model's array: the original's, or for ``crop`` the cropped part's."""
    if geometry is None:
        return rule.height, rule.width
    plan = _plan(rule, geometry)
    return (
        max(1, round(plan.size[0] * geometry.height / plan.height)),
        max(1, round(plan.size[1] * geometry.width / plan.width)),
    )


def _planes(pixels: Pixels, channels: int) -> Iterator[Pixels]:
    """Yield the planes (H, W) of pixels (H, W, C); one grey plane of colours for a model of grey pictures."""
    if pixels.shape[2] == 1 or channels == 3:
        yield from np.moveaxis(pixels, 2, 0)
        return
    grey: Pixels = np.empty(pixels.shape[:2], np.uint8 if pixels.dtype == np.uint8 else np.float32)
    for start, stop in bands(*grey.shape):
        block = pixels[start:stop]
        if block.dtype == np.uint8:
            grey[start:stop] = _pillow(block).convert("L")
        else:
            grey[start:stop] = block.astype(np.float32) @ np.array(LUMA, np.float32)
    yield grey


def _unit(plane: Pixels, rule: PictureRule, *, clip: bool) -> Array:
    unit = plane.astype(np.float32)
    unit -= np.float32(rule.low)
    unit *= np.float32(2 / (rule.high - rule.low))
    unit -= np.float32(1)
    return np.clip(unit, -1.0, 1.0, out=unit) if clip else unit


def _unit_image(plane: Pixels, rule: PictureRule, *, clip: bool) -> Any:
    """Return the unit values as a Pillow image, made block by block: a large plane is never in memory twice."""
    image = Image.new("F", plane.shape[::-1])
    for start, stop in bands(*plane.shape):
        image.paste(_pillow(_unit(plane[start:stop], rule, clip=clip)), (0, start))
    return image


def _pillow(plane: Pixels) -> Any:
    """Return a plane as a Pillow image: mode ``L`` of uint8, ``F`` of float32."""
    return Image.fromarray(np.ascontiguousarray(plane))


def _resize(image: Any, height: int, width: int, *, box: bool = False) -> Any:
    """Resize a Pillow image by its box filter, or else its bicubic one."""
    kind = Image.Resampling.BOX if box else Image.Resampling.BICUBIC
    return image if image.size == (width, height) else image.resize((width, height), resample=kind)
