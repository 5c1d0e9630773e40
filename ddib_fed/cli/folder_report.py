"""Shows how the jobs of a run go, and what it has translated: on the terminal, as JSON for scripts, and as a page."""

from __future__ import annotations

import itertools
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ddib_fed.client.client import ENDED, Client, open_client, state_of, target_of, waiting_line
from ddib_fed.client.files import FileItem
from ddib_fed.client.folder_run import STAGES, FolderRun, RunProgress
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import Delivered, not_written
from ddib_fed.errors import DdibError, ExhaustedError, error_class
from ddib_fed.record import Part, Record, doubt_lines, fitted_line, tiles_in
from ddib_fed.terminal import bar, drawing, emit, number, print_table, say
from ddib_fed.v1 import translation_pb2 as pb

if TYPE_CHECKING:
    from ddib_fed.formats.parts import WrittenStudy
    from ddib_fed.formats.study import Origin, Study

PAGE = "report.html"
FEWEST = 2
"""Pictures: of one alone the record and the file say all."""
_SLOW = 50
"""Pictures from which drawing has a bar of its own."""
MOST_ROWS = 40
"""Results that are listed one by one; of more the page has the table."""
SAID_EVERY_S = 30.0
"""How often a line is written without a terminal: a log of a day has 3,000."""


class ConsoleProgress(RunProgress):
    """Two bars: items of the job, and steps of the item that moved last; or lines. A context manager."""

    def __init__(
        self, client: Client | None = None, *, show: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(client)
        self._draws = show and sys.stderr.isatty()
        self._says = show and not self._draws
        self._clock = clock

    def __enter__(self) -> Self:
        self._waits = self._total = 0
        self._said = self._clock()
        self._counts = self._reason = ""
        self._progress = drawing("{task.description:<32}", transient=True, disable=not self._draws)
        self._progress.start()
        self._items = self._progress.add_task("items", total=None)
        self._steps = self._progress.add_task("waiting for the node", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[Client]:
        with self, open_client(profile, on_wait=self.wait, client=self.client) as client:
            yield client

    def say(self, line: str) -> None:
        self._progress.console.print(line)

    def study(self, number: int, origin: Origin, study: Study | None) -> None:
        del number, origin
        for warning in study.warnings if study is not None else ():
            say(f"warning: {warning}", err=True)

    def whole(self, total: int, done: int) -> None:
        self._total = total
        self._progress.update(self._items, total=total, completed=done)

    def written(self, item: FileItem, result: Delivered) -> None:
        del item, result
        self._progress.update(self._items, completed=self.done)

    def submitted(self, job_id: str, items: int) -> None:
        if self._says:
            say(f"job {job_id}: submitted, {items:,} item{'s' * (items != 1)}", err=True)

    def job_ended(self, job_id: str, state: str) -> None:
        if self._says:
            say(f"job {job_id}: {state}; {self.done:,} of {self._total:,} files written", err=True)

    def event(self, event: pb.WatchJobResponse) -> None:
        self._waits = 0
        if event.stage == "wait" and event.reason != self._reason:
            self.say(f"job {self.job_id} waits at the node: {error_class(event.reason).sentence}")
            self._reason = event.reason
        if self._says:
            self._say_event(event)
        if not self._total:
            self._progress.update(self._items, completed=event.items_done, total=event.items or None)
        if event.stage:
            what = f"{self.name_of(event.item)}: {STAGES.get(event.stage, event.stage)}"[:60]
            steps = event.steps or None
            self._progress.update(self._steps, description=what, completed=event.step, total=steps)

    def _say_event(self, event: pb.WatchJobResponse) -> None:
        now, ended = self._clock(), event.state in ENDED and not self._total
        if not ended and now - self._said < SAID_EVERY_S:
            return
        self._said = now
        counts = f"{event.items_done:,} of {event.items:,} items done" if event.items else "begins"
        if self._total:
            counts += f"; {self.done:,} of {self._total:,} files written"
        line = f"job {self.job_id}: {state_of(event).lower()}, {counts}"
        if line != self._counts:
            self._counts = line
            say(line, err=True)

    def wait(self, error: DdibError, delay_s: float) -> None:
        """Report once per outage that the node is away, from the second try on, or that it is busy, at once."""
        self._waits += 1
        busy = isinstance(error, ExhaustedError)
        if self._waits == (1 if busy else 2):
            self.say(waiting_line(error, delay_s))
        what = "node is busy" if busy else "node is away"
        self._progress.update(self._steps, description=f"{what}, again in {delay_s:.0f} s", total=None)


def write_pages(run: FolderRun) -> Path | None:
    """Write the page; where it is, or None if there are too few pictures."""
    pictures = [each for each in run.delivered if each.provenance.picture is not None]
    if len(pictures) + len(run.written) < FEWEST and all(each.shown.suffix == ".png" for each in run.written):
        return None
    page = _place(run)
    try:
        _write(run, pictures, page)
    except OSError as error:
        raise not_written(error, page, f"every result is in {run.options.out}") from error
    return page


def _write(run: FolderRun, pictures: list[Delivered], page: Path) -> None:
    from ddib_fed.evaluation.pages import write_results
    from ddib_fed.evaluation.translations import FoundPicture

    sources = {item.file: {Part.SOURCE: item.path} for item in run.items}
    given = Counter(each.file for each in pictures)
    files = [
        FoundPicture(
            each.file if given[each.file] == 1 else each.files[Part.TRANSLATION].name,
            each.files[Part.TRANSLATION],
            each.provenance,
            {**sources.get(each.file, {}), **each.files},
        )
        for each in pictures
    ]
    missing = [(str(each.path), each.why) for each in (*run.left_out, *run.failed)]
    missing += [(str(path), "was not submitted") for path in run.not_submitted]
    total = run.total
    for study in run.written:
        has_frames = study.files[0].suffix == ".dcm" and len(study.files) < study.report["planes"]
        shown = study.record if has_frames else study.shown  # a file of many frames is not drawn
        if has_frames or "slices" not in study.report:
            beside = {Part.SOURCE: study.given} if shown.suffix == ".png" else {}
            if back := study.provenance.files.get(Part.RETURNED):
                beside[Part.RETURNED] = study.record.parent / back.file
            files.append(FoundPicture(study.given.name, shown, study.provenance, beside))
            continue
        total += study.items - 1
        for item in study.report["items"]:
            name, made = f"{study.record.stem}, slice {item['plane'] + 1}", shown
            if made.is_dir() and len(study.files) == study.report["planes"]:
                made = study.files[item["plane"]]
            if record := Record.parse(item):
                files.append(FoundPicture(name, made, record))
            else:
                missing.append((name, item.get("why", "its record cannot be read")))
    first = files[0].record
    target = f"{first.target_institution}/{first.target_domain}".lstrip("/")
    with bar("drawing the page") if len(files) >= _SLOW else nullcontext(lambda *_: None) as show:
        write_results(page, target, total, files, missing, on_drawn=show)


def _place(run: FolderRun) -> Path:
    """Where the page goes: in place of an earlier one of ours, and of nothing else."""
    from ddib_fed.pages import GENERATOR

    for earlier in itertools.count():
        page = run.options.out / (PAGE.replace(".", f"-{earlier}.") if earlier else PAGE)
        if not page.exists():
            break
        with page.open("rb") as file:
            if f'content="{GENERATOR}"'.encode() in file.read(500):
                break
    return page


def print_submitted(run: FolderRun, profile: Path | None) -> None:
    target, out = target_of(run.options.header), shlex.quote(str(run.options.out))
    jobs = [{"job_id": job.job_id, "state": state_of(job), "target": target} for job in run.submitted]
    more = f" --profile {shlex.quote(str(profile))}" if profile is not None else ""

    def show() -> None:
        for job in jobs:
            pasted = shlex.quote(job["job_id"])
            say(f"job {job['job_id']} is {job['state'].lower()} (to {target})")
            say(f"  watch: ddib job watch {pasted}{more}")
            say(f"  fetch: ddib job fetch {pasted} --out {out}{more}")

    emit(jobs[0] if len(jobs) == 1 else {"target": target, "jobs": jobs}, show)


def report_run(run: FolderRun, page: Path | None = None) -> None:
    emit(_as_json(run, page), lambda: _say_run(run, page))


def _say_run(run: FolderRun, page: Path | None) -> None:
    for study in run.written:
        _say_study(study)
    delivered = run.delivered
    if delivered:
        _say_fitted(delivered)
        if len(delivered) <= MOST_ROWS:
            _print_results(delivered)
        used = {(p.calibration_kind, p.calibration_sha256[:12]) for p in (d.provenance for d in delivered)}
        if said := ", ".join(f"calibration: {kind} {sha256}" for kind, sha256 in sorted(used) if sha256):
            say(said)
        if (sets := len({each.provenance.made_by[:3] for each in delivered})) > 1:
            what = f"the results are of {sets} different models or calibrations (see the records)"
            say(f"warning: {what}; the same command with --force makes all again", err=True)
        say(_where(run))
        _say_marks(delivered)
    if page is not None:
        say(f"page: {page}")


def _say_study(each: WrittenStudy) -> None:
    say(f"{each.given}: {each.kind}, {each.items} items -> {each.shown}")
    picture, round_trip = each.provenance.picture, ""
    if "tiles" in each.report and picture is not None and picture.cycle_psnr is not None:
        mark = ", doubtful" if "cycle_psnr" in (each.provenance.doubts or ()) else ""
        round_trip = f"round trip {picture.cycle_psnr:.1f} dB at its own {picture.size} pixels{mark}"
    for line in filter(None, (each.refused, round_trip, *each.said)):
        say(f"  {line}")
    word = "tile" if "tiles" in each.report else "slice"
    parts = [(f"{word} {item['plane'] + 1}", Record.parse(item)) for item in each.report["items"]]
    for line in doubt_lines([(name, record) for name, record in parts if record is not None]):
        say(f"  {line}", err=True)


def _where(run: FolderRun) -> str:
    done, jobs, out = len(run.delivered), run.jobs, run.options.out
    if len(jobs) == 1 and not run.earlier and run.total == len(jobs[0].items):
        return f"{done} of {len(jobs[0].items)} items of job {jobs[0].job_id} are in {out}"
    before = f"; {run.earlier:,} of them were there before" if run.earlier else ""
    of = f" of {len(jobs)} jobs" if len(jobs) > 1 else f" of job {jobs[0].job_id}" if jobs else ""
    return f"{done:,} of {run.total - len(run.written):,} files{of} are in {out}{before}"


def _as_json(run: FolderRun, page: Path | None) -> dict[str, Any]:
    """What was asked and made; of each result its files and, as `record`, what is known of it."""
    jobs = [{"job_id": job.job_id, "state": state_of(job)} for job in run.jobs]
    bad = {
        name: [{"file": each.path, "reason": each.reason, "why": each.why} for each in found]
        for name, found in (("left_out", run.left_out), ("failed", run.failed))
    }
    items = [
        {
            "item": each.item,
            "file": each.file,
            **{part.value: each.files.get(part) for part in Part},
            "provenance": each.record,
            "record": each.provenance,
        }
        for each in run.delivered
    ]
    studies = [
        {
            "input": each.given,
            "files": list(each.files),
            "provenance": each.record,
            "record": each.provenance,
            "study": each.report,
            "refused": each.refused,
        }
        for each in run.written
    ]
    return {
        **(jobs[0] if len(jobs) == 1 else {}),
        "target": target_of(run.options.header),
        "out": run.options.out,
        "files": run.total,
        "earlier": run.earlier,
        "jobs": jobs,
        "page": page,
        **bad,
        "not_submitted": run.not_submitted,
        "items": items,
        "studies": studies,
    }


def _say_fitted(delivered: Sequence[Delivered]) -> None:
    """Say which pictures were not translated at their own size, and how they would be."""
    if not (line := fitted_line([(item.file, item.provenance) for item in delivered])):
        return
    say(line)
    lost = [p for item in delivered if (p := item.provenance.picture) and p.lost]
    high = lost[0].fitted_height
    if high is not None and {(p.fitted_height, p.fitted_width) for p in lost} == {(high, high)}:
        tiles = sum(tiles_in(p.height, p.width, (high, high)) for p in lost)
        if tiles:
            say(f"  at their own size, in {tiles:,} tiles: --tile {high}")


def _say_marks(delivered: Sequence[Delivered]) -> None:
    for line in doubt_lines([(item.file, item.provenance) for item in delivered]):
        say(line, err=True)
    if clipped := [item.file for item in delivered if (p := item.provenance.picture) and p.clipped]:
        say(
            f"{len(clipped)} clipped: values outside the source model's range; the figures refer to the "
            f"original pictures ({', '.join(clipped[:5])}{', ...' * (len(clipped) > 5)})",
            err=True,
        )


def _print_results(delivered: Sequence[Delivered]) -> None:
    """A table of the results; a column without any value is left out."""
    rows: list[dict[str, str]] = []
    for item in delivered:
        record, picture, cycle = item.provenance, item.provenance.picture, item.provenance.cycle
        fitted = f" at {picture.fitted_width}x{picture.fitted_height}" if picture and picture.lost else ""
        rows.append(
            {
                "file": item.file,
                ">pixels": f"{picture.size}{fitted}" if picture else "",
                ">edges": number(picture and picture.edge_correlation),
                ">cycle dB": number(picture and picture.cycle_psnr, ".1f"),
                ">autoencoder dB": number(picture and picture.autoencoder_psnr, ".1f"),
                "": "doubtful" if record.doubtful else "",
                ">samples": f"{record.samples:,}" if picture is None else "",
                ">cycle median": number(cycle and cycle.median),
                ">cycle p99": number(cycle and cycle.p99),
                ">cycle max": number(cycle and cycle.max),
                ">seconds": f"{sum(record.seconds.values()):.1f}",
            }
        )
    kept = [name for name in rows[0] if any(row[name] for row in rows)]
    print_table("", kept, [[row[name] for name in kept] for row in rows])
