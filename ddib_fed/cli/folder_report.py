"""Shows how the jobs of a run go, and what it has translated: on the terminal, and as JSON for scripts."""

from __future__ import annotations

import itertools
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ddib_fed
from ddib_fed.errors import DdibError, ExhaustedError
from ddib_fed.terminal import drawing, emit, print_table, say

if TYPE_CHECKING:
    from ddib_fed.studies import Study, WrittenStudy

MOST_ROWS = 40  # results that are listed one by one; of more the page has the table
SAID_EVERY_S = 30.0  # how often a line is written without a terminal: a log of a day has 3,000


class ConsoleProgress(ddib_fed.Progress):
    """Two bars: items of the job, and steps of the item that moved last; or lines. A context manager."""

    def __init__(self, *, show: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._draws = show and sys.stderr.isatty()
        self._says = show and not self._draws
        self._clock = clock
        self._progress: Any = None

    def __enter__(self) -> Self:
        self.waits = self._total = 0
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

    def say(self, line: str) -> None:
        if self._progress is None:
            say(line, err=True)
        else:
            self._progress.console.print(line)

    def study(self, number: int, study: Study | None) -> None:
        del number
        for warning in study.warnings if study is not None else ():
            say(f"warning: {warning}", err=True)

    def whole(self, total: int, done: int) -> None:
        self._total = total
        self._progress.update(self._items, total=total, completed=done)

    def written(self, result: ddib_fed.Delivered) -> None:
        del result
        self._progress.update(self._items, completed=self.done)

    def submitted(self, job_id: str, items: int) -> None:
        if self._says:
            say(f"job {job_id}: submitted, {items:,} item{'s' * (items != 1)}", err=True)

    def job_ended(self, job_id: str, state: str) -> None:
        if self._says:
            say(f"job {job_id}: {state.lower()}; {self.done:,} of {self._total:,} files written", err=True)

    def event(self, event: ddib_fed.Event) -> None:
        self.waits = 0
        if event.stage == "wait" and event.reason != self._reason:
            self.say(f"job {self.job_id} waits at the node: {event.sentence}")
            self._reason = event.reason
        if self._says:
            self._say_event(event)
        if not self._total:
            self._progress.update(self._items, completed=event.items_done, total=event.items or None)
        if event.stage:
            what = f"{self.name_of(event.item)}: {event.words}"[:60]
            steps = event.steps or None
            self._progress.update(self._steps, description=what, completed=event.step, total=steps)

    def _say_event(self, event: ddib_fed.Event) -> None:
        now, ended = self._clock(), event.state.ended and not self._total
        if not ended and now - self._said < SAID_EVERY_S:
            return
        self._said = now
        counts = f"{event.items_done:,} of {event.items:,} items done" if event.items else "begins"
        if self._total:
            counts += f"; {self.done:,} of {self._total:,} files written"
        line = f"job {self.job_id}: {event.state.lower()}, {counts}"
        if line != self._counts:
            self._counts = line
            say(line, err=True)

    def wait(self, error: DdibError, delay_s: float) -> None:
        """Report once per outage that the node is away, from the second try on, or that it is busy, at once."""
        self.waits += 1
        busy = isinstance(error, ExhaustedError)
        if self.waits == (1 if busy else 2):
            self.say(self.waiting(error, delay_s))
        what = "node is busy" if busy else "node is away"
        self._progress.update(self._steps, description=f"{what}, again in {delay_s:.0f} s", total=None)


def print_submitted(run: ddib_fed.Run, profile: Path | None) -> None:
    target, out = run.target, shlex.quote(str(run.out))
    jobs = [{"job_id": job.job_id, "state": job.state, "target": target} for job in run.submitted]
    more = f" --profile {shlex.quote(str(profile))}" if profile is not None else ""

    def show() -> None:
        for job in jobs:
            pasted = shlex.quote(job["job_id"])
            say(f"job {job['job_id']} is {job['state'].lower()} (to {target})")
            say(f"  watch: ddib job watch {pasted}{more}")
            say(f"  fetch: ddib job fetch {pasted} --out {out}{more}")

    emit(jobs[0] if len(jobs) == 1 else {"target": target, "jobs": jobs}, show)


def report_run(run: ddib_fed.Run, page: Path | None = None) -> None:
    emit(run.report(page), lambda: _say_run(run, page))


def _say_run(run: ddib_fed.Run, page: Path | None) -> None:
    for study in run.written:
        _say_study(study)
    delivered = run.delivered
    if delivered:
        if line := ddib_fed.Record.fitted_line([(item.file, item.provenance) for item in delivered]):
            say(line)
        if any(picture and picture.shrink > 1 for picture in (item.provenance.picture for item in delivered)):
            say("  at their own size, in tiles: --tile PIXELS")
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
    parts = [(f"{word} {item['plane'] + 1}", ddib_fed.Record.parse(item)) for item in each.report["items"]]
    for line in ddib_fed.Record.doubt_lines([(name, record) for name, record in parts if record is not None]):
        say(f"  {line}", err=True)


def _where(run: ddib_fed.Run) -> str:
    done, jobs, out = len(run.delivered), run.jobs, run.out
    if len(jobs) == 1 and not run.earlier and run.total == len(jobs[0].items):
        return f"{done} of {len(jobs[0].items)} items of job {jobs[0].job_id} are in {out}"
    before = f"; {run.earlier:,} of them were there before" if run.earlier else ""
    of = f" of {len(jobs)} jobs" if len(jobs) > 1 else f" of job {jobs[0].job_id}" if jobs else ""
    return f"{done:,} of {run.total - len(run.written):,} files{of} are in {out}{before}"


def _say_marks(delivered: Sequence[ddib_fed.Delivered]) -> None:
    for line in ddib_fed.Record.doubt_lines([(item.file, item.provenance) for item in delivered]):
        say(line, err=True)
    if clipped := [item.file for item in delivered if (p := item.provenance.picture) and p.clipped]:
        say(
            f"{len(clipped)} clipped: values outside the source model's range; the figures refer to the "
            f"original pictures ({', '.join(clipped[:5])}{', ...' * (len(clipped) > 5)})",
            err=True,
        )


def _print_results(delivered: Sequence[ddib_fed.Delivered]) -> None:
    """Print a table of the results, without columns that have no value."""
    rows = [
        {"file": item.file, "": "doubtful" if item.provenance.doubtful else "", **item.provenance.figures}
        for item in delivered
    ]
    kept = [name for name in dict.fromkeys(itertools.chain(*rows)) if any(row.get(name) for row in rows)]
    columns = [name if name in {"file", ""} else f">{name}" for name in kept]
    print_table("", columns, [[row.get(name, "") for name in kept] for row in rows])
