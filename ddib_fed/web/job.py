"""One translation of the page: a run of `ddib translate` that tells the page what happens.

What cannot be read or translated does not stop the rest: the page shows it, and the error at the end counts it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from ddib_fed.client.client import Client, JobRequest
from ddib_fed.client.connection import OnWait
from ddib_fed.client.files import FileItem, LeftOut, check_names
from ddib_fed.client.folder_run import FolderRun, RunOptions
from ddib_fed.client.inputs import open_studies
from ddib_fed.client.payload import split_target
from ddib_fed.client.profile import Profile
from ddib_fed.client.progress import Counted, RunProgress, waiting_line
from ddib_fed.client.results import Delivered
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.engine.record import Part, PictureFigures
from ddib_fed.errors import (
    Cancelled,
    DdibError,
    FilesLeftOut,
    ImageUnreadable,
    InputError,
    ItemNotFound,
    PictureMisfit,
    UsageError,
    step_in_words,
)
from ddib_fed.formats.parts import INTENSITY, WrittenStudy
from ddib_fed.formats.recognition import is_dicom
from ddib_fed.formats.study import Options, Origin, Studies, Study
from ddib_fed.formats.tiles import GeoTiffStudy, PictureStudy, read_geotiff, read_picture
from ddib_fed.protocol.messages import Event, Settings
from ddib_fed.web.backend import (
    DroppedSource,
    ShownResult,
    ShownStudy,
    TranslationRequest,
    doubts_in_words,
    event_in_words,
    figures_in_words,
    measured_in_words,
    severity,
)
from ddib_fed.web.guard import error_values
from ddib_fed.web.uploads import Window, own_window, preview, renamed, shown

LOOKED_AT: Final = 12
"""Slices of which the window of a volume is taken."""
MAP_SIDE: Final = 2048
"""Pixels of the longer side of a map on the page at most."""
LOOSE: Final = "DICOM files"
"""What a series is called whose files were dropped without a folder."""
MOST_STEPS: Final = 3
"""Next steps that are named at most."""
Opener = Callable[[OnWait], AbstractContextManager[Client]]


class PageJob(RunProgress):
    """One translation, in as many jobs of the node as its limits ask for; what the page shows of it.

    Its attributes are set in the run's thread and read in the server's.
    """

    def __init__(
        self, number: int, count: int, request: TranslationRequest, out: Path, opener: Opener
    ) -> None:
        super().__init__()
        self.number, self.count, self.request, self.out = number, count, request, out
        self._opener = opener
        self.labels: dict[str, str] = {}
        """What the person calls the paths of this translation."""
        self.items = self.files = 0
        self.studies: list[ShownStudy] = []
        self.jobs: dict[str, Path] = {}
        self.running: list[str] = []
        self.now = "reading the files"
        self.results: list[ShownResult] = []
        self.missing: list[str] = []
        self.error: dict[str, str] | None = None
        self.ended = self._stopped = False
        self._before = self._moved = self._written = 0
        self._slices: _Slices | None = None
        self._names: Sequence[str] = ()
        self._sources: dict[Path, DroppedSource] = {}
        self._loose: frozenset[Path] = frozenset()
        self._of_study: dict[str, str] = {}

    def translate(self, profile: Profile, sources: Sequence[DroppedSource], views: Path) -> None:
        """Translate everything that was dropped; every error has a hint for somebody at the page."""
        self._sources, self._views = {each.path: each for each in sources}, views
        loose = [each.path for each in sources if each.is_study and each.path.is_file()]
        self._loose = frozenset(path for path in loose if is_dicom(path))
        request = self.request
        try:
            split_target(request.target)
            asked = JobRequest(
                request.target,
                Settings().of_quality(request.quality),
                cycle=request.cycle,
                target_class=request.target_class,
            )
            self._translate(RunOptions(profile, asked, self.out, self, skip_bad=True))
        except BaseException as error:
            files = [path for path in self.out.rglob("*") if path.is_file()]
            if all(path.parent.name == "items" for path in files):
                shutil.rmtree(self.out, ignore_errors=True)
            if isinstance(error, DdibError):
                error.hint = _step(error)
            raise

    def _translate(self, what: RunOptions) -> None:
        run, bad = FolderRun(what), list[tuple[Path, Any]]()
        reading = {"intensity": self.request.intensity, "slices": self.request.slices, "tile": "auto"}
        choice = open_studies([*self._sources], reading, what, bad=bad)
        plain = {path: each for path, each in self._sources.items() if not each.is_study}
        if choice is not None:
            names = {path: each.name for path, each in plain.items()}  # of pictures that are cut into tiles
            unread = choice.studies.unread
            run.studies = Studies([u.renamed(names.get(u.origin.given, u.origin.name)) for u in unread])
            alike = Counter(origin.given for origin in run.studies.origins)
            for each in run.studies.origins:
                called = self._called(each.given)
                self._of_study[each.name] = called if alike[each.given] == 1 else f"{called}, {each.name}"
            plain = {path: plain[path] for path in choice.plain if path in plain}
        run.left_out = [LeftOut.of(path, error) for path, error in bad]
        run.items = [FileItem(each.name, each.label, path=path) for path, each in plain.items()]
        check_names(run.items, what.out)
        try:
            run.read()
        except UsageError:
            raise
        except InputError:
            if run.total < 2 or not run.left_out:
                raise
        else:
            self.items, self.files = len(run.items) + sum(each.items for each in self.studies), run.total
            self.now = "sending the pictures to your institution's node"
            run.translate()
        self._check_stopped()
        run.require_translated()
        failed = [
            (self._called(each.path), each.as_error(what.profile.hop)) for each in run.left_out + run.failed
        ]
        if failed and run.total == 1:
            raise failed[0][1]
        for label, why in failed:
            told = self._renamed(f"{why.detail} [{why.reason}]").removeprefix(f"{label}: ")
            self.missing.append(f"{label}: {told}")
        if failed:
            steps = dict.fromkeys(_step(why) for _, why in failed)
            raise FilesLeftOut(
                f"{len(failed):,} of {run.total:,} were not translated", hint="; ".join([*steps][:MOST_STEPS])
            )

    def _called(self, path: Path) -> str:
        if len(self._loose) > 1 and path in self._loose:
            return LOOSE
        known = self._sources.get(path)
        return known.label if known is not None else path.name

    def _renamed(self, text: str) -> str:
        return renamed(DdibError(text), self.labels).detail

    @property
    def stopped(self) -> bool:
        return self._stopped

    def stop(self) -> tuple[str, ...]:
        """Have nothing more submitted; the jobs that are at the node now, for being cancelled there."""
        self._stopped = True
        self.now = "stopping"
        return tuple(self.running)

    def _check_stopped(self) -> None:
        if self._stopped:
            raise Cancelled("stopped; what was finished before is here")

    @contextmanager
    def counted(self, what: str) -> Iterator[Counted]:
        yield lambda done, total: self.say(f"{what}: {done:,} of {total:,}")

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[Client]:
        del profile
        with self._opener(lambda *wait: self.say(waiting_line(*wait))) as self.client:
            yield self.client

    def say(self, line: str) -> None:
        self.now = line

    def study(self, number: int, origin: Origin, study: Study | None) -> None:
        del number
        self._check_stopped()
        if study is not None:
            word = "slice" if _tiled(study) is None else "tile"
            label, items = self._of_study[origin.name], len(study.sent)
            self.studies.append(
                ShownStudy(label, study.kind, study.planes, items, word, list(study.warnings))
            )

    def parts(self, number: int, paths: Sequence[Path]) -> None:
        self._slices = _Slices(number, self.studies[number], paths, self._views)

    def study_written(self, number: int, written: WrittenStudy, study: Study | None) -> None:
        self._slices, tiled, on_page = None, _tiled(study), self.studies[number]
        if tiled is not None and (whole := _map(number, on_page.label, tiled, written, self._views)):
            self.results.append(whole)
        refused = (written.refused,) if written.refused else ()
        on_page.said = [*refused, *measured_in_words(written.report), *written.said]
        on_page.record, on_page.outputs = written.record, written.files

    def submitted(self, job_id: str, items: int) -> None:
        del items
        self.jobs[job_id] = self.out if self._slices is None else self._slices.results
        self.running.append(job_id)
        if len(self.running) == 1:
            self.now = "waiting for its turn"
        if self._stopped and self.client is not None:
            self.client.cancel(job_id)

    def begin(self, job_id: str, names: Sequence[str]) -> None:
        del job_id
        self._names = names

    def event(self, event: Event) -> None:
        self._moved = event.items_done
        name = self._names[event.item] if event.item < len(self._names) else f"item {event.item}"
        if event.stage:
            self.now = event_in_words(event, name if self._slices is None else self._slices.called(name))

    def written(self, item: FileItem, result: Delivered) -> None:
        self._written += 1
        if self._slices is None:
            files = {Part.SOURCE: item.path, **result.files}
            outputs = (*result.files.values(), result.record)
            self.results.append(ShownResult(item.file, files, result.provenance, outputs))
        elif (on_page := self._slices.shown(item, result)) is not None:
            self.results.append(on_page)

    def job_ended(self, job_id: str, state: str) -> None:
        del state
        if job_id in self.running:
            self.running.remove(job_id)
        self._before, self._moved = self._before + len(self._names), 0

    def end(self, error: DdibError | None) -> None:
        if error is not None:
            self.error = error_values(renamed(error, self.labels))
        self.now, self.ended = "", True

    def file(self, item: int, part: Part) -> Path:
        found = self.results[item] if 0 <= item < len(self.results) else None
        if found is None or part not in found.files:
            raise ItemNotFound(f"item {item} has no {part} yet")
        return found.files[part]

    def download(self, item: int, part: Part) -> Path:
        """A file of an item as it lies in the folder of the results, or as it was given."""
        path = self.file(item, part)
        if self.results[item].study is not None:
            raise ItemNotFound(f"item {item} is a part of a volume or map", hint="download the whole")
        return path

    def together(self, study: int) -> ShownStudy:
        found = self.studies[study] if study < len(self.studies) else None
        if found is None or not found.outputs:
            raise ItemNotFound(f"volume or map {study} is not put together yet")
        return found

    def outputs(self) -> list[Path]:
        """Every file in the folder of the results so far."""
        own = [path for result in list(self.results) for path in result.outputs]
        whole = [path for each in self.studies if each.record for path in (*each.outputs, each.record)]
        return [*own, *whole]

    def progress(self) -> dict[str, object]:
        """What the page shows of its progress: one count over all jobs."""
        together = sum(bool(each.outputs) for each in self.studies)
        return {
            "done": self._before + self._moved,
            "items": self.items,
            "files": self.files or self.count,
            "here": together + sum(result.study is None for result in self.results),
            "written": self._written,
            "now": self.now,
            "ended": self.ended,
            "stopped": self._stopped,
            "error": self.error,
            "job_id": next(iter(self.jobs), ""),
            "missing": list(self.missing),
            "studies": [
                {
                    "label": each.label,
                    "kind": each.kind,
                    "planes": each.planes,
                    "items": each.items,
                    "plane_word": each.plane_word,
                    "warnings": [self._renamed(warning) for warning in each.warnings],
                    "said": list(each.said),
                    "files": len(each.outputs),
                }
                for each in self.studies
            ],
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
            "doubts": doubts_in_words(record),
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

    def __init__(self, number: int, study: ShownStudy, paths: Sequence[Path], folder: Path) -> None:
        self._number, self._study, self._folder = number, study, folder
        self._paths = {path.stem: path for path in paths}
        self.results = paths[0].parents[1] / "results"
        some = paths[:: max(1, len(paths) // LOOKED_AT)]
        self._window = own_window(np.concatenate([read_image(path).pixels.reshape(-1) for path in some]))

    def called(self, name: str) -> str:
        study = self._study
        return (
            f"{study.label}, {study.plane_word} {int(Path(name).stem)}" if study.planes > 1 else study.label
        )

    def shown(self, item: FileItem, result: Delivered) -> ShownResult | None:
        if self._study.plane_word == "tile":
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
        contents[part] = encode_png(shown(reduced, own_window(reduced)))
    files = _written(folder / str(number) / "map", contents)
    return ShownResult(label, files, written.provenance, study=number, plane=1)


def _written(start: Path, contents: Mapping[Part, bytes]) -> dict[Part, Path]:
    start.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {part: start.with_name(f"{start.name}.{part.value}.png") for part in contents}
    for part, path in files.items():
        path.write_bytes(contents[part])
    return files
