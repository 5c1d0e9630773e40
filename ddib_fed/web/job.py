"""One translation of the page: a run of `ddib translate` of what was dropped, and what the page shows of it.

What cannot be read or translated does not stop the rest: the page shows it, and the error at the end counts it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed import Client, Delivered, Event, Progress, Record, Request, Run, Settings, errors
from ddib_fed.files import problem_text
from ddib_fed.web.guard import error_values
from ddib_fed.web.uploads import DROPPED, renamed

if TYPE_CHECKING:
    from ddib_fed.studies import Study, WrittenStudy

LOOKED_AT: Final = 12  # slices of which the window of a volume is taken
MAP_SIDE: Final = 2048  # pixels of the longer side of a map on the page at most
_UNFINISHED: Final = re.compile(r"(^|/)\.|\.parts/(items|results|output)/")
"""In the path of a file that is no result."""
MOST_STEPS: Final = 3  # next steps that are named at most
INTENSITY: Final = "intensity"  # name of the fact of an error that is a rule which fits the model


class TranslationRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = Field(min_length=3, max_length=400)
    quality: Literal["draft", "standard", "exact"] = "standard"
    cycle: bool = True
    target_class: str = Field(default="", max_length=200)
    slices: Literal["auto", "axial", "coronal", "sagittal"] = "auto"
    intensity: str = Field(default="auto", max_length=100)

    @classmethod
    def parse(cls, body: bytes) -> TranslationRequest:
        try:
            parsed = cls.model_validate_json(body)
        except ValidationError as error:
            problem = f"the request cannot be used: {problem_text(error)}"
            raise errors.UsageError(problem, hint="load the page again") from error
        Run.check_intensity(parsed.intensity)
        return parsed


OnWait = Callable[[errors.DdibError, float], None]
Opener = Callable[[OnWait], AbstractContextManager[Client]]


@dataclass(frozen=True, slots=True)
class ShownResult:
    """A picture that is compared on the page: an item of a study with `views` by part, or a file with its `result`."""

    label: str
    provenance: Record
    views: Mapping[str, Path]
    result: Delivered | None = None
    study: int | None = None
    plane: int = 0

    @property
    def parts(self) -> list[str]:
        if self.result is None:
            return sorted(self.views)
        return sorted({"source", *(part.value for part in self.result.files)} - {"latent"})


class PageJob(Progress):
    """One translation, in as many jobs as the node's limits ask for; set in the run's thread, read in the server's."""

    def __init__(
        self, number: int, count: int, request: TranslationRequest, out: Path, opener: Opener
    ) -> None:
        self.number, self.count, self.request, self.out = number, count, request, out
        self._opener = opener
        self.items = self.files = 0
        self.studies: list[dict[str, Any]] = []
        """Series, volumes, maps and pictures of further formats, as the page gets them."""
        self.joined: dict[int, tuple[Path, ...]] = {}  # the files of those that are put together
        self.jobs: dict[str, Path] = {}
        self.running: list[str] = []
        self.now = "reading the files"
        self.results: list[ShownResult] = []
        self.missing: list[str] = []
        self.error: dict[str, str] | None = None
        self.ended = False
        self._done = self._written = 0
        self._slices: _Slices | None = None

    def translate(self, dropped: Path, views: Path) -> None:
        """Translate everything below a folder; every error has a hint for somebody at the page."""
        self._dropped, self._views = dropped, views
        request = self.request
        try:
            asked = Request(
                Settings().of_quality(request.quality), cycle=request.cycle, target_class=request.target_class
            )
            with self._opener(lambda *wait: self.say(self.waiting(*wait))) as self._client:
                self._translate(Run(self._client, request.target, self.out, asked, self, skip_bad=True))
        except BaseException as error:
            files = [path for path in self.out.rglob("*") if path.is_file()]
            if all(path.parent.name == "items" for path in files):
                shutil.rmtree(self.out, ignore_errors=True)
            if isinstance(error, errors.DdibError):
                error.hint = _step(error)
                renamed(error, dropped)
            raise

    def _translate(self, run: Run) -> None:
        run.open([self._dropped], intensity=self.request.intensity, slices=self.request.slices)
        try:
            run.read()
        except (errors.InputError, errors.InternalError) as error:
            if isinstance(error, errors.UsageError) or run.total < 2 or not run.left_out:
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
            told = renamed(errors.DdibError(f"{each.path}: {each.why} [{each.reason}]"), self._dropped)
            self.missing.append(told.detail)
        if failed:
            steps = dict.fromkeys(_step(each.error) for each in failed)
            raise errors.FilesLeftOut(
                f"{len(failed):,} of {run.total:,} were not translated", hint="; ".join([*steps][:MOST_STEPS])
            )

    def _called(self, study: Study) -> str:
        """Return what the person calls it; DICOM files are the series of all that was dropped."""
        origin = study.origin
        if origin.given == self._dropped:
            return origin.name.removeprefix(f"{DROPPED}/")
        return str(origin.given.relative_to(self._dropped))

    def stop(self) -> tuple[str, ...]:
        """Stop submitting; return the jobs at the node, which the caller cancels."""
        self.stopped = True
        self.now = "stopping"
        return tuple(self.running)

    def _check_stopped(self) -> None:
        if self.stopped:
            raise errors.Cancelled("stopped; what was finished before is here")

    @contextmanager
    def counted(self, what: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: self.say(f"{what}: {done:,} of {total:,}")

    def say(self, line: str) -> None:
        self.now = line

    def study(self, number: int, study: Study | None) -> None:
        del number
        self._check_stopped()
        if study is not None:
            label = self._called(study)
            shown = {
                "label": label,
                "kind": study.kind,
                "planes": study.planes,
                "items": len(study.sent),
                "plane_word": "tile" if study.in_tiles else "slice",
                "warnings": [line.replace(study.origin.called, label) for line in study.warnings],
                "said": [],
                "files": 0,
            }
            self.studies.append(shown)

    def parts(self, number: int, paths: Sequence[Path]) -> None:
        self._slices = _Slices(number, self.studies[number], paths, self._views)

    def study_written(self, number: int, written: WrittenStudy, study: Study | None) -> None:
        self._slices, on_page = None, self.studies[number]
        if study is not None and (drawn := study.views(written.shown, MAP_SIDE)):
            views = _written(self._views / str(number) / "map", drawn)
            self.results.append(ShownResult(on_page["label"], written.provenance, views, None, number, 1))
        self.joined[number] = written.files
        said = [line for line in (written.refused, *written.said) if line]
        on_page |= {"said": said, "files": len(written.files)}

    def submitted(self, job_id: str, items: int) -> None:
        del items
        self.jobs[job_id] = self.out if self._slices is None else self._slices.results
        self.running.append(job_id)
        if len(self.running) == 1:
            self.now = "waiting for its turn"
        if self.stopped:
            self._client.cancel(job_id)

    def event(self, event: Event) -> None:
        self._done += event.stage in {"done", "failed"}
        if event.stage:
            name = self.name_of(event.item)
            called = name if self._slices is None else self._slices.called(name)
            step = f", step {event.step} of {event.steps}" if event.steps else ""
            self.now = f"{called}: {event.words}{step}"

    def written(self, result: Delivered) -> None:
        self._written += 1
        if self._slices is None:
            self.results.append(ShownResult(result.file, result.provenance, {}, result))
        elif (on_page := self._slices.shown(result)) is not None:
            self.results.append(on_page)

    def job_ended(self, job_id: str, state: str) -> None:
        del state
        if job_id in self.running:
            self.running.remove(job_id)

    def end(self, error: errors.DdibError | None) -> None:
        if error is not None:
            self.error = error_values(error)
        self.now, self.ended = "", True

    def view(self, item: int, part: str) -> tuple[bytes, str]:
        """Return what a browser shows of a file of an item, and its media type."""
        result = self._result(item, part)
        if result.result is not None:
            return result.result.preview(part)
        return result.views[part].read_bytes(), "image/png"

    def file(self, item: int, part: str) -> Path:
        """Return a file of an item: it lies in the folder of the results, or is the one that was given."""
        result = self._result(item, part)
        path = None if result.result is None else result.result.place(part)
        if path is None:
            raise errors.ItemNotFound(f"item {item} is a part of a volume or map", hint="download the whole")
        return path

    def _result(self, item: int, part: str) -> ShownResult:
        result = self.results[item] if 0 <= item < len(self.results) else None
        if result is None or part not in result.parts:
            raise errors.ItemNotFound(f"item {item} has no {part[:20]!r}")
        return result

    def outputs(self, study: int | None = None) -> Sequence[Path]:
        """Return the files of a study, or every result so far."""
        if study is not None:
            if study not in self.joined:
                raise errors.ItemNotFound(f"volume or map {study} is not put together yet")
            return self.joined[study]
        paths = [path for path in sorted(self.out.rglob("*")) if path.is_file()]
        if not self.joined and not self._written:
            raise errors.ItemNotFound("there are no results yet")
        return [path for path in paths if not _UNFINISHED.search(path.relative_to(self.out).as_posix())]

    def progress(self) -> dict[str, object]:
        """Return the progress for the page, counted over all jobs."""
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
        result = self.results[item]
        record = result.provenance
        return {
            "item": item,
            "label": result.label,
            "study": result.study,
            "plane": result.plane,
            "doubtful": bool(record.doubtful),
            "doubts": record.seen,
            "severity": record.severity,
            "figures": [*record.figures.items()],
            "parts": result.parts,
        }


def _step(error: errors.DdibError) -> str:
    if isinstance(error, errors.FilesLeftOut) and error.hint:
        return error.hint  # the steps of what was left out
    if isinstance(error, errors.PictureMisfit) and INTENSITY in error.facts:
        return f"on the start page, under volumes and maps, set the rule of intensity to {error.facts[INTENSITY]}"
    return errors.step_in_words(error)


class _Slices:
    """Makes what the page shows of the items of a study: nothing of tiles, which are shown as a whole."""

    def __init__(self, number: int, study: Mapping[str, Any], paths: Sequence[Path], folder: Path) -> None:
        self._number, self._study, self._folder = number, study, folder
        self.results = paths[0].parents[1] / "results"
        some = paths[:: max(1, len(paths) // LOOKED_AT)]
        self._window = Delivered.window_of(some)

    def called(self, name: str) -> str:
        study, plane = self._study, int(Path(name).stem)
        return f"{study['label']}, {study['plane_word']} {plane}" if study["planes"] > 1 else study["label"]

    def shown(self, result: Delivered) -> ShownResult | None:
        if self._study["plane_word"] == "tile":
            return None
        name = result.record.stem
        figures = result.provenance.picture
        span = figures.window if figures is not None else None
        windows = {"source": self._window, "translation": span, "returned": None}
        parts = {part: window for part, window in windows.items() if result.place(part)}
        drawn = {part: result.preview(part, window)[0] for part, window in parts.items()}
        views = _written(self._folder / str(self._number) / name, drawn)
        return ShownResult(self.called(name), result.provenance, views, None, self._number, int(name))


def _written(start: Path, contents: Mapping[str, bytes]) -> dict[str, Path]:
    start.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {part: start.with_name(f"{start.name}.{part}.png") for part in contents}
    for part, path in files.items():
        path.write_bytes(contents[part])
    return files
