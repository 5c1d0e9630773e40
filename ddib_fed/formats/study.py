"""What a reader makes of a file or a folder, and what a writer makes of its results.

The rule: an item holds pixels, their type and their shape, and no value of the input's header.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.pictures import Pixels, decode_image
from ddib_fed.engine.record import Translation
from ddib_fed.errors import (
    DdibError,
    ExtraMissing,
    FileMissing,
    ImageUnreadable,
    InputError,
    ItemNotFound,
    JobFailed,
    UsageError,
)
from ddib_fed.formats.intensity import AUTO, IntensityRule, is_empty, item_bytes

Bad = list[tuple[Path, DdibError]]
"""What cannot be read, and why."""
MAX_BYTES: Final = 3 << 29
"""Of the values of a volume or a map as they are read; about three times as much is in memory at once."""


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

    @classmethod
    def of_file(
        cls,
        path: Path,
        settings: Mapping[str, Any],
        *,
        suffix: str,
        within: str = "",
        results: Sequence[str] = (),
        beside: Sequence[str] = (),
    ) -> Origin:
        """Of a file that becomes a file of the same kind."""
        called = within + safe_name(path.name[: len(path.name) - len(suffix)])
        outputs = tuple(called + each for each in results or (suffix,))
        others = tuple(called + each for each in beside)
        return cls(path, called, outputs, (path,), settings, beside=others, suffix=suffix)

    def renamed(self, name: str) -> Origin:
        """The same, whose results are called otherwise."""
        outputs = tuple(name + each.removeprefix(self.name) for each in self.outputs)
        beside = tuple(name + each.removeprefix(self.name) for each in self.beside)
        return replace(self, name=name, outputs=outputs, beside=beside)

    @property
    def called(self) -> str:
        return self.label or str(self.given)

    def sha256(self) -> str:
        """Digest of all that is read, hex: of a file its own, of several that of their sorted digests."""
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
    """Inside, an error about what a study holds or became names it; a wrong option is about no study."""
    try:
        yield
    except (InputError, ItemNotFound, JobFailed) as error:
        if origin.called not in error.detail and not isinstance(error, UsageError | ExtraMissing):
            error.detail, error.hop = f"{origin.called}: {error.detail}", error.hop or "client"
            error.args = (error.detail,)
        raise


@dataclass(frozen=True, slots=True)
class Options:
    intensity: str = AUTO
    slices: str = "axial"
    tile: tuple[int, int] | None = None
    picture_tile: tuple[int, int] | None = None
    most_tiles: int | None = None
    own: str = ""

    @property
    def of_model(self) -> bool:
        return bool(self.own) and self.intensity == self.own

    def as_trained(self) -> Options:
        return replace(self, intensity=self.own) if self.own and self.intensity == AUTO else self

    def settings(self, *names: str) -> dict[str, Any]:
        """Some of them as JSON values: those that decide what a format's items and output are."""
        values = {name: getattr(self, name) for name in names}
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**found, **({"intensity_of": "model"} if self.of_model else {})}


@dataclass(frozen=True, slots=True)
class Assembled:
    files: Mapping[str, bytes]
    report: Mapping[str, Any]
    said: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


class ItemResult(NamedTuple):
    """The PNG of an item, its record, and the PNG that came back over the round trip."""

    png: bytes
    record: Translation
    returned: bytes | None = None


@dataclass(frozen=True, slots=True)
class StudyResults:
    """The results of a study's items, in order; in the target's units they are `slope * number + intercept`."""

    planes: tuple[Pixels | None, ...]
    records: tuple[Translation | None, ...]
    returned: tuple[Pixels | None, ...]
    first: Translation
    slope: float
    intercept: float
    low: float | None
    high: float | None
    dtype: np.dtype[Any]
    channels: int

    @classmethod
    def of(cls, results: Sequence[ItemResult | None]) -> StudyResults:
        def pixels(png: bytes | None) -> Pixels | None:
            return None if png is None else decode_image(png).pixels

        planes = tuple(None if each is None else pixels(each.png) for each in results)
        returned = tuple(None if each is None else pixels(each.returned) for each in results)
        records = tuple(None if each is None else each.record for each in results)
        made = [record for record in records if record is not None and record.picture is not None]
        if not made:
            raise ItemNotFound("no plane was translated", hint="ddib job show JOB")
        looks = {(each.dtype, each.shape[2]) for each in planes if each is not None}
        terms = {(*p.output_scale, p.low, p.high) for record in made if (p := record.picture) is not None}
        if len(looks) != 1 or len(terms) != 1:
            raise InputError(
                "the planes are translations to different models, so they make no one picture",
                hint="the same command with --force: all planes by the models of today",
            )
        return cls(planes, records, returned, made[0], *terms.pop(), *looks.pop())

    @property
    def target(self) -> str:
        return f"{self.first.target_institution}/{self.first.target_domain}"

    @property
    def source(self) -> str:
        return f"{self.first.source_institution}/{self.first.source_domain}"

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
        """Raw values of numbers: themselves, or float32."""
        if self.plain:
            return numbers
        raw: Pixels = numbers.astype(np.float32) * np.float32(self.slope) + np.float32(self.intercept)
        return raw

    def stack(self, sent: Sequence[int], count: int, size: tuple[int, int]) -> Pixels:
        """All planes (N, H, W, C), with background where none was sent or translated."""
        stack = np.full((count, *size, self.channels), self.background, dtype=self.dtype)
        for at, plane in zip(sent, self.planes, strict=True):
            if plane is not None:
                require_size(plane, size)
                stack[at] = plane
        return stack


@dataclass(frozen=True, slots=True)
class Planes(ABC):
    """A study in the numbers that a model takes, in planes: the slices of a volume, or the tiles of a picture."""

    numbers: Pixels
    sent: tuple[int, ...]
    """The plane of each item."""
    intensity: Mapping[str, Any]
    rule: str
    """The rule that made the numbers, as `IntensityRule.parse` takes it."""

    @property
    @abstractmethod
    def places(self) -> Sequence[Any]:
        """Where in the numbers each plane lies, empty ones included."""

    def items(self) -> Iterator[bytes]:
        """The content of each item, in order."""
        places = self.places
        for at in self.sent:
            yield item_bytes(self.numbers[places[at]])

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
        return ()

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


@dataclass(frozen=True, slots=True)
class Unread:
    """A study whose pixels are not in memory."""

    origin: Origin
    reader: Callable[[Origin], Study]

    def renamed(self, name: str) -> Unread:
        return self if name == self.origin.name else replace(self, origin=self.origin.renamed(name))


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


@dataclass(frozen=True, slots=True)
class Choice:
    """What was made of the paths of a command."""

    studies: Studies = field(default_factory=Studies)
    plain: tuple[Path, ...] = ()
    ignored: Counter[str] = field(default_factory=Counter)


def require_size(plane: Pixels, size: tuple[int, int]) -> None:
    """Return if a result (H, W, C) is of the size that was sent."""
    if plane.shape[:2] != size:
        found, sent = (f"{height} x {width}" for height, width in (plane.shape[:2], size))
        raise InputError(
            f"results have {found} pixels, {sent} were sent: the model crops pictures, so they cannot be put together",
            hint="a source whose model has the size rule resize or pad (ddib domains)",
        )


@dataclass(frozen=True, slots=True)
class Slices(Planes):
    """A volume (N, H, W, C) in the numbers that a model takes."""

    @classmethod
    def of(cls, values: NDArray[Any], rule: IntensityRule) -> Slices:
        intensity = rule.on(values)
        # What is sent as it is has one type for the whole volume; all else is made slice by slice, to save memory.
        whole = intensity.as_it_is
        numbers = intensity.numbers(values) if whole else np.stack([intensity.numbers(v) for v in values])
        least, most = float(numbers.min()), float(numbers.max())
        sent = tuple(
            at for at, plane in enumerate(numbers) if not is_empty(plane, least, max(most - least, 1e-9))
        )
        if not sent:
            raise ImageUnreadable("none of its slices shows anything but background")
        return cls(numbers, sent, intensity.record(values), rule.text)

    @property
    def places(self) -> range:
        return range(len(self.numbers))

    def stack(self, translated: StudyResults) -> Pixels:
        return translated.stack(self.sent, len(self.numbers), self.numbers.shape[1:3])

    def summary(self, translated: StudyResults, stack: Pixels) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Sections of the provenance, and lines for the person."""
        empty = sorted({*self.places} - {*self.sent})
        shown = slice(self.sent[0], self.sent[-1] + 1)
        found = flicker(self.numbers[shown], stack[shown])
        said = []
        if found is not None:
            here, there, times = found["translation"], found["source"], found["ratio"]
            ratio = "" if times is None else f" ({times:.2f} times)"
            said.append(f"slice flicker {here:.2%} of the range, {there:.2%} in the source{ratio}")
        if empty:
            said.append(f"{len(empty)} of {len(self.numbers)} slices are background and were not sent")
        return {**self.report(translated, "slices", empty=empty), "flicker": found}, tuple(said)


def flicker(source: NDArray[Any], translation: NDArray[Any]) -> dict[str, float | None] | None:
    """How much neighbouring slices differ beyond a steady change; None for fewer than three slices.

    The mean of |v[z] - (v[z-1] + v[z+1]) / 2| of a volume (N, ...), as a share of its range.
    """
    if len(source) < 3:
        return None
    found = []
    for volume in (source, translation):
        width, total = float(volume.max()) - float(volume.min()), 0.0
        for before, here, after in zip(volume[:-2], volume[1:-1], volume[2:], strict=True):
            bend = here.astype(np.float32) - (before.astype(np.float32) + after.astype(np.float32)) / 2
            total += float(np.abs(bend).mean())
        found.append(total / (len(volume) - 2) / width if width > 0 else 0.0)
    ratio = round(found[1] / found[0], 4) if found[0] > 0 else None
    return {"source": round(found[0], 6), "translation": round(found[1], 6), "ratio": ratio}
