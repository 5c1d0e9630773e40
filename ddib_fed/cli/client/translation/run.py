"""Translates files as the jobs that they take: submits one ahead, writes results as they come, resumes.

Names of items are on the disk before their job is submitted, under a request id of its own, so that nothing is
computed twice after an interruption: the next run finds the job by that id.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.cli.client.choosing import Chosen
from ddib_fed.cli.client.delivery import Delivered, Input, check_free
from ddib_fed.cli.client.marking import mark_earlier
from ddib_fed.cli.client.translation import batches
from ddib_fed.cli.client.translation.batches import Batch, Running, chosen_files, split
from ddib_fed.cli.client.translation.checking import Entry, LeftOut, refused
from ddib_fed.cli.client.translation.display import Progress
from ddib_fed.cli.client.translation.one_job import RESUMES, receive, submit
from ddib_fed.cli.client.translation.order import Order
from ddib_fed.cli.client.translation.outcome import Outcome, failed_by_items
from ddib_fed.cli.client.translation.resuming import (
    Unfinished,
    finished,
    remove_broken,
    unfinished_files,
    with_ids,
)
from ddib_fed.client.client import Client
from ddib_fed.client.payload import refused_items
from ddib_fed.client.views import JobView, Submitted
from ddib_fed.errors import (
    Cancelled,
    DdibError,
    DiskFull,
    ExhaustedError,
    InputError,
    ItemsTooMany,
    JobFailed,
    error_class,
)
from ddib_fed.rpc.refused import refused_count
from ddib_fed.wire.jobs import ItemState, JobState

if TYPE_CHECKING:
    from ddib_fed.formats.credentials import Credentials

AHEAD = 2
"""Jobs at the node at once: it computes one while the next is sent."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a command goes about its files."""

    out: Path
    force: bool
    skip_bad: bool
    doubtful_below: float
    credentials: Credentials | None = None
    again: bool = False


class Run:
    """One command's files, from what an earlier run left to the last result."""

    def __init__(
        self,
        client: Client,
        chosen: Chosen,
        entries: Sequence[Entry],
        order: Order,
        manner: Manner,
        progress: Progress,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        self._client, self._order, self._manner, self._progress = client, order, manner, progress
        self._chosen, self._entries = chosen, tuple(entries)
        self._by_input = {entry.given: entry for entry in entries}
        self._results: dict[str, Delivered] = {}
        self._left_out = list(left_out)
        self._failed: list[LeftOut] = []
        self._jobs: list[JobView] = []
        self._submitted: list[Submitted] = []
        self._pending: deque[Running] = deque()
        self._batches: deque[Batch] = deque()
        self._most_files = batches.JOB_FILES
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
        out, force = self._manner.out, self._manner.force
        remove_broken(out, self._entries)
        if not self._manner.again:
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
        for result in finished(entries, self._manner.out):
            given = entries[result.item].given
            self._results[given.name] = mark_earlier(result, self._manner.credentials)

    def _attach(self) -> set[Input]:
        """Take over the unfinished jobs in the folder; the items that they translate."""
        found = unfinished_files(self._entries, self._manner.out)
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
                job.job_file.remove(self._manner.out)
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
            and not (self._manner.skip_bad and failed_by_items(job))
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
            submitted, inputs = submit(
                self._client,
                chosen_files(batch.entries),
                [entry.item for entry in batch.entries],
                self._order,
                self._manner.out,
                request_id=batch.request_id,
                while_busy=waits,
            )
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
            self._progress.submitted(submitted.job_id, len(inputs))
            self._submitted.append(submitted)
            self._pending.append(Running(submitted.job_id, inputs))
        return True

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
        if not self._manner.skip_bad:
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

        def written(result: Delivered) -> None:
            given = job.inputs[result.item]
            if given in self._by_input and given.name not in self._results:
                self._progress.written(given, result)
            self._results[given.name] = result

        self._progress.begin(job.job_id, [given.file for given in job.inputs])
        view, _ = receive(
            self._client,
            job.job_id,
            job.inputs,
            self._progress,
            self._manner.out,
            force=self._manner.force,
            doubtful_below=self._manner.doubtful_below,
            credentials=self._manner.credentials,
            without=job.without,
            on_written=written,
        )
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
            error.detail += f"; {done:,} of {total:,} results are complete in {self._manner.out}"
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
