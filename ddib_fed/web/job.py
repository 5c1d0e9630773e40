"""One translation of the page: a run of `ddib translate` of what was dropped, and what the page shows of it.

What cannot be read or translated does not stop the rest: the page shows it, and the error at the end counts it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError

from ddib_fed.client.client import Client, job_header, waiting_line
from ddib_fed.client.connection import OnWait
from ddib_fed.client.files import FileItem
from ddib_fed.client.folder_run import STAGES, RunOptions, RunProgress, open_run
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import Delivered
from ddib_fed.data.pictures import encode_png, shown_pixels
from ddib_fed.errors import (
    Cancelled,
    DdibError,
    FilesLeftOut,
    ImageUnreadable,
    InputError,
    InternalError,
    ItemNotFound,
    PictureMisfit,
    UsageError,
    step_in_words,
)
from ddib_fed.files import problem_text
from ddib_fed.formats.parts import INTENSITY, WrittenStudy
from ddib_fed.formats.study import AUTO, IntensityRule, Options, Origin, Study
from ddib_fed.formats.tiles import GeoTiffStudy, PictureStudy, read_geotiff, read_picture
from ddib_fed.record import DIAL, Frozen, Part, PictureFigures, Record, Settings
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.web.guard import error_values
from ddib_fed.web.uploads import DROPPED, Window, own_window, preview, renamed, shown

LOOKED_AT: Final = 12
"""Slices of which the window of a volume is taken."""
MAP_SIDE: Final = 2048
"""Pixels of the longer side of a map on the page at most."""
_UNFINISHED: Final = re.compile(r"(^|/)\.|\.parts/(items|results|output)/")
"""In the path of a file that is no result."""
MOST_STEPS: Final = 3
"""Next steps that are named at most."""


class TranslationRequest(Frozen):
    target: str = Field(min_length=3, max_length=400)
    quality: Literal["draft", "standard", "exact"] = "standard"
    cycle: bool = True
    target_class: str = Field(default="", max_length=200)
    slices: Literal["auto", "axial", "coronal", "sagittal"] = "auto"
    intensity: str = Field(default=AUTO, max_length=100)

    @classmethod
    def parse(cls, body: bytes) -> TranslationRequest:
        try:
            found = cls.model_validate_json(body)
        except ValidationError as error:
            problem = f"the request cannot be used: {problem_text(error)}"
            raise UsageError(problem, hint="load the page again") from error
        if found.intensity != AUTO:
            IntensityRule.parse(found.intensity)
        return found


Opener = Callable[[OnWait], AbstractContextManager[Client]]


@dataclass(frozen=True, slots=True)
class ShownResult:
    """A picture that is compared on the page."""

    label: str
    files: Mapping[Part, Path]
    provenance: Record
    study: int | None = None
    plane: int = 0


class PageJob(RunProgress):
    """One translation, in as many jobs as the node's limits ask for; set in the run's thread, read in the server's."""

    def __init__(
        self, number: int, count: int, request: TranslationRequest, out: Path, opener: Opener
    ) -> None:
        super().__init__()
        self.number, self.count, self.request, self.out = number, count, request, out
        self._opener = opener
        self.items = self.files = 0
        self.studies: list[dict[str, Any]] = []
        """Series, volumes, maps and pictures of further formats, as the page gets them."""
        self.joined: dict[int, tuple[Path, ...]] = {}
        """The files of those that are put together."""
        self.jobs: dict[str, Path] = {}
        self.running: list[str] = []
        self.now = "reading the files"
        self.results: list[ShownResult] = []
        self.missing: list[str] = []
        self.error: dict[str, str] | None = None
        self.ended = False
        self._done = self._written = 0
        self._slices: _Slices | None = None

    def translate(self, profile: Profile, dropped: Path, views: Path) -> None:
        """Translate everything below a folder; every error has a hint for somebody at the page."""
        self._dropped, self._views = dropped, views
        request = self.request
        try:
            settings = Settings().of_quality(request.quality)
            header = job_header(
                request.target, settings, left=DIAL, cycle=request.cycle, target_class=request.target_class
            )
            self._translate(RunOptions(profile, header, self.out, self, skip_bad=True))
        except BaseException as error:
            files = [path for path in self.out.rglob("*") if path.is_file()]
            if all(path.parent.name == "items" for path in files):
                shutil.rmtree(self.out, ignore_errors=True)
            if isinstance(error, DdibError):
                error.hint = _step(error)
                renamed(error, dropped)
            raise

    def _translate(self, options: RunOptions) -> None:
        reading = {"intensity": self.request.intensity, "slices": self.request.slices, "tile": "auto"}
        run = open_run([self._dropped], reading, options, self.say)
        try:
            run.read()
        except (InputError, InternalError) as error:
            if isinstance(error, UsageError) or run.total < 2 or not run.left_out:
                raise
        else:
            self.items = len(run.items) + sum(each["items"] for each in self.studies)
            self.files = run.total
            self.now = "sending the pictures to your institution's node"
            run.translate()
        self._check_stopped()
        run.require_translated()
        failed = run.left_out + run.failed
        if failed and run.total == 1:
            raise failed[0].error
        for each in failed:
            told = renamed(DdibError(f"{each.path}: {each.why} [{each.reason}]"), self._dropped)
            self.missing.append(told.detail)
        if failed:
            steps = dict.fromkeys(_step(each.error) for each in failed)
            raise FilesLeftOut(
                f"{len(failed):,} of {run.total:,} were not translated", hint="; ".join([*steps][:MOST_STEPS])
            )

    def _called(self, origin: Origin) -> str:
        """What the person calls it; DICOM files are the series of all that was dropped."""
        if origin.given == self._dropped:
            return origin.name.removeprefix(f"{DROPPED}/")
        return str(origin.given.relative_to(self._dropped))

    def stop(self) -> tuple[str, ...]:
        """Have nothing more submitted; the jobs that are at the node now, for being cancelled there."""
        self.stopped = True
        self.now = "stopping"
        return tuple(self.running)

    def _check_stopped(self) -> None:
        if self.stopped:
            raise Cancelled("stopped; what was finished before is here")

    @contextmanager
    def counted(self, what: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: self.say(f"{what}: {done:,} of {total:,}")

    @contextmanager
    def opened(self, _profile: Profile) -> Iterator[Client]:
        with self._opener(lambda *wait: self.say(waiting_line(*wait))) as self.client:
            yield self.client

    def say(self, line: str) -> None:
        self.now = line

    def study(self, _number: int, origin: Origin, study: Study | None) -> None:
        self._check_stopped()
        if study is not None:
            label = self._called(origin)
            shown = {
                "label": label,
                "kind": study.kind,
                "planes": study.planes,
                "items": len(study.sent),
                "plane_word": "slice" if _tiled(study) is None else "tile",
                "warnings": [line.replace(origin.called, label) for line in study.warnings],
                "said": [],
                "files": 0,
            }
            self.studies.append(shown)

    def parts(self, number: int, paths: Sequence[Path]) -> None:
        self._slices = _Slices(number, self.studies[number], paths, self._views)

    def study_written(self, number: int, written: WrittenStudy, study: Study | None) -> None:
        self._slices, tiled, on_page = None, _tiled(study), self.studies[number]
        if tiled is not None and (whole := _map(number, on_page["label"], tiled, written, self._views)):
            self.results.append(whole)
        self.joined[number] = written.files
        said = [line for line in (written.refused, *written.said) if line]
        on_page |= {"said": said, "files": len(written.files)}

    def submitted(self, job_id: str, _items: int) -> None:
        self.jobs[job_id] = self.out if self._slices is None else self._slices.results
        self.running.append(job_id)
        if len(self.running) == 1:
            self.now = "waiting for its turn"
        if self.stopped and self.client is not None:
            self.client.cancel(job_id)

    def event(self, event: pb.WatchJobResponse) -> None:
        self._done += event.stage in {"done", "failed"}
        if event.stage:
            name = self.name_of(event.item)
            called = name if self._slices is None else self._slices.called(name)
            step = f", step {event.step} of {event.steps}" if event.steps else ""
            self.now = f"{called}: {STAGES.get(event.stage, event.stage)}{step}"

    def written(self, item: FileItem, result: Delivered) -> None:
        self._written += 1
        if self._slices is None:
            files = {Part.SOURCE: item.path, **result.files}
            self.results.append(ShownResult(item.file, files, result.provenance))
        elif (on_page := self._slices.shown(item, result)) is not None:
            self.results.append(on_page)

    def job_ended(self, job_id: str, _state: str) -> None:
        if job_id in self.running:
            self.running.remove(job_id)

    def end(self, error: DdibError | None) -> None:
        if error is not None:
            self.error = error_values(error)
        self.now, self.ended = "", True

    def file(self, item: int, part: Part, *, to_keep: bool = False) -> Path:
        """A file of an item; one that is to be kept lies in the folder of the results, or is as it was given."""
        found = self.results[item] if 0 <= item < len(self.results) else None
        if found is None or part not in found.files:
            raise ItemNotFound(f"item {item} has no {part} yet")
        if to_keep and found.study is not None:
            raise ItemNotFound(f"item {item} is a part of a volume or map", hint="download the whole")
        return found.files[part]

    def outputs(self, study: int | None = None) -> Sequence[Path]:
        """The files of a study, or every file in the folder of the results so far."""
        if study is not None:
            if study not in self.joined:
                raise ItemNotFound(f"volume or map {study} is not put together yet")
            return self.joined[study]
        found = [path for path in sorted(self.out.rglob("*")) if path.is_file()]
        if not self.joined and not self._written:
            raise ItemNotFound("there are no results yet")
        return [path for path in found if not _UNFINISHED.search(path.relative_to(self.out).as_posix())]

    def progress(self) -> dict[str, object]:
        """What the page shows of its progress: one count over all jobs."""
        return {
            "done": self._done,
            "items": self.items,
            "files": self.files or self.count,
            "here": len(self.joined) + sum(result.study is None for result in self.results),
            "written": self._written,
            "now": self.now,
            "ended": self.ended,
            "stopped": self.stopped,
            "error": self.error,
            "job_id": next(iter(self.jobs), ""),
            "missing": list(self.missing),
            "studies": [dict(each) for each in self.studies],
        }

    def result(self, item: int) -> dict[str, object]:
        found = self.results[item]
        record = found.provenance
        return {
            "item": item,
            "label": found.label,
            "study": found.study,
            "plane": found.plane,
            "doubtful": bool(record.doubtful),
            "doubts": record.seen,
            "severity": severity(record),
            "figures": figures_in_words(record),
            "parts": sorted(part.value for part in found.files),
        }


def _step(error: DdibError) -> str:
    if isinstance(error, FilesLeftOut) and error.hint:
        return error.hint  # the steps of what was left out
    if isinstance(error, PictureMisfit) and INTENSITY in error.facts:
        return f"on the start page, under volumes and maps, set the rule of intensity to {error.facts[INTENSITY]}"
    return step_in_words(error)


def _tiled(study: Study | None) -> GeoTiffStudy | PictureStudy | None:
    return study if isinstance(study, GeoTiffStudy | PictureStudy) and study.planes > 1 else None


class _Slices:
    """Makes what the page shows of the items of a study: nothing of tiles, which are shown as a whole."""

    def __init__(self, number: int, study: Mapping[str, Any], paths: Sequence[Path], folder: Path) -> None:
        self._number, self._study, self._folder = number, study, folder
        self._paths = {path.stem: path for path in paths}
        self.results = paths[0].parents[1] / "results"
        some = paths[:: max(1, len(paths) // LOOKED_AT)]
        self._window = own_window(np.concatenate([shown_pixels(path.read_bytes()).ravel() for path in some]))

    def called(self, name: str) -> str:
        study, plane = self._study, int(Path(name).stem)
        return f"{study['label']}, {study['plane_word']} {plane}" if study["planes"] > 1 else study["label"]

    def shown(self, item: FileItem, result: Delivered) -> ShownResult | None:
        if self._study["plane_word"] == "tile":
            return None
        found = {Part.SOURCE: preview(self._paths[item.name], self._window)[0]}
        windows = {Part.TRANSLATION: target_window(result.provenance.picture), Part.RETURNED: None}
        for part, window in windows.items():
            if part in result.files:
                found[part] = preview(result.files[part], window)[0]
        files = _written(self._folder / str(self._number) / item.name, found)
        plane = int(item.name)
        return ShownResult(self.called(item.name), files, result.provenance, study=self._number, plane=plane)


def target_window(figures: PictureFigures | None) -> Window | None:
    """The numbers of a translation's file that are the ends of the target's range; None where they are not known."""
    if figures is None or figures.low is None or figures.high is None:
        return None
    slope, intercept = figures.output_scale
    return (figures.low - intercept) / slope, (figures.high - intercept) / slope


def _map(
    number: int, label: str, study: GeoTiffStudy | PictureStudy, written: WrittenStudy, folder: Path
) -> ShownResult | None:
    """What is shown of a map that was put together; None where all of it is of one colour."""
    read: Callable[..., Any] = read_geotiff if isinstance(study, GeoTiffStudy) else read_picture
    try:
        made = read(replace(study.origin, given=written.shown), Options(intensity="values")).pixels.numbers
    except ImageUnreadable:
        return None
    contents = {}
    for part, pixels in ((Part.SOURCE, study.pixels.numbers), (Part.TRANSLATION, made)):
        step = -(-max(pixels.shape[:2]) // MAP_SIDE)
        reduced = pixels[::step, ::step]
        contents[part] = encode_png(shown(reduced))
    files = _written(folder / str(number) / "map", contents)
    return ShownResult(label, files, written.provenance, study=number, plane=1)


def _written(start: Path, contents: Mapping[Part, bytes]) -> dict[Part, Path]:
    start.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {part: start.with_name(f"{start.name}.{part.value}.png") for part in contents}
    for part, path in files.items():
        path.write_bytes(contents[part])
    return files


def severity(record: Record) -> float:
    """The higher, the earlier it should be looked at: doubtful ones first, then by the worst round trip."""
    picture, cycle = record.picture, record.cycle
    figure = 0.0
    if picture is not None and picture.cycle_psnr is not None:
        figure = -picture.cycle_psnr
    elif cycle is not None:
        figure = min(cycle.p99, 999.0)
    elif picture is not None:
        figure = -(picture.edge_correlation or 0.0)
    return 1000.0 * len(record.doubts or ()) + figure


def figures_in_words(record: Record) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if (picture := record.picture) is not None:
        if picture.lost:
            found.append(("Not at its own size", f"it {picture.lost}"))
        if picture.cycle_psnr is not None:
            found.append(("Round trip", f"{picture.cycle_psnr:.1f} dB (higher is better)"))
        if picture.autoencoder_psnr is not None:
            found.append(("Autoencoder alone", f"{picture.autoencoder_psnr:.1f} dB"))
        if picture.edge_correlation is not None:
            found.append(("Edges in common", f"{picture.edge_correlation:.2f} of 1"))
        if picture.differs is not None:
            found.append(("Differs from the map", f"{picture.differs:.0%} of the pixels"))
        if picture.width:
            found.append(
                ("Size", f"{picture.size.replace('x', ' × ')} {'voxels' if picture.depth else 'pixels'}")
            )
        if picture.clipped:
            found.append(("Outside the model's range", f"{picture.clipped:,} values were clipped"))
    if (cycle := record.cycle) is not None:
        found.append(("Round trip, median point", f"{cycle.median:.3g} of a standard deviation"))
        found.append(("Round trip, worst 1 %", f"{cycle.p99:.3g} of a standard deviation"))
    if record.samples > 1:
        found.append(("Points", f"{record.samples:,}"))
    found.append(("Steps", f"{record.solver.evaluations} each way ({record.solver.solver})"))
    found.append(("Time", f"{sum(record.seconds.values()):.1f} s"))
    return found
