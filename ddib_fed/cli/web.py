"""One translation of the page: its series, volumes and maps one by one, then its plain files; all by `ddib translate`.

One study is in memory at a time. What cannot be read or translated does not stop the rest: the page shows it, and
the error at the end counts it.
"""

from __future__ import annotations

import shlex
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from ddib_fed.cli import options
from ddib_fed.cli.delivery import STATE_PREFIX, Delivered, Input, WriteOptions, check_names
from ddib_fed.cli.folder_run import translate_files, translate_parts
from ddib_fed.cli.folder_state import Work, require_translated
from ddib_fed.cli.help import command
from ddib_fed.cli.inputs import Chosen
from ddib_fed.cli.progress import Progress, waiting_line
from ddib_fed.cli.studies import INTENSITY, look_at_each, open_studies, translate_study
from ddib_fed.client.client import Client, JobRequest
from ddib_fed.client.connection import PATIENCE_S, OnWait
from ddib_fed.client.payload import split_target
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import Domains
from ddib_fed.data.decoding import Pixels
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.engine.record import Part, PictureFigures
from ddib_fed.errors import (
    Cancelled,
    DdibError,
    FilesLeftOut,
    ImageUnreadable,
    InputError,
    JobFailed,
    PictureMisfit,
)
from ddib_fed.formats.geotiff import GeoTiffStudy, read_geotiff
from ddib_fed.formats.parts import WrittenStudy
from ddib_fed.formats.pictures import PictureStudy, read_picture
from ddib_fed.formats.recognition import is_dicom
from ddib_fed.formats.study import Bad, Options, Origin, Studies, Study
from ddib_fed.protocol.messages import Event, Settings
from ddib_fed.terminal import say
from ddib_fed.web import backend
from ddib_fed.web.backend import (
    Result,
    Source,
    TranslationRequest,
    hinted_in_words,
    measured_in_words,
    step_in_words,
)
from ddib_fed.web.uploads import Window, own_window, preview, shown

if TYPE_CHECKING:
    from ddib_fed.web.researcher import Job


class Clients:
    """Opens clients in any thread."""

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

    def close(self) -> None:
        """End the calls of all."""
        with self._lock:
            self._closed = True
            running = tuple(self._running)
        for client in running:
            client.abort()


LOOKED_AT: Final = 12
"""Slices of which the window of a volume is taken."""
MAP_SIDE: Final = 2048
"""Pixels of the longer side of a map on the page at most."""


def tiled_map(study: Study) -> GeoTiffStudy | PictureStudy | None:
    return study if isinstance(study, GeoTiffStudy | PictureStudy) and study.planes > 1 else None


@dataclass(frozen=True, slots=True)
class SliceViews:
    """Makes what the page shows of the items of a study."""

    number: int
    label: str
    plane_word: str
    items: Mapping[str, Path]
    folder: Path
    window: Window

    @classmethod
    def of(cls, number: int, label: str, plane_word: str, paths: Sequence[Path], folder: Path) -> SliceViews:
        """For the items at some paths."""
        return cls(
            number, label, plane_word, {path.stem: path for path in paths}, folder, source_window(paths)
        )

    def called(self, name: str) -> str:
        return f"{self.label}, {self.plane_word} {int(Path(name).stem)}" if self.plane_word else self.label

    def result(self, given: Input, result: Delivered) -> Result:
        """What is shown of a result."""
        found = {Part.SOURCE: preview(self.items[given.name], self.window)[0]}
        figures = result.provenance.picture
        windows = {Part.TRANSLATION: target_window(figures), Part.RETURNED: None}
        for part, window in windows.items():
            if part in result.files:
                found[part] = preview(result.files[part], window)[0]
        files = _written(self.folder / str(self.number) / given.name, found)
        return Result(
            self.called(given.name),
            files,
            result.provenance,
            study=self.number,
            plane=int(given.name),
        )


def source_window(paths: Sequence[Path]) -> Window:
    step = max(1, len(paths) // LOOKED_AT)
    return own_window(np.concatenate([read_image(path).pixels.reshape(-1) for path in paths[::step]]))


def target_window(figures: PictureFigures | None) -> Window | None:
    """The numbers of a translation's file that are the ends of the target's range; None where they are not known."""
    if figures is None or figures.low is None or figures.high is None:
        return None
    slope, intercept = figures.output_scale
    return (figures.low - intercept) / slope, (figures.high - intercept) / slope


def map_result(
    number: int, label: str, study: GeoTiffStudy | PictureStudy, written: WrittenStudy, folder: Path
) -> Result | None:
    """What is shown of a map that was put together; None where all of it is of one colour."""
    try:
        read = read_geotiff if isinstance(study, GeoTiffStudy) else read_picture
        shown_as = replace(study.origin, given=written.shown)
        made = read(shown_as, Options(intensity="values")).pixels.numbers
    except ImageUnreadable:
        return None
    reduced = {Part.SOURCE: _reduced(study.pixels.numbers), Part.TRANSLATION: _reduced(made)}
    contents = {part: encode_png(shown(each, own_window(each))) for part, each in reduced.items()}
    files = _written(folder / str(number) / "map", contents)
    return Result(label, files, written.provenance, study=number, plane=1)


def _reduced(pixels: Pixels) -> Pixels:
    step = -(-max(pixels.shape[:2]) // MAP_SIDE)
    return pixels[::step, ::step]


def _written(start: Path, contents: Mapping[Part, bytes]) -> dict[Part, Path]:
    start.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {part: start.with_name(f"{start.name}.{part.value}.png") for part in contents}
    for part, path in files.items():
        path.write_bytes(contents[part])
    return files


@command(epilog="\b\nExample:\n  ddib web --out translated")
@click.option(
    "--out",
    "out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("ddib-web"),
    show_default=True,
    metavar="DIR",
    help="Folder for the results; each translation gets a folder in it.",
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


def _say_unfetched(job: Job, profile: str) -> None:
    """Name the jobs of a translation that were not fetched to their end, and how to fetch them."""
    waiting = {path.parent for path in job.out.rglob(f"{STATE_PREFIX}*")}
    known = {job_id: job.jobs[job_id] for job_id in job.running if job.jobs[job_id] in waiting}
    for job_id, where in known.items():
        say(f"not fetched yet: {job_id}; it continues at the node", err=True)
        say(f"  ddib job fetch {shlex.quote(job_id)} --out {shlex.quote(str(where))} {profile}", err=True)
    for where in sorted(waiting - set(known.values())):
        say(f"the node may have accepted a job for {where}, whose answer was lost", err=True)
        say(f"  ddib job list {profile}", err=True)


Shown = Callable[[Input, Delivered], Result | None]
"""What the page shows of a result; None for one that is not shown by itself."""


class PageProgress(Progress):
    """Shows the jobs of one folder of results on the page."""

    def __init__(
        self,
        clients: Clients,
        job: Job,
        out: Path,
        shown: Shown,
        label: Callable[[str], str] = str,
    ) -> None:
        self._clients, self._job, self._out = clients, job, out
        self._shown, self._label = shown, label
        self._names: Sequence[str] = ()
        self._items: dict[str, int] = {}

    @contextmanager
    def counted(self, what: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: self._job.waiting(f"{what}: {done:,} of {total:,}")

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[Client]:
        del profile

        def wait(error: DdibError, delay_s: float) -> None:
            self._job.waiting(waiting_line(error, delay_s))

        with self._clients.opened(wait) as self._client:
            yield self._client

    @property
    def stopped(self) -> bool:
        return self._job.stopped

    def say(self, line: str) -> None:
        self._job.waiting(line)

    def submitted(self, job_id: str, items: int) -> None:
        self._items[job_id] = items
        self._job.submitted(job_id, self._out)
        if self._job.stopped:
            self._client.cancel(job_id)

    def begin(self, job_id: str, names: Sequence[str]) -> None:
        self._names = names
        self._items[job_id] = len(names)

    def event(self, event: Event) -> None:
        name = self._names[event.item] if event.item < len(self._names) else f"item {event.item}"
        self._job.event(event, self._label(name))

    def written(self, given: Input, result: Delivered) -> None:
        super().written(given, result)
        self._job.written(self._shown(given, result))

    def ended(self, job_id: str, state: str) -> None:
        del state
        self._job.job_ended(job_id, self._items[job_id])


LOOSE = "DICOM files"
"""What a series is called whose files were dropped without a folder."""
_STEPS = 3
"""Next steps that are named at most."""


@dataclass(frozen=True, slots=True)
class Translating:
    """One translation."""

    clients: Clients
    given: Sequence[backend.Source]
    asked: backend.TranslationRequest
    out: Path
    views: Path
    job: Job

    def run(self) -> None:
        """Translate everything."""
        try:
            self._run()
        except BaseException as error:
            self._tidy()
            if isinstance(error, DdibError):
                error.hint = _step(error)
            raise

    def _tidy(self) -> None:
        found = [path for path in self.out.rglob("*") if path.is_file()]
        if all(path.parent.name == "items" for path in found):
            shutil.rmtree(self.out, ignore_errors=True)

    def _run(self) -> None:
        split_target(self.asked.target)
        studies, failed, plain = self._opened()
        total = len(studies) + len(failed) + len(plain)
        labels = self._labels(studies.origins)

        def look(at: int, origin: Origin) -> backend.Study:
            del origin
            self._check_stopped()
            return _seen(studies[at], labels[at])

        seen, unreadable = look_at_each(studies.origins, look)
        failed += [(labels[at], error) for at, error in unreadable.items()]
        items = sum(each.items for each in seen.values()) + len(plain)
        self.job.opened([*seen.values()], items, total)
        for number, (at, each) in enumerate(seen.items()):
            self._check_stopped()
            try:
                self._translate_study(number, studies[at], each)
            except (InputError, JobFailed) as error:
                failed.append((labels[at], error.kept()))
        self._check_stopped()
        if plain:
            failed += self._translate_plain(plain)
        self._check_stopped()
        if failed:
            self._refuse(failed, total)

    def _refuse(self, failed: Sequence[tuple[str, DdibError]], total: int) -> None:
        """Tell what was not translated."""
        if total == 1:
            raise failed[0][1]
        for label, error in failed:
            self.job.left_out(label, f"{error.detail} [{error.reason}]")
        steps = dict.fromkeys(_step(error) for _, error in failed)
        raise FilesLeftOut(
            f"{len(failed):,} of {total:,} were not translated", hint="; ".join([*steps][:_STEPS])
        )

    def _opened(self) -> tuple[Studies, list[tuple[str, DdibError]], list[backend.Source]]:
        """What is translated in items, none of it read yet; of what none can be made, with the reason; and the rest."""
        asked: dict[str, Any] = {
            "intensity": self.asked.intensity,
            "slices": self.asked.slices,
            "tile": "auto",
            "overlap": None,
            "keep_parts": False,
        }
        bad: Bad = []
        paths = [each.path for each in self.given]
        found = open_studies(paths, asked, self._work(self.out, _not_shown), bad=bad)
        called, plain = self._called(), {each.path: each for each in self.given if not each.is_study}
        failed = [(called(path), error) for path, error in bad]
        if found is None:
            return Studies(), failed, [*plain.values()]
        tiled = {path: each.name for path, each in plain.items()}
        studies = [u.renamed(tiled.get(u.origin.given, u.origin.name)) for u in found.studies.unread]
        return Studies(studies), failed, [plain[path] for path in found.plain if path in plain]

    def _called(self) -> Callable[[Path], str]:
        known = {each.path: each.label for each in self.given}
        loose = {
            each.path for each in self.given if each.is_study and each.path.is_file() and is_dicom(each.path)
        }
        return lambda path: LOOSE if len(loose) > 1 and path in loose else known.get(path, path.name)

    def _labels(self, origins: Sequence[Origin]) -> list[str]:
        called, alike = self._called(), Counter(origin.given for origin in origins)
        return [
            called(each.given) if alike[each.given] == 1 else f"{called(each.given)}, {each.name}"
            for each in origins
        ]

    def _check_stopped(self) -> None:
        if self.job.stopped:
            raise Cancelled("stopped; what was finished before is here")

    def _work(self, out: Path, shown: Shown, label: Callable[[str], str] = str) -> Work:
        progress = PageProgress(self.clients, self.job, out, shown, label)
        return Work(self.clients.profile, self._request, WriteOptions(self.out, skip_bad=True), progress)

    @property
    def _request(self) -> JobRequest:
        settings = Settings().of_quality(self.asked.quality)
        return JobRequest(
            self.asked.target, settings, cycle=self.asked.cycle, target_class=self.asked.target_class
        )

    def _translate_study(self, number: int, study: Study, seen: backend.Study) -> None:
        """Translate the items of a study, and put it together."""
        tiled = tiled_map(study)

        def send(paths: Sequence[Path], results: Path) -> dict[Path, str]:
            word = seen.plane_word if study.planes > 1 else ""
            views = SliceViews.of(number, seen.label, word, paths, self.views)
            work = self._work(results, views.result if tiled is None else _not_shown, views.called)
            return translate_parts(work, paths, results)

        write = WriteOptions(self.out)
        digest = self._request.digest(self.clients.profile.institution)
        written = translate_study(study, send, write, asked=digest)
        shown = map_result(number, seen.label, tiled, written, self.views) if tiled is not None else None
        refused = (written.refused,) if written.refused else ()
        said = (*refused, *measured_in_words(written.report), *written.said)
        done = backend.PutTogether(written.files, written.record, said, written.provenance)
        self.job.put_together(number, done, shown)

    def _translate_plain(self, plain: Sequence[backend.Source]) -> list[tuple[str, DdibError]]:
        """Translate files that the node takes as they are; those that were left out, and why."""
        sources = {each.name: each for each in plain}
        chosen = Chosen(
            tuple(each.path for each in plain), tuple(Input(each.name, each.label) for each in plain)
        )
        check_names(chosen.paths, chosen.inputs, self.out)

        def shown(given: Input, result: Delivered) -> backend.Result:
            source = sources[given.name]
            files = {Part.SOURCE: source.path, **result.files}
            outputs = (*result.files.values(), result.record)
            return backend.Result(source.label, files, result.provenance, outputs)

        outcome, _ = translate_files(chosen, self._work(self.out, shown), page=False)
        self._check_stopped()
        hop = self.clients.profile.hop
        require_translated(outcome, hop, skip_bad=True)
        labels = {each.path: each.label for each in plain}
        return [(labels[each.path], each.as_error(hop)) for each in (*outcome.left_out, *outcome.failed)]


def _not_shown(given: Input, result: Delivered) -> None:
    del given, result


def _seen(study: Study, label: str) -> backend.Study:
    word = "slice" if tiled_map(study) is None else "tile"
    return backend.Study(label, study.kind, study.planes, len(study.sent), word, study.warnings)


def _step(error: DdibError) -> str:
    if isinstance(error, FilesLeftOut) and error.hint:
        return error.hint  # the steps of what was left out
    if isinstance(error, PictureMisfit) and INTENSITY in error.facts:
        return f"on the start page, under volumes and maps, set the rule of intensity to {error.facts[INTENSITY]}"
    return step_in_words(error)


LIST_PATIENCE_S = 5.0
"""How long a page waits for a node that is away, before it says so."""


class ClientBackend:
    """Translates as `ddib translate` does."""

    def __init__(self, profile: Profile) -> None:
        self._clients = Clients(profile)

    def domains(self) -> Domains:
        with hinted_in_words(), self._clients.opened(patience_s=LIST_PATIENCE_S) as client:
            return client.domains()

    def translate(
        self,
        sources: Sequence[Source],
        request: TranslationRequest,
        out: Path,
        views: Path,
        job: Job,
    ) -> None:
        Translating(self._clients, sources, request, out, views, job).run()

    def cancel(self, job_ids: Sequence[str]) -> None:
        if not job_ids:
            return
        failed: DdibError | None = None
        with hinted_in_words(), self._clients.opened(patience_s=LIST_PATIENCE_S) as client:
            for job_id in job_ids:
                try:
                    client.cancel(job_id)
                except DdibError as error:
                    failed = failed or error
            if failed is not None:
                raise failed

    def close(self) -> None:
        self._clients.close()
