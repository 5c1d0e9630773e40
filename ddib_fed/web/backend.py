"""What the page asks of a translation, what it shows, and how it says it in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed.engine.record import Part, Translation
from ddib_fed.errors import DdibError, UsageError, step_in_words
from ddib_fed.formats.intensity import AUTO, IntensityRule
from ddib_fed.formats.nifti import PLANES
from ddib_fed.protocol.messages import QUALITIES, Event

DOUBTS = {
    "cycle_psnr": "translated back, it differs visibly from the original",
    "structure": "its edges or values agree with those of the original no better than an unrelated picture's",
}

STAGES = {
    "encode": "encoding here, at your institution",
    "send": "sending the latent",
    "decode": "decoding at the other institution",
    "return": "checking by translating back",
    "done": "done",
    "failed": "failed",
    "wait": "waiting for the other institution",
}

STEADY = 1.25
"""Slice flicker up to this many times the source's is called the same."""


class TranslationRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str = Field(min_length=3, max_length=400)
    quality: str = Field(default="standard", max_length=20)
    cycle: bool = True
    target_class: str = Field(default="", max_length=200)
    slices: str = Field(default=AUTO, max_length=20)
    intensity: str = Field(default=AUTO, max_length=100)

    @classmethod
    def parse(cls, body: bytes) -> TranslationRequest:
        try:
            found = cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise UsageError(
                f"the request cannot be used: {where}: {first['msg']}", hint="load the page again"
            ) from error
        if found.quality not in QUALITIES:
            raise UsageError(f"there is no quality {found.quality!r}", hint=f"one of {', '.join(QUALITIES)}")
        if found.slices not in {AUTO, *PLANES}:
            raise UsageError(f"there is no plane {found.slices!r}", hint=f"one of {', '.join(PLANES)}")
        if found.intensity != AUTO:
            IntensityRule.parse(found.intensity)
        return found


@dataclass(frozen=True, slots=True)
class DroppedSource:
    """Something to translate: a file, or a folder of DICOM files."""

    path: Path
    name: str
    label: str
    is_study: bool = False


@dataclass(slots=True)
class ShownStudy:
    """A series, a volume, a map or a picture of a further format; its output, once it is on the disk."""

    label: str
    kind: str
    planes: int
    items: int
    plane_word: str
    warnings: list[str]
    said: list[str] = field(default_factory=list)
    outputs: tuple[Path, ...] = ()
    record: Path | None = None


@dataclass(frozen=True, slots=True)
class ShownResult:
    """A picture that is compared on the page."""

    label: str
    files: Mapping[Part, Path]
    provenance: Translation
    outputs: tuple[Path, ...] = ()
    study: int | None = None
    plane: int = 0


@contextmanager
def hinted_in_words() -> Iterator[None]:
    """Errors that leave have the hint of `step_in_words`."""
    try:
        yield
    except DdibError as error:
        error.hint = step_in_words(error)
        raise


def measured_in_words(report: Mapping[str, Any]) -> tuple[str, ...]:
    found = report.get("flicker")
    ratio = None if found is None else found["ratio"]
    if ratio is None:
        return ()
    if ratio <= STEADY:
        return ("From slice to slice the result changes no more than the source does.",)
    times = f"{ratio:.1f} times as much as the source"
    advice = "each slice is translated alone, so look through them before you measure across slices"
    return (f"From slice to slice the result changes {times}: {advice}.",)


def event_in_words(event: Event, label: str) -> str:
    step = f", step {event.step} of {event.steps}" if event.steps else ""
    return f"{label}: {STAGES.get(event.stage, event.stage)}{step}"


def doubts_in_words(record: Translation) -> list[str]:
    return [DOUBTS.get(each, each) for each in record.doubts or ()]


def severity(record: Translation) -> float:
    """The higher, the earlier it should be looked at: doubtful ones first, then by the worst round trip."""
    rank = 1000.0 * len(record.doubts or ())
    picture = record.picture
    if picture is not None and picture.cycle_psnr is not None:
        return rank - picture.cycle_psnr
    if record.cycle is not None:
        return rank + min(record.cycle.p99, 999.0)
    if picture is not None and picture.edge_correlation is not None:
        return rank - picture.edge_correlation
    return rank


def figures_in_words(record: Translation) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    picture, cycle = record.picture, record.cycle
    if picture is not None and picture.lost:
        found.append(("Not at its own size", f"it {picture.lost}"))
    if picture is not None and picture.cycle_psnr is not None:
        found.append(("Round trip", f"{picture.cycle_psnr:.1f} dB (higher is better)"))
    if picture is not None and picture.edge_correlation is not None:
        found.append(("Edges in common", f"{picture.edge_correlation:.2f} of 1"))
    if cycle is not None:
        found.append(("Round trip, median point", f"{cycle.median:.3g} of a standard deviation"))
        found.append(("Round trip, worst 1 %", f"{cycle.p99:.3g} of a standard deviation"))
    if picture is not None and picture.width:
        found.append(("Size", f"{picture.width} × {picture.height} pixels"))
    if picture is not None and picture.clipped:
        found.append(("Outside the model's range", f"{picture.clipped:,} values were clipped"))
    if record.samples > 1:
        found.append(("Points", f"{record.samples:,}"))
    solver = record.solver
    found.append(("Steps", f"{solver.evaluations} each way ({solver.solver})"))
    found.append(("Time", f"{sum(record.seconds.values()):.1f} s"))
    return found
