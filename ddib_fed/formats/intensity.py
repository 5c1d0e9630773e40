"""Maps the values of a volume or a map to the range of a model, by one rule for the whole file.

number = low + (value - black) / (white - black) * (high - low), clipped to [low, high]
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.pictures import Pixels, encode_png
from ddib_fed.errors import ImageUnreadable, UsageError

AUTO: Final = "auto"
PERCENTILES: Final = "percentile:0.5,99.5"
"""The rule for what has no units of its own, such as MR."""
EMPTY: Final = 0.02
"""Share of the range within which a number counts as background."""
LEAST_STEP: Final = 1e-3
"""Share of the range by which values that are sent as they are may change."""
LEAST_CONTENT: Final = 0.01
"""A plane of which a smaller part differs from the background is not sent."""
_NUMBER: Final = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_RULE: Final = re.compile(
    rf"(?P<name>values|hu|window:(?P<centre>{_NUMBER}),(?P<width>{_NUMBER})|"
    rf"percentile:(?P<least>{_NUMBER}),(?P<most>{_NUMBER}))(?:@(?P<low>{_NUMBER}):(?P<high>{_NUMBER}))?"
)
_FORMS: Final = (
    "values, hu, window:CENTRE,WIDTH or percentile:LEAST,MOST, the last two perhaps with @LOW:HIGH; "
    "widths are above 0, and percentiles ascend from 0 to 100"
)


@dataclass(frozen=True, slots=True)
class IntensityRule:
    """A rule as it is asked for, before the values are known."""

    name: str
    first: float = 0.0
    second: float = 0.0
    low: float = 0.0
    high: float = 255.0

    @classmethod
    def parse(cls, text: str) -> IntensityRule:
        """The rule in `values`, `hu`, `window:40,400`, `percentile:0.5,99.5` or `percentile:0.5,99.5@0:65535`."""
        found = _RULE.fullmatch(text)
        if found is not None:
            name = found["name"].partition(":")[0]
            first, second = (
                float(found["centre"] or found["least"] or 0),
                float(found["width"] or found["most"] or 0),
            )
            low, high = float(found["low"] or 0.0), float(found["high"] or 255.0)
            right = {"window": second > 0, "percentile": 0 <= first < second <= 100}
            if low < high and right.get(name, found["low"] is None):
                return cls(name, first, second, low, high)
        raise UsageError(
            f"--intensity {text!r} is no rule", hint=f"--intensity auto, {_FORMS} (docs/formats.md)"
        )

    @property
    def text(self) -> str:
        """The rule as `parse` takes it, without a value of any file."""
        if self.name in {"values", "hu"}:
            return self.name
        return f"{self.name}:{self.first:.12g},{self.second:.12g}@{self.low:.12g}:{self.high:.12g}"

    def on(self, values: NDArray[Any]) -> Intensity:
        if self.name in {"values", "hu"}:
            return Intensity(self.name)
        if self.name == "window":
            black, white = self.first - self.second / 2, self.first + self.second / 2
        else:
            finite = values[np.isfinite(values)]
            if not finite.size:
                raise ImageUnreadable("none of its values is finite")
            ends = float(finite.min()), float(finite.max())
            shares = (self.first, self.second)
            black, white = (float(v) for v in np.percentile(finite, shares, overwrite_input=True))
            if black == white:
                black, white = ends
            if black == white:
                raise ImageUnreadable(
                    f"all its values are {black:g}, so percentiles say nothing",
                    hint="--intensity window:CENTRE,WIDTH",
                )
        return Intensity(self.name, black, white, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Intensity:
    name: str
    black: float = 0.0
    white: float = 255.0
    low: float = 0.0
    high: float = 255.0

    @property
    def as_it_is(self) -> bool:
        return self.name in {"values", "hu"}

    def numbers(self, values: NDArray[Any]) -> Pixels:
        """The numbers of some values: uint8 or uint16 where the range allows it, else int16 or float32."""
        if self.as_it_is:
            return _narrowed(values)
        wide = np.result_type(values.dtype, np.float32).type
        share = (values.astype(wide) - wide(self.black)) / wide(self.white - self.black)
        scaled = np.nan_to_num(share, nan=0.0).clip(0.0, 1.0) * wide(self.high - self.low) + wide(self.low)
        whole = self.low >= 0 and self.low.is_integer() and self.high.is_integer() and self.high <= 65535
        made: Pixels = scaled.astype(np.float32)
        return np.rint(scaled).astype(np.uint8 if self.high <= 255 else np.uint16) if whole else made

    def record(self, values: NDArray[Any]) -> dict[str, Any]:
        """What the provenance says: the rule, its numbers, how much was clipped, and the way back."""
        if self.as_it_is:
            return {"rule": self.name, "number": "value", "inverse": "value = number", "clipped": 0.0}
        outside = np.count_nonzero((values < self.black) | (values > self.white)) / values.size
        back = (self.white - self.black) / (self.high - self.low)
        return {
            "rule": self.name,
            "black": self.black,
            "white": self.white,
            "low": self.low,
            "high": self.high,
            "number": "low + (value - black) / (white - black) * (high - low), clipped to low..high",
            "inverse": f"value = {self.black:.9g} + (number - {self.low:.9g}) * {back:.9g}",
            "clipped": round(float(outside), 6),
        }


def chosen_rule(
    text: str, values: NDArray[Any], modality: str = "", *, of_model: bool = False
) -> IntensityRule:
    """The rule that was asked for, or of the source's model; for `auto` bytes stay, CT is in Hounsfield units, and all
    else goes by percentiles.
    """
    if text == AUTO:
        usual = "hu" if modality == "CT" else PERCENTILES
        return IntensityRule.parse("values" if values.dtype == np.uint8 else usual)
    rule = IntensityRule.parse(text)
    if rule.name == "hu" and modality != "CT":
        this, other = modality or "no DICOM", "values, if its numbers are Hounsfield units"
        hint = f"--intensity {PERCENTILES if modality else other}"
        if not of_model:
            raise UsageError(f"--intensity hu is for CT, this is {this}", hint=hint)
        raise ImageUnreadable(
            f"the source's model was trained on CT in Hounsfield units, this is {this}",
            hint="a source of that kind (ddib domains)" if modality else hint,
        )
    return rule


def item_bytes(numbers: Pixels) -> bytes:
    """Pixels as the file that is sent: a PNG of 8 or 16 bits, or a .npy for numbers that a PNG cannot hold."""
    if numbers.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        return encode_png(np.ascontiguousarray(numbers))
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(numbers), allow_pickle=False)
    return file.getvalue()


def is_empty(numbers: Pixels, background: float, width: float) -> bool:
    differs = np.abs(numbers.astype(np.float32) - np.float32(background)) > EMPTY * width
    return bool(np.count_nonzero(differs) < LEAST_CONTENT * numbers.size)


def _narrowed(values: NDArray[Any]) -> Pixels:
    """Values in the smallest type that a node takes and that keeps them."""
    if values.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        return values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageUnreadable(
            "some of its values are NaN or infinite, and --intensity values sends them as they are",
            hint=f"--intensity {PERCENTILES}",
        )
    whole = values.dtype.kind in "iu" or bool(np.all(values == np.rint(values)))
    low, high = float(values.min()), float(values.max())
    if whole and low >= -32768 and high <= 32767:
        return values.astype(np.int16)
    if whole and low >= 0 and high <= 65535:
        return values.astype(np.uint16)
    made: Pixels = values.astype(np.float32)
    if np.abs(made - values).max() > LEAST_STEP * (high - low):
        raise ImageUnreadable(
            f"its values from {low:.9g} to {high:.9g} lie closer together than 32-bit floats do, which are sent",
            hint=f"--intensity {PERCENTILES}",
        )
    return made
