"""Checks whether a picture's values are in a model's units, and explains what to do when they are not.

Values are raw and never rescaled. A picture is refused if its type cannot hold the model's range,
or if its values are clearly of another scale; a few values outside the range are clipped and counted,
and kept in the reference for results. Nodes, `ddib translate`, `ddib try`, `ddib evaluate` and training use this check.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Literal

import numpy as np

from ddib_fed.errors import PictureMisfit
from ddib_fed.samples.formats.decoded import Picture, Pixels

Problem = Literal["type", "scale", "unit", "window", "colour"]

TYPE_RANGES: Final = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "int16": (-32768.0, 32767.0)}
"""The range of each integer type."""
OWN_RANGES: Final = frozenset({*TYPE_RANGES.values(), (0.0, 1.0), (-1.0, 1.0)})
"""Ranges that are a complete scale: values far outside belong to another one."""
LEAST_HELD: Final = 0.95
"""Part of a model's range that a picture's type must be able to hold."""
FEW: Final = 0.01
"""Part of a picture's values too small to decide anything, like a detector's bright pixel."""
BYTE_WIDTH: Final = 128.0
"""A range within 0 to 255 that is at least so wide is one of 8 bits, whatever percentiles it was cut at."""
UNIT_WIDTH: Final = 64.0
"""Floats from -1 to 1 are no raw values of a range that is at least so wide; of one to 20 or 50, as of uptake or rain,
a faint picture has no others."""
_TOPS: Final = (4095, 16383, 65535)
"""The largest numbers of 12, 14 and 16 bits, all of which lie in files of 16."""
# Beyond a range: (widths of it that count as far, part of the values that may lie outside, widths that one value may).
# A whole scale has nothing outside but what a filter overshoots by and a bright pixel; a window of a longer scale has,
# and Hounsfield units, which go below zero, lie many widths outside a window of the brain.
_WHOLE: Final = (0.05, 1.0, 1.0)
_WINDOW: Final = (8.0, 0.5, np.inf)
_SIGNED_WINDOW: Final = (64.0, 0.95, np.inf)
_BLOCK: Final = 1 << 18
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Use:
    """Statistics of a picture's values relative to a range."""

    low: float
    high: float
    clipped: int
    outside: float
    far: float
    used: float


def measure_use(pixels: Pixels, low: float, high: float) -> Use:
    """How the values of pixels (H, W, C), of any real type, lie in the range from `low` to `high`."""
    least, most = float(pixels.min()), float(pixels.max())
    width = high - low
    slack = 1e-6 * width  # 255.00001 is a rounding of 255
    clipped = far = 0
    if least < low - slack or most > high + slack:
        reach = _allowance(pixels.dtype, low, high, least)[0] * width
        for block in _blocks(pixels):
            clipped += int(np.count_nonzero((block < low - slack) | (block > high + slack)))
            far += int(np.count_nonzero((block < low - reach) | (block > high + reach)))
    used = max(0.0, min(most, high) - max(least, low)) / width
    return Use(least, most, clipped, clipped / pixels.size, far / pixels.size, used)


def check_numbers(picture: Picture, low: float, high: float, *, windows: bool = False) -> Use:
    """How the values of a picture lie in the range of a model whose units they are."""
    use = measure_use(picture.pixels, low, high)
    problem = _problem(picture.pixels.dtype, low, high, use)
    if problem is None or (windows and problem == "window"):
        return use
    raise _misfit(_holds(picture, use), picture.pixels.dtype, problem, low, high, use)


def check_type(dtype: str, channels: int, low: float, high: float) -> None:
    """Return if numbers of a type can be in the units of a range, whatever they are."""
    nothing = Use(0.0, 0.0, 0, 0.0, 0.0, 0.0)
    if _problem(np.dtype(dtype), low, high, nothing) == "type":
        raise _misfit(f"{_mode(channels)} {dtype}", np.dtype(dtype), "type", low, high, nothing)


def check_channels(picture: Picture, channels: int, *, low: float, high: float) -> None:
    """Return if a picture has the channels of a model, or can be converted to them without loss."""
    if channels == 1 and is_coloured(picture.pixels, high - low):
        use = measure_use(picture.pixels, low, high)
        raise _misfit(_holds(picture, use), picture.pixels.dtype, "colour", low, high, use)


def is_coloured(pixels: Pixels, width: float) -> bool:
    """Whether more than `FEW` of the pixels (H, W, C) have channels that differ by a 32nd of a range's width."""
    if pixels.shape[2] == 1:
        return False
    count = 0
    for block in _blocks(pixels):
        wide = block.astype(np.float32)
        count += int(np.count_nonzero(np.ptp(wide, axis=2) > width / 32))
    return bool(count > FEW * pixels.shape[0] * pixels.shape[1])


def explain(facts: Mapping[str, str], name: str = "the picture") -> tuple[str, str]:
    """The problem with a picture and its remedy, from the facts of a `PictureMisfit`."""
    problem = facts.get("problem", "")
    if problem not in _WHY:
        return "", ""
    takes, fits = facts.get("takes", "another range"), facts.get("fits", "")
    detail = (
        f"{name} holds {facts.get('holds', 'other numbers')}; {facts.get('model', 'the model')} takes {takes}"
    )
    words = {"takes": takes, "fits": fits, "command": _command(problem, name, facts)}
    return f"{detail}: {_WHY[problem]}", _HOW[problem].format(**words)


def name_misfit(error: PictureMisfit, name: str) -> PictureMisfit:
    detail, hint = explain(error.facts, name)
    return PictureMisfit(detail or f"{name}: {error.detail}", hint=hint or error.hint, facts=error.facts)


_WHY: Final[Mapping[str, str]] = {
    "type": "its type cannot hold these values",
    "scale": "its values are of another scale",
    "unit": "its values are of another scale",
    "window": "too many of its values lie outside of that",
    "colour": "its colours would be lost",
}
_HOW: Final[Mapping[str, str]] = {
    "type": "save it in the model's own units{command}, or use a model trained with --range {fits}",
    "scale": "bring its values to {takes}{command}, or use a model trained with --range {fits}",
    "unit": "bring its values to {takes}{command}, or use a model trained with --range {fits}",
    "window": "use a model trained with --range {fits}, or clip it first if that is meant{command}",
    "colour": "make it grey if that is meant{command}, or use a model trained with --channels 3",
}


def _problem(dtype: np.dtype[np.generic], low: float, high: float, use: Use) -> Problem | None:
    """Why values of a type cannot be in the units of a range."""
    width = high - low
    span = TYPE_RANGES.get(dtype.name)
    if span is not None and min(span[1], high) - max(span[0], low) < LEAST_HELD * width:
        return "type"
    if span is None and -1 <= use.low < use.high <= 1 and width >= UNIT_WIDTH:
        return "unit"
    _, most_outside, most_beyond = allowance = _allowance(dtype, low, high, use.low)
    beyond = max(low - use.low, use.high - high)
    if use.far <= FEW and use.outside <= most_outside and beyond <= most_beyond * width:
        return None
    return "scale" if allowance == _WHOLE else "window"


def _allowance(
    dtype: np.dtype[np.generic], low: float, high: float, least: float
) -> tuple[float, float, float]:
    eight_bits = dtype == np.uint16 and low >= 0 and high <= 255 and high - low >= BYTE_WIDTH
    if (low, high) in OWN_RANGES or eight_bits:
        return _WHOLE
    return _SIGNED_WINDOW if least < 0 else _WINDOW


def _mode(channels: int) -> str:
    return "RGB" if channels == 3 else "grey"


def _holds(picture: Picture, use: Use) -> str:
    pixels = picture.pixels
    return f"{_mode(pixels.shape[2])} {pixels.dtype.name} from {use.low:g} to {use.high:g}"


def _misfit(
    holds: str, dtype: np.dtype[np.generic], problem: Problem, low: float, high: float, use: Use
) -> PictureMisfit:
    least, most = _own_range(dtype, problem, use)
    facts = {
        "problem": problem,
        "holds": holds,
        "takes": "grey pictures" if problem == "colour" else f"{low:g} to {high:g}",
        "fits": f"{least:g}:{most:g}",
        "range": f"{low:g}:{high:g}",
    }
    detail, hint = explain(facts)
    return PictureMisfit(detail, hint=hint, facts=facts)


def _own_range(dtype: np.dtype[np.generic], problem: Problem, use: Use) -> tuple[float, float]:
    """The probable range of a model for such pictures, judging from one picture."""
    if problem == "unit":
        return (0.0, 1.0) if use.low >= 0 else (-1.0, 1.0)
    if problem != "window" and dtype == np.uint8:
        return TYPE_RANGES["uint8"]
    if problem != "window" and dtype == np.uint16:
        return 0.0, float(next(top for top in _TOPS if use.high <= top))
    if use.low < use.high:
        return use.low, use.high
    return min(use.low, 0.0), max(use.high, 1.0)


def _command(problem: str, name: str, facts: Mapping[str, str]) -> str:
    """A command that can be pasted, if one line is enough."""
    path = PurePath(name)
    low, _, high = facts.get("range", "").partition(":")
    least, _, most = facts.get("fits", "").partition(":")
    # Text from the wire is not put into a command unchecked.
    if not path.suffix or not all(_NUMBER.fullmatch(text) for text in (low, high, least, most)):
        return ""
    made = path.with_stem(f"{path.stem}-fitted")
    to_bytes = problem == "scale" and (low, high) == ("0", "255") and " uint16 " in facts.get("holds", "")
    if path.suffix.lower() in {".npy", ".tif", ".tiff"} and problem in {"unit", "window"}:
        return _numpy(path, made.with_suffix(".npy"), _formula(problem, (low, high), (least, most)))
    if path.suffix.lower() == ".npy":
        return _numpy(path, made, f"(x * (255 / {most})).round().astype('uint8')") if to_bytes else ""
    if problem == "colour":
        return _magick(path, "-colorspace Gray", made)
    if to_bytes:
        # ImageMagick assumes the whole 16-bit scale, also if only 12 bits are used.
        share = "" if most == "65535" else f"-level 0,{100 * float(most) / 65535:.6g}% "
        return _magick(path, f"{share}-depth 8", made)
    return ""


def _formula(problem: str, taken: tuple[str, str], own: tuple[str, str]) -> str:
    """The expression that maps x from [0, 1] or [-1, 1] to a range, or into it."""
    low, high = taken
    if problem == "window":
        return f"x.clip({low}, {high})"
    width = float(high) - float(low)
    scaled = f"x * {width:.9g}" if own[0] == "0" else f"(x + 1) * {width / 2:.9g}"
    return scaled if float(low) == 0 else f"{scaled} {'-' if float(low) < 0 else '+'} {abs(float(low)):.9g}"


def _numpy(path: PurePath, made: PurePath, new: str) -> str:
    given, out = (json.dumps(str(each), ensure_ascii=False) for each in (path, made))
    load, package = ("np.load", "") if path.suffix.lower() == ".npy" else ("tifffile.imread", ", tifffile")
    code = f"import numpy as np{package}; x = {load}({given}); np.save({out}, {new})"
    return f" (python3 -c {shlex.quote(code)})"


def _magick(path: PurePath, what: str, made: PurePath) -> str:
    return f" (magick {shlex.quote(str(path))} {what} {shlex.quote(str(made))})"


def _blocks(pixels: Pixels) -> Iterator[Pixels]:
    rows = max(1, _BLOCK // max(1, pixels.shape[1] * pixels.shape[2]))
    for start in range(0, len(pixels), rows):
        yield pixels[start : start + rows]
