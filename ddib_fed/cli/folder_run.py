"""Translates files as the jobs that they take: submits one ahead, writes results as they come, resumes.

Names of items are on the disk before their job is submitted, under a request id of its own, so that nothing is
computed twice after an interruption: the next run finds the job by that id.
"""

from __future__ import annotations

import shlex
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.cli.delivery import Delivered, Input, JobFile, check_free, deliver, named
from ddib_fed.cli.folder_report import write_pages
from ddib_fed.cli.folder_state import (
    Entry,
    LeftOut,
    Outcome,
    Unfinished,
    Work,
    failed_by_items,
    finished,
    left_out,
    locked,
    read_files,
    refused,
    remove_broken,
    require_translated,
    unfinished_files,
    with_ids,
)
from ddib_fed.cli.inputs import Chosen
from ddib_fed.cli.progress import explaining_interruption
from ddib_fed.cli.studies import mark_earlier
from ddib_fed.client.client import Client
from ddib_fed.client.payload import refused_items
from ddib_fed.client.views import JobView, Submitted
from ddib_fed.errors import (
    Cancelled,
    DdibError,
    DiskFull,
    ExhaustedError,
    FilesLeftOut,
    InputError,
    ItemsTooMany,
    JobFailed,
    error_class,
)
from ddib_fed.protocol.details import refused_count
from ddib_fed.protocol.messages import ItemState, JobState

if TYPE_CHECKING:
    from ddib_fed.formats.parts import WrittenStudy


JOB_FILES = 250
"""Files of a job: its result is sooner complete, and less is sent again if the node refuses one of them."""
JOB_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """Files of one job that is to be submitted; a request id is that of an earlier submission of the same content."""

    entries: tuple[Entry, ...]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A job that the node has accepted, in this run or in an earlier one."""

    job_id: str
    inputs: tuple[Input, ...]
    without: frozenset[int] = field(default_factory=frozenset)
    earlier: bool = False


def split(entries: Sequence[Entry], most_files: int) -> list[Batch]:
    """Batches of at most so many files, and of at most `JOB_BYTES` unless one file alone has more."""
    batches: list[Batch] = []
    current: list[Entry] = []
    size = 0
    for entry in entries:
        if current and (len(current) >= most_files or size + entry.item.size_bytes > JOB_BYTES):
            batches.append(Batch(tuple(current)))
            current, size = [], 0
        current.append(entry)
        size += entry.item.size_bytes
    return [*batches, Batch(tuple(current))] if current else batches


RESUMES = "to resume: the same command again"
"""The line of a hint above the command that goes on."""


AHEAD = 2
"""Jobs at the node at once: it computes one while the next is sent."""


class Run:
    """One command's files, from what an earlier run left to the last result."""

    def __init__(
        self,
        client: Client,
        chosen: Chosen,
        entries: Sequence[Entry],
        work: Work,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self._client, self._work, self._progress = client, work, work.progress
        self._chosen, self._entries = chosen, tuple(entries)
        self._by_input = {entry.given: entry for entry in entries}
        self._results: dict[str, Delivered] = {}
        self._left_out = list(left_out)
        self._failed: list[LeftOut] = []
        self._jobs: list[JobView] = []
        self._submitted: list[Submitted] = []
        self._pending: deque[Running] = deque()
        self._batches: deque[Batch] = deque()
        self._most_files = JOB_FILES
        self._earlier = 0

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        return tuple(self._left_out)

    def translate(self) -> Outcome:
        """Translate everything that is not on the disk yet, or what was submitted before `progress` is stopped."""
        with self._explained():
            self._prepare()
            while self._pending or self._batches:
                while self._batches and len(self._pending) < AHEAD and not self._at_its_end:
                    if not self._submit_next():
                        break
                if not self._pending:
                    break
                self._receive(self._pending[0])
                self._pending.popleft()
        return self._outcome()

    def submit_all(self) -> list[Submitted]:
        """Only submit what is neither on the disk nor in an unfinished job; the new jobs, in the order of
        their files.
        """
        with self._explained():
            self._prepare()
            while self._batches:
                self._submit_next(patiently=True)
        return list(self._submitted)

    def _prepare(self) -> None:
        """Sort the files into finished ones, those of unfinished jobs, and the others, as batches."""
        out, force = self._work.write.out, self._work.write.force
        remove_broken(out, self._entries)
        if not self._work.write.again:
            self._take_finished(self._entries)
        self._earlier = len(self._results)
        covered = self._attach()
        missing = [
            entry
            for entry in self._entries
            if entry.given.name not in self._results and entry.given not in covered
        ]
        check_free(self._chosen.paths, [entry.given for entry in missing], out, force=force)
        self._batches.extend(split(missing, self._most_files))
        self._progress.whole(len(self._entries), self._earlier)
        if self._earlier or covered:
            jobs = f", {len(covered):,} are in unfinished jobs" if covered else ""
            self._progress.say(
                f"{self._earlier:,} of {len(self._entries):,} files are translated already{jobs}; "
                f"{len(missing):,} are left"
            )

    def _take_finished(self, entries: Sequence[Entry]) -> None:
        for result in finished(entries, self._work.write.out):
            given = entries[result.item].given
            self._results[given.name] = mark_earlier(result, self._work.write.credentials)

    def _attach(self) -> set[Input]:
        """Take over the unfinished jobs in the folder; the items that they translate."""
        found = unfinished_files(self._entries, self._work.write.out)
        covered: set[Input] = set()
        for job in with_ids(found, self._client):
            inputs = job.job_file.inputs
            entries = job.entries(self._by_input)
            if job.job_id:
                self._say_changed(job)
                self._pending.append(Running(job.job_id, inputs, job.without, earlier=True))
            elif entries is not None and not self._any_finished(entries):
                # Its answer may have been lost: the same id is the same job. Of a job that had results nothing can be
                # on its way; the node has removed it since, and what is missing is submitted anew.
                self._batches.append(Batch(tuple(entries), job.job_file.request_id))
            else:
                job.job_file.remove(self._work.write.out)
                continue
            covered |= {given for n, given in enumerate(inputs) if n not in job.without}
            covered -= {entry.given for entry in self._entries if entry.given.name in self._results}
        return covered

    def _say_changed(self, job: Unfinished) -> None:
        """Name the job whose results stay at the node because their files have changed since."""
        if job.without:
            self._progress.say(
                f"job {job.job_id} also translates {len(job.without):,} files that have changed since; when it has "
                f"ended, remove those results: ddib job delete {shlex.quote(job.job_id)} "
                f"--profile {shlex.quote(str(self._client.profile.path))}"
            )

    def _any_finished(self, entries: Sequence[Entry]) -> bool:
        return any(entry.given.name in self._results for entry in entries)

    @property
    def _at_its_end(self) -> bool:
        """Whether nothing more is submitted: it was stopped, or a job ended without any result, as the next would."""
        return self._progress.stopped or any(
            job.state in {JobState.FAILED, JobState.CANCELLED}
            and not any(item.state in {ItemState.DECODED, ItemState.DELIVERED} for item in job.items)
            and not (self._work.write.skip_bad and failed_by_items(job))
            for job in self._jobs
        )

    def _submit_next(self, *, patiently: bool = False) -> bool:
        """Submit the next batch; false if the node is busy and there are results to be fetched meanwhile."""
        batch = self._batches.popleft()
        if not batch.request_id and len(batch.entries) > self._most_files:
            self._batches.extendleft(reversed(split(batch.entries, self._most_files)))
            return True
        waits = patiently or not self._pending
        try:
            submitted = self._send(batch, while_busy=waits)
        except ItemsTooMany as error:
            limit = int(error.facts.get("limit_items", "0") or 0)
            if not 0 < limit < len(batch.entries):
                raise
            self._most_files = limit
            self._batches.appendleft(Batch(batch.entries))
        except ExhaustedError:
            if waits:
                raise
            self._batches.appendleft(batch)
            return False
        except DdibError as error:
            self._batches.extendleft(self._without_refused(batch, error))
        else:
            self._progress.submitted(submitted.job_id, len(batch.entries))
            self._submitted.append(submitted)
            self._pending.append(Running(submitted.job_id, tuple(entry.given for entry in batch.entries)))
        return True

    def _send(self, batch: Batch, *, while_busy: bool) -> Submitted:
        """Submit a batch, after the names of its items were written to disk."""
        request_id = batch.request_id or str(uuid.uuid4())
        classes = tuple(entry.classes for entry in batch.entries if entry.classes is not None)
        request = replace(self._work.request, classes=classes, model_size=bool(classes))
        job_file = JobFile(request_id, request.target, tuple(entry.given for entry in batch.entries))
        items = [entry.item for entry in batch.entries]
        try:
            with named(self._work.write.out, job_file):
                return self._client.send(items, request, request_id=request_id, while_busy=while_busy)
        except DdibError as error:
            if not self._client.aborted:
                raise
            raise Cancelled(
                "interrupted while submitting: the node may have accepted the job",
                hint=f"{RESUMES}\nddib job list --profile {shlex.quote(str(self._client.profile.path))}",
            ) from error

    def _without_refused(self, batch: Batch, error: DdibError) -> list[Batch]:
        """The batch without the files that the node refused."""
        numbers = {n: why for n, why in refused_items(error).items() if n < len(batch.entries)}
        if not isinstance(error, InputError) or not numbers:
            raise error
        bad: list[tuple[Path, DdibError]] = []
        for number, reason in sorted(numbers.items()):
            path = batch.entries[number].path
            own = error if not bad else error_class(reason)(hop=error.hop)
            bad.append((path, own))
        if not self._work.write.skip_bad:
            submitted = len(self._pending) + len(self._jobs)
            others = f"{submitted:,} other {'job is' if submitted == 1 else 'jobs are'} under way"
            state = others if submitted else "nothing was submitted"
            unnamed = max(0, refused_count(error.facts) - len(numbers))
            raise refused(bad, len(self._chosen.paths), state, unnamed=unnamed) from error
        self._left_out += [LeftOut.of(path, own) for path, own in bad]
        rest = tuple(entry for n, entry in enumerate(batch.entries) if n not in numbers)
        return [Batch(rest)] if rest else []

    def _receive(self, job: Running) -> None:
        """Write the results of a job until it has ended."""
        client, out = self._client, self._work.write.out
        self._progress.begin(job.job_id, [given.file for given in job.inputs])
        with explaining_interruption(client, job.job_id, out):
            results = client.results(job.job_id, on_event=self._progress.watching(client, job.job_id))
            for result in deliver(
                client, job.job_id, results, job.inputs, self._work.write, without=job.without
            ):
                given = job.inputs[result.item]
                if given in self._by_input and given.name not in self._results:
                    self._progress.written(given, result)
                self._results[given.name] = result
            view = client.get(job.job_id)
        if not job.without:
            JobFile(view.request_id, view.target, job.inputs).remove(out)
        self._progress.ended(job.job_id, view.state.lower())
        again = self._again(job, view) if job.earlier else []
        if again and view.state in {JobState.FAILED, JobState.CANCELLED}:
            self._progress.say(
                f"job {job.job_id} is {view.state.lower()}: what it left undone is submitted again"
            )
        else:
            self._jobs.append(view)
        self._batches.extend(split(again, self._most_files))
        for item in view.items:
            entry = self._by_input.get(job.inputs[item.index])
            if item.state is ItemState.FAILED and entry is not None and entry not in again:
                why = item.failure
                reason, text = (why.reason, why.text) if why else (JobFailed.reason, JobFailed.sentence)
                self._failed.append(LeftOut(entry.path, reason, text))

    def _again(self, job: Running, view: JobView) -> list[Entry]:
        """Files of an earlier run's ended job that have no result after all: it was cancelled, or a result was
        removed.
        """
        states = {job.inputs[item.index]: item.state for item in view.items}
        entries = [
            entry
            for given in job.inputs
            if (entry := self._by_input.get(given)) and given.name not in self._results
        ]
        self._take_finished(entries)
        ended = view.state is JobState.FINISHED
        return [
            entry
            for entry in entries
            if entry.given.name not in self._results
            and not (ended and states[entry.given] is ItemState.FAILED)
        ]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Inside, an interruption or a full disk ends with the command that resumes."""
        try:
            yield
        except Cancelled as error:
            if not self._client.aborted:
                raise
            done, total = self._progress.done, len(self._entries)
            error.detail += f"; {done:,} of {total:,} results are complete in {self._work.write.out}"
            error.args = (error.detail,)
            if RESUMES not in error.hint:
                error.hint = f"{RESUMES}\n{error.hint}".rstrip()
            raise
        except DiskFull as error:
            if error.hop == "client":
                error.hint += "\nor, for all that is missing: the same command again"
            raise

    def _outcome(self) -> Outcome:
        order = {entry.given.name: place for place, entry in enumerate(self._entries)}
        known = sorted(self._results.items(), key=lambda found: order.get(found[0], 0))
        return Outcome(
            len(self._chosen.paths),
            self._entries,
            tuple(result for name, result in known if name in order),
            self._earlier,
            tuple(self._jobs),
            tuple(self._left_out),
            tuple(self._failed),
            tuple(entry.path for batch in self._batches for entry in batch.entries),
        )


def translate_files(
    chosen: Chosen, work: Work, *, page: bool, whole: Sequence[WrittenStudy] = ()
) -> tuple[Outcome, Path | None]:
    """Translate files into a folder, or what is missing there; what became of them, and the page."""
    out = work.write.out
    with locked(out):
        entries, bad = _read(chosen, work)
        with work.opened() as client:
            outcome = Run(client, chosen, entries, work, bad).translate()
        return outcome, write_pages(outcome, out, whole) if page else None


def translate_parts(work: Work, paths: Sequence[Path], out: Path) -> dict[Path, str]:
    """Translate the items of a series, volume or map into a folder; why those that have no result were refused."""
    parts = replace(work.write, out=out, skip_bad=True, credentials=None)  # of the whole, not of its parts
    outcome, _ = translate_files(Chosen.files(paths), replace(work, write=parts), page=False)
    if not outcome.delivered:
        for each in outcome.left_out:
            if each.error is not None:
                raise each.error
    try:
        require_translated(outcome, work.profile.hop, skip_bad=True)
    except Cancelled as error:
        # Others of the command's studies go on; Ctrl-C is raised above.
        raise JobFailed(error.detail, hint="the same command again", hop=error.hop) from error
    return {each.path: f"{each.why} [{each.reason}]" for each in (*outcome.left_out, *outcome.failed)}


def submit_files(chosen: Chosen, work: Work) -> tuple[list[Submitted], FilesLeftOut | None]:
    """Only submit what is missing in a folder; the new jobs, and what to end with if files were left out."""
    with locked(work.write.out):
        entries, bad = _read(chosen, work)
        with work.opened() as client:
            run = Run(client, chosen, entries, work, bad)
            submitted = run.submit_all()
    if not run.left_out:
        return submitted, None
    return submitted, left_out(run.left_out, len(chosen.paths), "the others are submitted or translated")


def _read(chosen: Chosen, work: Work) -> tuple[list[Entry], list[LeftOut]]:
    """Read every file before anything is submitted; those that can be sent, and those that are left out."""
    if len(chosen.paths) > JOB_FILES:
        with work.progress.counted("reading files") as show:
            entries, bad = read_files(chosen, work, decode=True, on_read=show)
    else:
        entries, bad = read_files(chosen, work)
    if bad and not (work.write.skip_bad and entries):
        raise refused(bad, len(chosen.paths), "nothing was submitted")
    return entries, [LeftOut.of(path, error) for path, error in bad]


def conclude(outcome: Outcome, work: Work) -> None:
    """Return if every file was translated."""
    skip_bad = work.write.skip_bad
    require_translated(outcome, work.profile.hop, skip_bad=skip_bad)
    missing = [*outcome.left_out, *(outcome.failed if skip_bad else ())]
    if missing:
        raise left_out(missing, outcome.total, f"the others are in {work.write.out}")
