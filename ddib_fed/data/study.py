"""What a reader makes of a file or a folder, a writer of its results; and the rule of intensity for a whole file:

number = low + (value - black) / (white - black) * (high - low), clipped to [low, high], the range of a model.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import truediv
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.fitting import FIXED
from ddib_fed.data.pictures import Pixels, bands, decode_image, decode_volume, encode_png, image_format
from ddib_fed.data.points import npy_bytes
from ddib_fed.errors import (
    ExtraMissing,
    FileMissing,
    ImageUnreadable,
    InputError,
    ItemNotFound,
    JobFailed,
    UsageError,
)
from ddib_fed.record import PictureFigures, Record

AUTO: Final = "auto"
LATENT: Final = ".latent.npy"
PERCENTILES: Final = "percentile:0.5,99.5"  # the rule for what has no units of its own, such as MR
EMPTY: Final = 0.02  # a number within this share of the range of the background counts as background
LEAST_STEP: Final = 1e-3  # share of the range by which values that are sent as they are may change
LEAST_CONTENT: Final = 0.01  # a plane of which a smaller part differs from the background is not sent
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
        """Parse `values`, `hu`, `window:40,400`, `percentile:0.5,99.5` or `percentile:0.5,99.5@0:65535`."""
        match = _RULE.fullmatch(text)
        if match is not None:
            name = match["name"].partition(":")[0]
            first = float(match["centre"] or match["least"] or 0)
            second = float(match["width"] or match["most"] or 0)
            low, high = float(match["low"] or 0.0), float(match["high"] or 255.0)
            right = {"window": second > 0, "percentile": 0 <= first < second <= 100}
            if low < high and right.get(name, match["low"] is None):
                return cls(name, first, second, low, high)
        hint = f"--intensity auto, {_FORMS} (docs/formats.md)"
        raise UsageError(f"--intensity {text!r} is no rule", hint=hint)

    @property
    def as_it_is(self) -> bool:
        return self.name in {"values", "hu"}

    @property
    def text(self) -> str:
        """The rule as `parse` takes it, without a value of any file."""
        if self.as_it_is:
            return self.name
        return f"{self.name}:{self.first:.12g},{self.second:.12g}@{self.low:.12g}:{self.high:.12g}"

    def on(self, values: NDArray[Any]) -> Intensity:
        if self.as_it_is:
            return Intensity(self)
        if self.name == "window":
            black, white = self.first - self.second / 2, self.first + self.second / 2
        else:
            finite = values[np.isfinite(values)]
            if not finite.size:
                raise ImageUnreadable("none of its values is finite")
            ends = float(finite.min()), float(finite.max())
            black, white = map(float, np.percentile(finite, (self.first, self.second), overwrite_input=True))
            if black == white:
                black, white = ends
            if black == white:
                raise ImageUnreadable(
                    f"all its values are {black:g}, so percentiles say nothing",
                    hint="--intensity window:CENTRE,WIDTH",
                )
        return Intensity(self, black, white)


@dataclass(frozen=True, slots=True)
class Intensity:
    """A rule for some values, of which black and white become the ends of its range."""

    rule: IntensityRule
    black: float = 0.0
    white: float = 255.0

    def numbers(self, values: NDArray[Any]) -> Pixels:
        """Turn values into numbers: uint8 or uint16 where the range allows it, else int16 or float32."""
        if self.rule.as_it_is:
            return _narrowed(values)
        low, high, wide = self.rule.low, self.rule.high, np.result_type(values.dtype, np.float32).type
        whole = low >= 0 and low.is_integer() and high.is_integer() and high <= 65535
        kind = np.float32 if not whole else np.uint8 if high <= 255 else np.uint16
        numbers = np.empty(values.shape, kind)
        for part in parts_of(values):
            share = (values[part].astype(wide) - wide(self.black)) / wide(self.white - self.black)
            share = np.where(np.isfinite(values[part]), share.clip(0.0, 1.0), wide(0))
            scaled = share * wide(high - low) + wide(low)
            numbers[part] = np.rint(scaled) if whole else scaled
        return numbers

    def record(self, values: NDArray[Any]) -> dict[str, Any]:
        """Return the rule, its numbers, the clipped share and the inverse, for the provenance."""
        rule = self.rule
        if rule.as_it_is:
            return {"rule": rule.name, "number": "value", "inverse": "value = number", "clipped": 0.0}
        finite = outside = 0
        for each in (values[part] for part in parts_of(values)):
            is_finite = np.isfinite(each)
            finite += int(is_finite.sum())
            outside += int((is_finite & ((each < self.black) | (each > self.white))).sum())
        back = (self.white - self.black) / (rule.high - rule.low)
        return {
            "rule": rule.name,
            "black": self.black,
            "white": self.white,
            "low": rule.low,
            "high": rule.high,
            "number": "low + (value - black) / (white - black) * (high - low), clipped to low..high",
            "inverse": f"value = {self.black:.9g} + (number - {rule.low:.9g}) * {back:.9g}",
            "clipped": round(outside / values.size, 6),
            "not_finite": values.size - finite,
        }


def chosen_rule(options: Options, values: NDArray[Any], modality: str = "") -> IntensityRule:
    """The rule that was asked for, or of the source's model; for `auto` bytes stay, CT is in Hounsfield units, and all
    else goes by percentiles.
    """
    if options.intensity == AUTO:
        usual = "hu" if modality == "CT" else PERCENTILES
        return IntensityRule.parse("values" if values.dtype == np.uint8 else usual)
    rule = IntensityRule.parse(options.intensity)
    if rule.name == "hu" and modality != "CT":
        this, other = modality or "no DICOM", "values, if its numbers are Hounsfield units"
        hint = f"--intensity {PERCENTILES if modality else other}"
        if not options.of_model:
            raise UsageError(f"--intensity hu is for CT, this is {this}", hint=hint)
        raise ImageUnreadable(
            f"the source's model was trained on CT in Hounsfield units, this is {this}",
            hint="a source of that kind (ddib domains)" if modality else hint,
        )
    return rule


def item_bytes(numbers: Pixels) -> bytes:
    """Encode pixels as the file that is sent: a PNG of 8 or 16 bits, or a .npy for other types."""
    if numbers.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        return encode_png(np.ascontiguousarray(numbers))
    return npy_bytes(numbers)


def is_empty(numbers: Pixels, background: float, width: float) -> bool:
    low, high = background - EMPTY * width, background + EMPTY * width
    differ = np.count_nonzero(numbers < low) + np.count_nonzero(numbers > high)
    return bool(differ < LEAST_CONTENT * numbers.size)


def memory_of_values(count: int, itemsize: int) -> int:
    """Return the bytes that values take at most: with their copy for percentiles, or with the numbers made of them."""
    return FIXED + count * max(2 * itemsize + 1, itemsize + 4)


def parts_of(values: NDArray[Any]) -> Iterator[tuple[int | slice, ...]]:
    """Yield the places of parts of some values: what is computed of all at once takes several times their memory."""
    alone = (0,) if len(values) == 1 else ()
    for start, stop in bands(len(values[alone]), values[alone][0].size):
        yield *alone, slice(start, stop)


def _narrowed(values: NDArray[Any]) -> Pixels:
    """Return values in the smallest type that a node takes and that keeps them."""
    if values.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        return values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageUnreadable(
            "some of its values are NaN or infinite, and --intensity values sends them as they are",
            hint=f"--intensity {PERCENTILES}",
        )
    parts = [values[part] for part in parts_of(values)]
    whole = values.dtype.kind in "iu" or all(np.array_equal(part, np.rint(part)) for part in parts)
    low, high = float(values.min()), float(values.max())
    if whole and low >= -32768 and high <= 32767:
        return values.astype(np.int16)
    if whole and low >= 0 and high <= 65535:
        return values.astype(np.uint16)
    if max(np.abs(part.astype(np.float32) - part).max() for part in parts) > LEAST_STEP * (high - low):
        raise ImageUnreadable(
            f"its values from {low:.9g} to {high:.9g} lie closer together than 32-bit floats do, which are sent",
            hint=f"--intensity {PERCENTILES}",
        )
    made: Pixels = values.astype(np.float32)
    return made


@dataclass(frozen=True, slots=True)
class Origin:
    """What a study is made from: the same origin makes the same items."""

    given: Path
    name: str
    outputs: tuple[str, ...]
    inputs: tuple[Path, ...]
    settings: Mapping[str, Any]
    label: str = ""
    beside: tuple[str, ...] = ()
    suffix: str = ""
    series_sha256: str = ""

    def renamed(self, name: str) -> Origin:
        """Return the same origin with another name for its results."""
        outputs = tuple(name + each.removeprefix(self.name) for each in self.outputs)
        beside = tuple(name + each.removeprefix(self.name) for each in self.beside)
        return replace(self, name=name, outputs=outputs, beside=beside)

    @property
    def called(self) -> str:
        return self.label or str(self.given)

    def sha256(self) -> str:
        """Return the digest of one input, or of the sorted digests of several, hex."""
        digests = []
        for path in self.inputs:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def safe_name(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-.")
    return kept or "study"


@contextmanager
def naming(origin: Origin) -> Iterator[None]:
    """Prefix errors about a study with its name; a wrong option is about no study."""
    try:
        yield
    except (InputError, ItemNotFound, JobFailed) as error:
        if origin.called not in error.detail and not isinstance(error, UsageError | ExtraMissing):
            error.detail, error.hop = f"{origin.called}: {error.detail}", error.hop or "client"
        raise


class Grid(NamedTuple):
    """The voxels of a model of volumes along depth, height and width, and mm between them; none if it does not say."""

    sides: tuple[int, ...]
    spacing: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    intensity: str = AUTO
    slices: str = "axial"
    tile: tuple[int, int] | None = None
    picture_tile: tuple[int, int] | None = None
    most_tiles: int | None = None
    own: str = ""
    volume: Grid | None = None  # volumes are whole items, on this grid

    @property
    def of_model(self) -> bool:
        return bool(self.own) and self.intensity == self.own

    def as_trained(self) -> Options:
        return replace(self, intensity=self.own) if self.own and self.intensity == AUTO else self

    def settings(self, *names: str) -> dict[str, Any]:
        """Some of them as JSON values: those that decide what a format's items and output are."""
        values = {name: getattr(self, name) for name in names if name != "volume"}
        if self.volume is not None:
            values = {**values, "slices": None, "volume": tuple(map(list, self.volume))}
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**listed, **({"intensity_of": "model"} if self.of_model else {})}


@dataclass(frozen=True, slots=True)
class Assembled:
    files: Mapping[str, bytes]
    report: Mapping[str, Any]
    said: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


class ItemResult(NamedTuple):
    """The file of an item, its record, the file that came back (PNG, or .npy of volumes), and its latent."""

    file: bytes
    record: Record
    returned: bytes | None = None
    latent: bytes | None = None


@dataclass(frozen=True, slots=True)
class StudyResults:
    """The results of a study's items, planes or volumes, in order; in the target's units they are `slope * number +
    intercept`.
    """

    planes: tuple[Pixels | None, ...]
    records: tuple[Record | None, ...]
    returned: tuple[Pixels | None, ...]
    first: Record
    slope: float
    intercept: float
    low: float | None
    high: float | None
    dtype: np.dtype[Any]
    channels: int

    @classmethod
    def of(cls, results: Sequence[ItemResult | None]) -> StudyResults:
        planes = tuple(each and _decoded(each.file) for each in results)
        returned = tuple(_decoded(each.returned) if each and each.returned else None for each in results)
        records = tuple(each and each.record for each in results)
        made = [record for record in records if record is not None and record.picture is not None]
        if not made:
            raise ItemNotFound("no plane was translated", hint="ddib job show JOB")
        looks = {(each.dtype, each.shape[-1]) for each in planes if each is not None}
        terms = {(*p.output_scale, p.low, p.high) for record in made if (p := record.picture) is not None}
        if len(looks) != 1 or len(terms) != 1 or len({record.made_by for record in made}) != 1:
            raise JobFailed(
                "a model, the calibration or a setting was replaced while its planes were translated",
                hint="the same command again: it translates all planes by the models of today",
            )
        return cls(planes, records, returned, made[0], *terms.pop(), *looks.pop())

    @property
    def target(self) -> str:
        return f"{self.first.target_institution}/{self.first.target_domain}"

    @property
    def source(self) -> str:
        return f"{self.first.source_institution}/{self.first.source_domain}"

    @property
    def clipped(self) -> str:
        """Say how many values lay outside the range of the source's model; empty if none did."""
        count = sum(record.picture.clipped for record in self.records if record and record.picture)
        return f"{count:,} values outside the range of the source's model were clipped" if count else ""

    @property
    def background(self) -> int:
        """The number that stands for the low end of the target's range."""
        if self.low is None:
            return 0
        return int(np.clip(round((self.low - self.intercept) / self.slope), 0, np.iinfo(self.dtype).max))

    @property
    def plain(self) -> bool:
        return (self.slope, self.intercept) == (1.0, 0.0)

    def scaled(self, numbers: Pixels) -> Pixels:
        """Return numbers in the target's units: unchanged if they are these, else float32."""
        if self.plain:
            return numbers
        raw: Pixels = numbers.astype(np.float32) * np.float32(self.slope) + np.float32(self.intercept)
        return raw


def _decoded(content: bytes) -> Pixels:
    return decode_volume(content) if image_format(content) == "NPY" else decode_image(content).pixels


@dataclass(frozen=True, slots=True)
class Planes(ABC):
    """A study in the numbers that a model takes, in planes: the slices of a volume, or the tiles of a picture; or in
    whole volumes.
    """

    numbers: Pixels
    sent: tuple[int, ...]  # the plane of each item
    intensity: Mapping[str, Any]
    rule: str  # the rule that made the numbers, as `IntensityRule.parse` takes it

    @property
    @abstractmethod
    def places(self) -> Sequence[Any]:
        """Where in the numbers each plane lies, empty ones included."""

    @property
    def warnings(self) -> tuple[str, ...]:
        count = self.intensity.get("not_finite", 0)
        return (f"{count} of its values are NaN or infinite; they are taken for background",) if count else ()

    @property
    def volume_sha256(self) -> bytes:
        """Of all that is sent of a volume, whose slices may share softening noise; empty for what is no volume."""
        return b""

    def items(self) -> Iterator[bytes]:
        """Yield the content of each item, in order."""
        places = self.places
        for at in self.sent:
            yield item_bytes(self.numbers[places[at]])

    def shrink(self, sides: Sequence[int]) -> tuple[float, tuple[int, ...]]:
        """Return how many times longer a plane's sides are than those of a model, (H, W), and its computed size."""
        return float(max(map(truediv, self.numbers[self.places[0]].shape, sides), default=1.0)), tuple(sides)

    def computed(self, translated: StudyResults) -> PictureFigures:
        """Its size, and the size at which it was computed."""
        return translated.first.picture or PictureFigures()

    def missing(self, translated: StudyResults) -> list[int]:
        return [at for at, plane in zip(self.sent, translated.planes, strict=True) if plane is None]

    def report(self, translated: StudyResults, called: str, **more: Any) -> dict[str, Any]:
        """Sections of the provenance, the counts of planes among them."""
        counts = {"count": len(self.places), "sent": len(self.sent), "refused": self.missing(translated)}
        output = {name: getattr(translated, name) for name in ("slope", "intercept", "low", "high")}
        output |= {
            "bits": 8 * translated.dtype.itemsize,
            "raw": "slope * number + intercept, in the target's units",
        }
        return {"intensity": self.intensity, "output": output, called: {**counts, **more}}


@dataclass(frozen=True, slots=True)
class Study(ABC):
    """Something that is translated in several items, or in a file that a node does not take."""

    origin: Origin
    pixels: Planes

    @property
    @abstractmethod
    def kind(self) -> str:
        """The format, in words."""

    @abstractmethod
    def assemble(self, translated: StudyResults) -> Assembled:
        """The output files of the results."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the person has to know before anything is sent."""
        return tuple(f"{self.origin.called}: {line}" for line in self.pixels.warnings)

    @property
    def name(self) -> str:
        return self.origin.name

    @property
    def sent(self) -> tuple[int, ...]:
        return self.pixels.sent

    @property
    def planes(self) -> int:
        return len(self.pixels.places)

    def items(self) -> Iterator[bytes]:
        return self.pixels.items()

    @property
    def subject(self) -> tuple[str, str]:
        """Whom it shows and in which examination, so that training keeps both together; empty if no header says it."""
        return "", ""

    @property
    def in_tiles(self) -> bool:
        """Whether its items are tiles, which are shown as the whole that they make."""
        return False

    def views(self, made: Path, side: int) -> dict[str, bytes]:
        """Draw what is in tiles, and its translation, for a browser.

        Parameters
        ----------
        made
            The file of the translation.
        side
            Pixels of the longer side at most.

        Returns
        -------
        dict
            PNG by part ("source", "translation"); empty of what is not in tiles, or is of one colour.
        """
        del made, side
        return {}


@dataclass(frozen=True, slots=True)
class Unread:
    """A study whose pixels are not in memory."""

    origin: Origin
    reader: Callable[[Origin], Study]


class Studies:
    """Studies, each of which is read when it is asked for; the last one alone is kept, so that memory holds one."""

    def __init__(self, unread: Sequence[Unread] = ()) -> None:
        self.unread = tuple(unread)
        self._kept: tuple[int, Study] | None = None

    def __len__(self) -> int:
        return len(self.unread)

    def __iter__(self) -> Iterator[Study]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, at: int) -> Study:
        unread = self.unread[at]
        if self._kept is None or self._kept[0] != at:
            self._kept = None
            if not unread.origin.given.exists():
                raise FileMissing(f"there is no {unread.origin.given}", hop="client")
            with naming(unread.origin):
                self._kept = at, unread.reader(unread.origin)
        return self._kept[1]

    @property
    def origins(self) -> tuple[Origin, ...]:
        return tuple(each.origin for each in self.unread)


def require_size(plane: Pixels, size: tuple[int, int]) -> None:
    """Raise InputError unless a result (H, W, C) has the size that was sent."""
    if plane.shape[:2] != size:
        came, sent = (f"{height} x {width}" for height, width in (plane.shape[:2], size))
        raise InputError(
            f"results have {came} pixels, {sent} were sent: the model crops pictures, so they cannot be put together",
            hint="a source whose model has the size rule resize or pad (ddib domains)",
        )
