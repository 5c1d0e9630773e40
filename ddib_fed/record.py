"""The settings of a translation, its provenance record, and the names of its files.

A node stores the record with each item of a job and sends it to the client as the protobuf message `Provenance`; the
client writes it as JSON beside the translation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed.errors import SettingsInvalid, UsageError
from ddib_fed.files import parse_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 2
DOUBTFUL_BELOW = 30.0  # dB of PSNR: a round trip that is worse makes the translation doubtful
NEAR_AUTOENCODER, LEAST_BEHIND = 1.0, 25.0
"""Behind an autoencoder that keeps less, a round trip may be so many dB below it, and has that many dB in any case."""
_SEEN = {
    "cycle_psnr": f"Translated back, it differs visibly from the original, at below {DOUBTFUL_BELOW:g} dB.",
    "edge_correlation": "Edges agree with the original no better than in an unrelated picture: parts may be exchanged, "
    "such as land and sea.",
    "differs": "As much differs from the calibration's map of the original as in an unrelated picture: those parts may "
    "be wrong.",
    "calibration": "Its calibration was used although its figures do not show that it is right.",
}
CALIBRATION_FILE = ".ddib-calibration.json"  # the calibration of the results in a folder, beside them
MOST_TILES = 1024
"""A picture of more tiles is fitted as a whole unless tiles are asked for: so many take minutes of a core."""


class Part(StrEnum):
    """A file of a translation; the values are the keys of `Record.files`."""

    TRANSLATION = "translation"
    RETURNED = "returned"
    LATENT = "latent"
    SOURCE = "source"  # the picture as the source's model saw it, at the model's size


def file_name(name: str, part: str, suffix: str) -> str:
    return f"{name}{suffix}" if part == Part.TRANSLATION else f"{name}.{part}{suffix}"


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a model: its name, their number, and their names if they have any."""

    owner: str
    count: int
    names: Sequence[str] = ()

    def number(self, text: str) -> int:
        """Return the number of a class given by name or number."""
        asked = text.strip()
        if not self.count:
            raise SettingsInvalid(f"{self.owner} has no classes", hint="omit the class")
        if asked in self.names:
            return self.names.index(asked)
        if not (asked.isascii() and asked.isdecimal() and len(asked) < 10) or int(asked) >= self.count:
            known = ", ".join(self.names[:8]) or f"0 to {self.count - 1}"
            raise SettingsInvalid(f"{self.owner} has no class {asked[:40]!r}", hint=f"its classes: {known}")
        return int(asked)

    def pairs(self, text: str, others: Classes) -> tuple[tuple[int, int], ...]:
        """Return pairs of classes of this model and another by number, of a text such as ``260:261,cat:dog``."""
        named = []
        for part in text.split(","):
            source, mark, target = part.partition(":")
            if not mark:
                raise UsageError(f"{part!r} is no pair of classes", hint="write 260:261, or cat:dog")
            named.append((self.number(source), others.number(target)))
        if len(set(named)) != len(named):
            raise UsageError(f"a pair is there twice in {text!r}", hint="write each pair once")
        return tuple(named)


@dataclass(frozen=True, slots=True)
class Guidance:
    """Of decoding: scale of classifier-free guidance, weight of the decoder's classifier, predictions clipped."""

    guidance: float | None = None
    classifier_scale: float | None = None
    clip: bool = False

    def __post_init__(self) -> None:
        for name, value in (("guidance", self.guidance), ("classifier_scale", self.classifier_scale)):
            if value is not None and not math.isfinite(value):
                raise SettingsInvalid(f"{name} {value} is not a finite number", facts={"field": name})
        if self.guidance is not None and self.classifier_scale is not None:
            raise SettingsInvalid("guidance is by a classifier or free of one, not both", hint="choose one")

    @property
    def steers(self) -> bool:
        return self.guidance is not None or self.classifier_scale is not None

    @property
    def predictions(self) -> int:
        return 2 if self.classifier_scale is not None or self.guidance not in {None, 0.0, 1.0} else 1


UNGUIDED = Guidance()


@dataclass(frozen=True, slots=True)
class Settings:
    """Solver settings of one leg, the same at both nodes.

    Attributes
    ----------
    solver, order
        ``unipc``, ``ddim`` or ``flow-map``; 1 to 4 if the solver has orders, 0 for its default.
    evaluations
        Network evaluations of one leg, 1 to 10,000.
    grid
        ``default``, ``uniform-lambda``, ``integer``, or ``learned`` for the steps that the model's bundle holds (with
        unipc, whose order they bring).
    depth
        Fraction of the schedule's angle phi, from its data end to its noise end, at which encoding stops and decoding
        starts; 1 for the whole way. A latent of less depth still holds some of the picture, and both nodes' policies
        must allow it.
    share
        Of the network in the ODE by which the source encodes, and decodes what comes back to it, in [0, 1]; the rest is
        the linear estimate of its spectrum, and 0 whitens the picture. The target's way is always the network's. Below
        1 the latent shows more of the picture, and both policies must allow it.
    temperature
        By which the target multiplies a latent before it decodes it, in [0.8, 1]; what it encodes again is divided by
        it. Below 1 it invents less, and edges are softer.
    blend
        Share of the source's own picture, mapped by the calibration, in the result, in [0, 1]: nearer to what the
        source shows, and less sharp. The source adds it to what comes back.
    """

    solver: str = "unipc"
    order: int = 0
    evaluations: int = 48
    grid: str = "default"
    depth: float = 1.0
    share: float = 1.0
    temperature: float = 1.0
    blend: float = 0.0

    @classmethod
    def like(cls, other: object) -> Settings:
        """Return the settings in a message, or in a class with further fields."""
        return cls(*(getattr(other, field.name) for field in fields(cls)))

    def of_quality(self, quality: str | None) -> Settings:
        """Return these settings with the four of a quality, if any; SettingsInvalid if it is none, or one is set."""
        if quality is None:
            return self
        if quality not in QUALITIES:
            raise SettingsInvalid(
                f"there is no quality {quality[:40]!r}", hint=f"one of {', '.join(QUALITIES)}"
            )
        default, chosen = Settings(), QUALITIES[quality]
        for name in CHOSEN:
            if getattr(self, name) != getattr(default, name):
                raise SettingsInvalid(
                    f"the quality {quality} chooses {name} itself, and {getattr(self, name)} is given beside it",
                    hint=f"leave {name} or quality out",
                )
        return replace(self, **{name: getattr(chosen, name) for name in CHOSEN})


CHOSEN: Final = ("solver", "order", "evaluations", "grid")  # settings that a quality stands for
DIAL: Final = ("share", "temperature", "blend")  # settings that a calibration brings where a job says nothing
QUALITIES: Final[Mapping[str, Settings]] = MappingProxyType(
    {
        "draft": Settings(evaluations=12, grid="learned"),
        "standard": Settings(),
        "exact": Settings(evaluations=96),
    }
)
"""What a quality stands for; steps.json of a model says what its draft reaches."""


class Frozen(BaseModel):
    """A model whose values do not change and that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class WrittenFile(_Section):
    """A file beside the record: its name, relative to the record's folder, and the SHA-256 of its bytes, hex."""

    file: str
    sha256: str = ""


class LatentFigures(_Section):
    """Statistics of the latent that crossed, as `diffusion.gaussianity.measure` took them."""

    mean: float | None = None
    std: float | None = None
    kurtosis: float | None = None
    correlation: float | None = None
    count: int = 0


class CycleError(_Section):
    """L2 distance of each point and its round trip, on data of unit standard deviation."""

    median: float
    mean: float
    p99: float
    max: float


class PictureFigures(_Section):
    """What was done with a picture, and what was measured of it; None where it was not measured or is not known."""

    depth: int | None = None
    height: int = 0
    width: int = 0
    size_rule: str = ""
    fitted_height: int | None = None
    fitted_width: int | None = None
    low: float | None = None
    high: float | None = None
    bits: int = 8
    slope: float = 1.0
    intercept: float = 0.0
    source_low: float | None = None
    source_high: float | None = None
    back_slope: float | None = None
    back_intercept: float | None = None
    cycle_mse: float | None = None
    cycle_psnr: float | None = None
    autoencoder_psnr: float | None = None
    edge_correlation: float | None = None
    least_edge_correlation: float | None = None
    differs: float | None = None
    most_differs: float | None = None
    differs_at: str = ""
    structure_doubtful: bool | None = None
    clipped: int = 0
    outside: float | None = None
    used: float | None = None

    @property
    def lost(self) -> str:
        """At what other size it was translated, and what that lost, in a sentence without a name; empty for none."""
        if self.fitted_height is None or self.fitted_width is None:
            return ""
        small, own = f"{self.fitted_width} x {self.fitted_height}", f"{self.width} x {self.height}"
        times = self.height * self.width / (self.fitted_height * self.fitted_width)
        said = f"was computed at {small} pixels, not at its own {own}, and {'enlarged' if times > 1 else 'reduced'}"
        if times >= 2:
            said += f": {times:,.0f} pixels became one"
        return said

    @property
    def structure_doubt(self) -> str:
        """Name the figure that makes the structure doubtful; "calibration" if it was used with --force."""
        if self.differs is None:
            name, more, bound = "edge_correlation", self.least_edge_correlation, self.edge_correlation
        else:
            name, more, bound = "differs", self.differs, self.most_differs
        return name if more is not None and bound is not None and more > bound else "calibration"

    @property
    def shrink(self) -> float:
        """How many times longer its sides are than those at which it was computed; 1 where they are no longer."""
        if self.fitted_height is None or self.fitted_width is None:
            return 1.0
        return max(1.0, self.height / self.fitted_height, self.width / self.fitted_width)

    @property
    def size(self) -> str:
        """Width, height and, of a volume, depth."""
        return "x".join(str(side) for side in (self.width, self.height, self.depth) if side)

    @property
    def output_scale(self) -> tuple[float, float]:
        return self.slope or 1.0, self.intercept

    @property
    def back_scale(self) -> tuple[float, float] | None:
        return None if self.back_slope is None else (self.back_slope or 1.0, self.back_intercept or 0.0)

    @property
    def source_range(self) -> tuple[float, float] | None:
        return _range(self.source_low, self.source_high)

    @property
    def target_range(self) -> tuple[float, float] | None:
        return _range(self.low, self.high)

    @property
    def window(self) -> tuple[float, float] | None:
        """The numbers of the translation's file that are the ends of the target's range; None if they are unknown."""
        if self.low is None or self.high is None:
            return None
        slope, intercept = self.output_scale
        return (self.low - intercept) / slope, (self.high - intercept) / slope


class Record(_Section):
    """How one translation came about. Digests are SHA-256 in hex; what names a hop is empty in one process."""

    format: int = FORMAT
    input: str = ""
    files: Mapping[str, WrittenFile] = Field(default_factory=dict)
    job_id: str = ""
    source_institution: str = ""
    source_domain: str = ""
    target_institution: str = ""
    target_domain: str = ""
    contract_sha256: str = ""
    source_model_sha256: str = ""
    target_model_sha256: str = ""
    input_sha256: str = ""
    latent_sha256: str = ""
    solver: Settings = Settings()
    """How the ODE was integrated on both sides."""
    soften_sigma: float = 0.0
    shared_noise: bool = False
    source_class: str = ""
    target_class: str = ""
    guidance: Guidance | None = None
    classifier_sha256: str = ""
    calibration_sha256: str = ""
    policy_sha256: str = ""
    calibration_kind: str = ""
    samples: int = 1
    latent: LatentFigures = LatentFigures()
    wire_bytes: int = 0
    seconds: Mapping[str, float] = Field(default_factory=dict)
    cycle: CycleError | None = None
    picture: PictureFigures | None = None
    doubtful: bool | None = None
    doubts: tuple[str, ...] | None = None
    asked_sha256: str | None = None

    @property
    def made_by(self) -> tuple[object, ...]:
        """All that decides a result beside its input: the parts of a whole have it in common."""
        models = self.source_model_sha256, self.target_model_sha256, self.calibration_sha256
        guided = self.source_class, self.target_class, self.guidance, self.classifier_sha256
        return *models, *guided, self.solver, self.soften_sigma, self.shared_noise

    def with_(self, **changes: Any) -> Self:
        """Return a copy with other values; mappings for `picture` and `seconds` are merged into the old ones."""
        picture, seconds = changes.get("picture"), changes.get("seconds")
        if isinstance(picture, Mapping):
            changes["picture"] = (self.picture or PictureFigures()).model_copy(update=dict(picture))
        if seconds is not None:
            changes["seconds"] = {**self.seconds, **seconds}
        return self.model_copy(update=changes)

    @property
    def seen(self) -> tuple[str, ...]:
        """Say of each doubt what was seen."""
        return tuple(_SEEN.get(doubt, doubt) for doubt in self.doubts or ())

    @property
    def reasons(self) -> tuple[str, ...]:
        """Say of each doubt what was seen, and what repairs it."""
        repair = "A calibration repairs many such pictures: ddib calibrate (docs/calibration.md)."
        if self.calibration_sha256:
            share = "share below 1" if self.solver.share == 1 else "smaller share"
            repair = f"A {share} repairs many such pictures: --share, or ddib calibrate dial."
        better = "More pictures, or anchors, make a better one: ddib calibrate (docs/calibration.md)."
        repairs = {"edge_correlation": repair, "differs": repair, "calibration": better}
        judged = zip(self.seen, self.doubts or (), strict=True)
        return tuple(f"{seen} {repairs.get(doubt, '')}".rstrip() for seen, doubt in judged)

    @property
    def lost(self) -> str:
        return self.picture.lost if self.picture is not None else ""

    @property
    def figures(self) -> dict[str, str]:
        """Name what was measured, with its unit, as people read it; what is not known is left out."""
        picture, cycle = self.picture or PictureFigures(), self.cycle
        fitted = f" at {picture.fitted_width}x{picture.fitted_height}" if picture.lost else ""
        values: list[tuple[str, Any, str]] = [
            ("voxels" if picture.depth else "pixels", f"{picture.size}{fitted}", ""),
            ("round trip dB", picture.cycle_psnr, ".1f"),
            ("autoencoder dB", picture.autoencoder_psnr, ".1f"),
            ("edge correlation", picture.edge_correlation, ".2f"),
            ("differs from the map", picture.differs, ".0%"),
            ("clipped values", picture.clipped or None, ","),
            ("points", self.samples if self.picture is None else None, ","),
            ("round trip, median", cycle and cycle.median, ".3g"),
            ("p99", cycle and cycle.p99, ".3g"),
            ("max", cycle and cycle.max, ".3g"),
            ("seconds", sum(self.seconds.values()), ".1f"),
        ]
        return {name: format(value, form) for name, value, form in values if value not in {None, ""}}

    @property
    def severity(self) -> float:
        """Rank it by how soon it should be looked at: doubtful ones highest, then the worst round trips."""
        figure, picture = 0.0, self.picture
        if picture is not None and picture.cycle_psnr is not None:
            figure = -picture.cycle_psnr
        elif self.cycle is not None:
            figure = min(self.cycle.p99, 999.0)
        elif picture is not None:
            figure = -(picture.edge_correlation or 0.0)
        return 1000.0 * len(self.doubts or ()) + figure

    @staticmethod
    def fitted_line(named: Sequence[tuple[str, Record]]) -> str:
        """Say which pictures were not translated at their own size, and what that lost; empty for none."""
        lost = [(name, record.picture) for name, record in named if record.picture and record.picture.lost]
        if not lost:
            return ""
        worst, figures = max(lost, key=lambda each: each[1].height * each[1].width)
        if len(named) == 1:
            return f"{worst} {figures.lost}"
        count = f"{len(lost):,} of {len(named):,} pictures were not translated at their own size"
        return f"{count}; {worst} {figures.lost}"

    @staticmethod
    def doubt_lines(named: Sequence[tuple[str, Record]]) -> list[str]:
        """Say of each reason for doubt which translations have it."""
        lines = []
        for reason in dict.fromkeys(reason for _, record in named for reason in record.reasons):
            names = [name for name, record in named if reason in record.reasons]
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"{len(names):,} of {len(named):,} doubtful ({some}): {reason}")
        return lines

    def judged(self) -> Self:
        """Return a copy that says whether the translation is doubtful; None if no figure has a bound."""
        picture = self.picture
        if picture is None or (picture.cycle_psnr is None and picture.structure_doubtful is None):
            return self.model_copy(update={"doubtful": None, "doubts": None})
        doubts, least, alone = [], DOUBTFUL_BELOW, picture.autoencoder_psnr
        if alone is not None:
            least = min(least, max(LEAST_BEHIND, alone - NEAR_AUTOENCODER))
        if picture.cycle_psnr is not None and not picture.cycle_psnr >= least:
            doubts.append("cycle_psnr")
        if picture.structure_doubtful:
            doubts.append(picture.structure_doubt)
        return self.model_copy(update={"doubtful": bool(doubts), "doubts": tuple(doubts)})

    def stored(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)

    def to_json(self) -> bytes:
        return (json.dumps(self.stored(), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @classmethod
    def parse(cls, raw: object) -> Record | None:
        """Return the record in a JSON value; None if it is invalid."""
        if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
            return None
        try:
            return cls.model_validate(raw)
        except (ValidationError, SettingsInvalid):
            return None

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """Return the record in a file; None if it cannot be read."""
        try:
            return cls.parse(parse_json(path.read_bytes()))
        except (OSError, ValueError):
            return None


def tiles_in(height: int, width: int, tile: tuple[int, int]) -> int:
    """Return the number of half-overlapping tiles of a picture; 0 if a tile is larger, or is all of it."""
    if height < tile[0] or width < tile[1] or (height, width) == tuple(tile):
        return 0
    rows, columns = (
        1 + -(-(whole - part) // (part - part // 2))
        for whole, part in zip((height, width), tile, strict=True)
    )
    return rows * columns


def _range(low: float | None, high: float | None) -> tuple[float, float] | None:
    return (low, high) if low is not None and high is not None and low < high else None


CELLS = 32  # of a side, at most, in which differing pixels are counted for a page


def digits(differs: NDArray[Any]) -> str:
    """Write means of (H, W) in [0, 1] over at most `CELLS` x `CELLS` cells as hexadecimal rows, joined by "/"."""
    cell = -(-max(differs.shape) // CELLS)
    rows = []
    for top in range(0, differs.shape[0], cell):
        row = (
            differs[top : top + cell, left : left + cell].mean() for left in range(0, differs.shape[1], cell)
        )
        rows.append("".join(f"{round(15 * float(share)):x}" for share in row))
    return "/".join(rows)


def undigits(text: str, size: tuple[int, int]) -> NDArray[np.float32]:
    """Read the text of `digits` as an array (H, W) of a size."""
    import numpy as np

    grid = np.array([[int(digit, 16) for digit in row] for row in text.split("/")], np.float32) / 15.0
    rows, columns = (
        np.arange(length) * count // length for length, count in zip(size, grid.shape, strict=True)
    )
    values: NDArray[np.float32] = grid[rows][:, columns]
    return values
