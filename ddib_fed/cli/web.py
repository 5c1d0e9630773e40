"""`ddib web`: the page's translations are runs of `ddib translate`, which tell the page what happens.

What cannot be read or translated does not stop the rest: the page shows it, and the error at the end counts it.
"""

from __future__ import annotations

import shlex
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ddib_fed.cli import options
from ddib_fed.cli.files import FileItem, LeftOut, check_names
from ddib_fed.cli.folder_run import FolderRun, RunOptions
from ddib_fed.cli.help import command
from ddib_fed.cli.inputs import open_studies
from ddib_fed.cli.progress import Counted, RunProgress, waiting_line
from ddib_fed.cli.results import STATE_PREFIX, Delivered
from ddib_fed.client.client import Client, JobRequest
from ddib_fed.client.connection import PATIENCE_S, OnWait
from ddib_fed.client.payload import split_target
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import Domains
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.engine.record import Part, PictureFigures
from ddib_fed.errors import Cancelled, DdibError, FilesLeftOut, ImageUnreadable, InputError, PictureMisfit
from ddib_fed.formats.geotiff import GeoTiffStudy, read_geotiff
from ddib_fed.formats.parts import INTENSITY, WrittenStudy
from ddib_fed.formats.pictures import PictureStudy, read_picture
from ddib_fed.formats.recognition import is_dicom
from ddib_fed.formats.study import Options, Origin, Studies, Study
from ddib_fed.protocol.messages import Event, Settings
from ddib_fed.terminal import say
from ddib_fed.web.backend import (
    DroppedSource,
    FinishedStudy,
    ShownResult,
    ShownStudy,
    TranslationRequest,
    hinted_in_words,
    measured_in_words,
    step_in_words,
)
from ddib_fed.web.uploads import Window, own_window, preview, shown

if TYPE_CHECKING:
    from ddib_fed.web.researcher import PageJob

LOOKED_AT: Final = 12
"""Slices of which the window of a volume is taken."""
MAP_SIDE: Final = 2048
"""Pixels of the longer side of a map on the page at most."""
LOOSE: Final = "DICOM files"
"""What a series is called whose files were dropped without a folder."""
MOST_STEPS: Final = 3
"""Next steps that are named at most."""
LIST_PATIENCE_S: Final = 5.0
"""How long a page waits for a node that is away, before it says so."""


@command(epilog="\b\nExample:\n  ddib web --out translated")
@options.option(
    "--out DIR", "Folder for the results; each translation gets a folder in it.", default=Path("ddib-web")
)
@options.PORT
@options.BROWSER
@options.PROFILE
def web(out: Path, port: int, browser: bool, profile_path: Path | None) -> None:
    """Translate in the browser: drop pictures, watch, compare, download.

    A DICOM series, a NIfTI volume or a GeoTIFF becomes one of its own kind, and volumes are scrolled slice by slice.

    The page is served on this machine's loopback only, to the browser that opens the printed link, which works once.
    Dropped files stay in a private temporary folder that is removed at the end; results go to DIR. Towards the node it
    is `ddib translate`: the same profile, certificate and checks.
    """
    from ddib_fed.web.guard import serve, temporary_folder
    from ddib_fed.web.researcher import Researcher

    profile = Profile.load(profile_path)
    with temporary_folder() as folder:
        page = Researcher(ClientBackend(profile), profile, folder, out)
        say(f"results go to {out.resolve()}")
        serve(page.app(), port=port, command="ddib web", folder=folder, browser=browser, on_stop=page.close)
    for each in page.jobs.values():
        _say_unfetched(each, f"--profile {shlex.quote(str(profile.path))}")


def _say_unfetched(job: PageJob, profile: str) -> None:
    """Name the jobs of a translation that were not fetched to their end, and how to fetch them."""
    waiting = {path.parent for path in job.out.rglob(f"{STATE_PREFIX}*")}
    known = {job_id: job.jobs[job_id] for job_id in job.running if job.jobs[job_id] in waiting}
    for job_id, where in known.items():
        say(f"not fetched yet: {job_id}; it continues at the node", err=True)
        say(f"  ddib job fetch {shlex.quote(job_id)} --out {shlex.quote(str(where))} {profile}", err=True)
    for where in sorted(waiting - set(known.values())):
        say(f"the node may have accepted a job for {where}, whose answer was lost", err=True)
        say(f"  ddib job list {profile}", err=True)


class ClientBackend:
    """Translates as `ddib translate` does; opens clients in any thread."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._running: set[Client] = set()
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, on_wait: OnWait | None = None, *, patience_s: float = PATIENCE_S) -> Iterator[Client]:
        """A client, whose calls raise Cancelled once `close` was called."""
        with Client(self.profile, on_wait=on_wait, patience_s=patience_s) as client:
            with self._lock:
                self._running.add(client)
                closed = self._closed
            if closed:
                client.abort()
            try:
                yield client
            finally:
                with self._lock:
                    self._running.discard(client)

    def domains(self) -> Domains:
        with hinted_in_words(), self.opened(patience_s=LIST_PATIENCE_S) as client:
            return client.domains()

    def cancel(self, job_ids: Sequence[str]) -> None:
        if not job_ids:
            return
        failed: DdibError | None = None
        with hinted_in_words(), self.opened(patience_s=LIST_PATIENCE_S) as client:
            for job_id in job_ids:
                try:
                    client.cancel(job_id)
                except DdibError as error:
                    failed = failed or error
            if failed is not None:
                raise failed

    def close(self) -> None:
        """End the calls of all clients."""
        with self._lock:
            self._closed = True
            running = tuple(self._running)
        for client in running:
            client.abort()

    def translate(
        self,
        sources: Sequence[DroppedSource],
        request: TranslationRequest,
        out: Path,
        views: Path,
        job: PageJob,
    ) -> None:
        """Translate everything that was dropped, in as many jobs as the node's limits ask for."""
        try:
            split_target(request.target)
            progress = PageProgress(self, job, sources, views, out)
            settings = Settings().of_quality(request.quality)
            asked = JobRequest(
                request.target, settings, cycle=request.cycle, target_class=request.target_class
            )
            _translate(RunOptions(self.profile, asked, out, progress, skip_bad=True), request, progress)
        except BaseException as error:
            files = [path for path in out.rglob("*") if path.is_file()]
            if all(path.parent.name == "items" for path in files):
                shutil.rmtree(out, ignore_errors=True)
            if isinstance(error, DdibError):
                error.hint = _step(error)
            raise


class PageProgress(RunProgress):
    """Shows a run on the page."""

    def __init__(
        self,
        backend: ClientBackend,
        job: PageJob,
        sources: Sequence[DroppedSource],
        views: Path,
        out: Path,
    ) -> None:
        super().__init__()
        self._backend, self.job, self._views, self._out = backend, job, views, out
        self.sources = {each.path: each for each in sources}
        self.studies: list[ShownStudy] = []
        self.labels: dict[str, str] = {}
        self._slices: _Slices | None = None
        self._names: Sequence[str] = ()
        self._items: dict[str, int] = {}
        loose = [path for path, each in self.sources.items() if each.is_study and path.is_file()]
        self._loose = {path for path in loose if is_dicom(path)}

    def called(self, path: Path) -> str:
        """What the person calls a file or folder that was dropped."""
        if len(self._loose) > 1 and path in self._loose:
            return LOOSE
        known = self.sources.get(path)
        return known.label if known is not None else path.name

    def label(self, origins: Sequence[Origin]) -> None:
        """Give each study a label of its own."""
        alike = Counter(origin.given for origin in origins)
        for each in origins:
            called = self.called(each.given)
            self.labels[each.name] = called if alike[each.given] == 1 else f"{called}, {each.name}"

    @contextmanager
    def counted(self, what: str) -> Iterator[Counted]:
        yield lambda done, total: self.job.waiting(f"{what}: {done:,} of {total:,}")

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[Client]:
        del profile  # the backend's
        with self._backend.opened(lambda *wait: self.job.waiting(waiting_line(*wait))) as self.client:
            yield self.client

    @property
    def stopped(self) -> bool:
        return self.job.stopped

    def say(self, line: str) -> None:
        self.job.waiting(line)

    def study(self, number: int, origin: Origin, study: Study | None) -> None:
        del number
        if self.stopped:
            raise Cancelled("stopped; what was finished before is here")
        if study is not None:
            word = "slice" if _tiled(study) is None else "tile"
            shown = self.labels[origin.name], study.kind, study.planes, len(study.sent), word, study.warnings
            self.studies.append(ShownStudy(*shown))

    def parts(self, number: int, paths: Sequence[Path]) -> None:
        self._slices = _Slices(number, self.studies[number], paths, self._views)

    def study_written(self, number: int, written: WrittenStudy, study: Study | None) -> None:
        self._slices = None
        tiled = _tiled(study)
        whole = (
            None if tiled is None else _map(number, self.studies[number].label, tiled, written, self._views)
        )
        refused = (written.refused,) if written.refused else ()
        said = (*refused, *measured_in_words(written.report), *written.said)
        self.job.put_together(number, FinishedStudy(written.files, written.record, said), whole)

    def submitted(self, job_id: str, items: int) -> None:
        self._items[job_id] = items
        self.job.submitted(job_id, self._out if self._slices is None else self._slices.results)
        if self.job.stopped and self.client is not None:
            self.client.cancel(job_id)

    def begin(self, job_id: str, names: Sequence[str]) -> None:
        self._names, self._items[job_id] = names, len(names)

    def event(self, event: Event) -> None:
        name = self._names[event.item] if event.item < len(self._names) else f"item {event.item}"
        self.job.event(event, name if self._slices is None else self._slices.called(name))

    def written(self, item: FileItem, result: Delivered) -> None:
        if self._slices is not None:
            self.job.written(self._slices.shown(item, result))
            return
        files = {Part.SOURCE: item.path, **result.files}
        outputs = (*result.files.values(), result.record)
        self.job.written(ShownResult(item.file, files, result.provenance, outputs))

    def ended(self, job_id: str, state: str) -> None:
        del state
        self.job.job_ended(job_id, self._items[job_id])


def _translate(what: RunOptions, request: TranslationRequest, progress: PageProgress) -> None:
    run, bad, sources = FolderRun(what), list[tuple[Path, Any]](), progress.sources
    reading = {"intensity": request.intensity, "slices": request.slices, "tile": "auto"}
    choice = open_studies([*sources], reading, what, bad=bad)
    plain = [path for path, each in sources.items() if not each.is_study]
    if choice is not None:
        names = {path: sources[path].name for path in plain}  # of pictures that are cut into tiles
        unread = choice.studies.unread
        run.studies = Studies([u.renamed(names.get(u.origin.given, u.origin.name)) for u in unread])
        progress.label(run.studies.origins)
        plain = [path for path in choice.plain if path in names]
    run.left_out = [LeftOut.of(path, error) for path, error in bad]
    run.items = [FileItem(sources[path].name, sources[path].label, path=path) for path in plain]
    check_names(run.items, what.out)
    try:
        run.read()
        items = len(run.items) + sum(each.items for each in progress.studies)
        progress.job.opened(progress.studies, items, run.total)
        run.translate()
    except InputError:
        if run.total < 2 or not run.left_out:
            raise
    if progress.stopped:
        raise Cancelled("stopped; what was finished before is here")
    run.require_translated()
    failed = [
        (progress.called(each.path), each.as_error(what.profile.hop)) for each in run.left_out + run.failed
    ]
    if failed and run.total == 1:
        raise failed[0][1]
    for label, error in failed:
        progress.job.left_out(label, f"{error.detail} [{error.reason}]")
    if failed:
        steps = dict.fromkeys(_step(error) for _, error in failed)
        raise FilesLeftOut(
            f"{len(failed):,} of {run.total:,} were not translated", hint="; ".join([*steps][:MOST_STEPS])
        )


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
