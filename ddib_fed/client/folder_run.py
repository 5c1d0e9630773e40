"""Translates files and studies into a folder: submits one job ahead, writes results as they come, resumes.

Names of items are on the disk before their job is submitted, under a request id of its own, so that nothing is
computed twice after an interruption: the next run finds the job by that id.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict

from ddib_fed.client.client import (
    RESUMES,
    WITHOUT_RESULT,
    Client,
    explaining_interruption,
    failure,
    open_client,
    require_finished,
    state_of,
    target_of,
)
from ddib_fed.client.files import (
    FileItem,
    LeftOut,
    find_items,
    left_out,
    listed,
    open_inputs,
    read_items,
    refused,
)
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import (
    Delivered,
    JobFile,
    check_free,
    finished,
    keep_calibration,
    locked,
    remove_broken,
    unfinished,
    write_results,
)
from ddib_fed.errors import (
    AlreadyExists,
    Cancelled,
    DdibError,
    DeadlineExceeded,
    DomainNotFound,
    ExhaustedError,
    ExtraMissing,
    FilesLeftOut,
    InputError,
    InternalError,
    ItemsTooMany,
    JobFailed,
    PeerNotFound,
    UnavailableError,
    UsageError,
    error_class,
    next_steps,
)
from ddib_fed.files import make_private_folders
from ddib_fed.names import nearest
from ddib_fed.protocol.calls import is_number
from ddib_fed.terminal import bar
from ddib_fed.v1 import translation_pb2 as pb

if TYPE_CHECKING:
    from ddib_fed.formats.credentials import Credentials
    from ddib_fed.formats.parts import WrittenStudy
    from ddib_fed.formats.study import Origin, Studies, Study

JOB_FILES = 250
"""Files of a job: its result is sooner complete, and less is sent again if the node refuses one of them."""
JOB_BYTES = 256 << 20
AHEAD = 2
"""Jobs at the node at once: it computes one while the next is sent."""
MOST_JOBS = 1000
"""As many as a node lists."""
STAGES = {
    "encode": "encoding by the source",
    "send": "sending the latent",
    "decode": "decoding by the target",
    "return": "checking by translating back",
    "done": "done",
    "failed": "failed",
    "wait": "waiting for the target",
}
"""The stages of an item in words, for terminal and page."""


class RunProgress:
    """Opens the client of a run, and receives its progress in the thread of the run. This base class shows nothing."""

    done = 0
    """Results that are on the disk."""
    stopped = False
    """Whether no further job is to be submitted."""
    job_id = ""
    names: Sequence[str] = ()

    def __init__(self, client: Client | None = None) -> None:
        self.client = client

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[Client]:
        with open_client(profile, client=self.client) as client:
            yield client

    def counted(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A function that is called with (done, total) while files are read."""
        return bar(what)

    def say(self, line: str) -> None:
        """Show a sentence."""

    def study(self, number: int, origin: Origin, study: Study | None) -> None:
        """A study can be translated; None for one that an earlier run has finished."""

    def parts(self, number: int, paths: Sequence[Path]) -> None:
        """From now on jobs are of these items of a study."""

    def study_written(self, number: int, written: WrittenStudy, study: Study | None) -> None:
        """The output of a study is on the disk; None for one that an earlier run has finished."""

    def whole(self, total: int, done: int) -> None:
        """So many files are translated, and so many of them are on the disk already."""

    def submitted(self, job_id: str, items: int) -> None:
        """The node has accepted a job."""

    def begin(self, job_id: str, names: Sequence[str]) -> None:
        """From now on events are of this job, whose items have these names."""
        self.job_id, self.names = job_id, names

    def name_of(self, item: int) -> str:
        return self.names[item] if item < len(self.names) else f"item {item}"

    def event(self, event: pb.WatchJobResponse) -> None:
        """Something happened in the job."""

    def written(self, item: FileItem, result: Delivered) -> None:
        """A result is on the disk."""

    def job_ended(self, job_id: str, state: str) -> None:
        """A job has ended, and its results are written."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What all files of a command have in common.

    Attributes:
        profile: Whose node translates.
        header: What is asked of it.
        out: Folder of the results.
        progress: Opens the client and receives the progress.
        force: Translate everything again, and overwrite what is there.
        skip_bad: Leave out what cannot be translated, instead of doing nothing.
        credentials: What content credentials are signed with.
    """

    profile: Profile
    header: pb.JobHeader
    out: Path
    progress: RunProgress
    force: bool = False
    skip_bad: bool = False
    credentials: Credentials | None = None

    def digest(self, classes: tuple[str, str] | None = None) -> str:
        """SHA-256, hex, of all that decides what a file of these classes becomes beside what it is part of."""
        header = self.with_classes([classes] if classes else [])
        for name in ("protocol", "request_id", "items", "deadline_s", "volume_sha256"):
            header.ClearField(name)
        asked = MessageToDict(header) | {"institution": self.profile.institution}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def with_classes(self, classes: Sequence[tuple[str, str]]) -> pb.JobHeader:
        """The header of a job whose items have classes of their own; these keep the models' size."""
        header = pb.JobHeader()
        header.CopyFrom(self.header)
        header.model_size = bool(classes)
        for own, other in classes:
            header.item_classes.add(source_class=own, target_class=other)
        return header


@dataclass(slots=True, eq=False)
class FolderRun:
    """The files of one command, and what became of each: `read` them, `translate` or `submit`, then `conclude`."""

    options: RunOptions
    items: list[FileItem] = field(default_factory=list)
    studies: Studies | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    """What is known to be bad, and what the node has refused."""
    failed: list[LeftOut] = field(default_factory=list)
    """Items whose job was accepted."""
    total: int = 0
    earlier: int = 0
    results: dict[str, Delivered] = field(default_factory=dict)
    written: list[WrittenStudy] = field(default_factory=list)
    jobs: list[pb.Job] = field(default_factory=list)
    submitted: list[pb.SubmitJobResponse] = field(default_factory=list)
    _inputs: list[Path] = field(default_factory=list)
    _readable: list[tuple[int, WrittenStudy | None]] = field(default_factory=list)
    """The studies that can be translated, or are by an earlier run."""
    _errors: list[DdibError] = field(default_factory=list)
    _pending: deque[tuple[str, Sequence[FileItem]]] = field(default_factory=deque)
    """Jobs at the node."""
    _waiting: deque[FileItem] = field(default_factory=deque)
    _unknown: dict[tuple[FileItem, ...], str] = field(default_factory=dict)
    """Request ids of an earlier run's jobs that the node does not list, by their items."""
    _most_files: int = JOB_FILES

    @property
    def delivered(self) -> list[Delivered]:
        """The results of plain files, in the order of the files where these are known."""
        names = [item.name for item in self.items] or list(self.results)
        return [self.results[name] for name in names if name in self.results]

    @property
    def not_submitted(self) -> list[Path]:
        return [item.path for item in self._waiting]

    def read(self) -> None:
        """Read every study and every file; nothing is sent if one is bad, unless bad ones are left out."""
        options, progress = self.options, self.options.progress
        self.total = len(self.items) + len(self.studies or ()) + len(self.left_out)
        self._inputs = [item.path for item in self.items]
        self._most_files = JOB_FILES
        if self.studies is not None:
            self._read_studies(self.studies)
        if not options.skip_bad:
            for each in self.left_out:
                if isinstance(each.error, ExtraMissing):
                    raise each.error  # one command repairs it for all files
        digest = cache(options.digest)
        many = len(self.items) > JOB_FILES
        with progress.counted("reading files") if many else nullcontext() as show:
            self.items, bad = read_items(self.items, digest, decode=many, on_read=show)
        self.left_out += bad
        if self.left_out and not (options.skip_bad and (self.items or self._readable)):
            raise refused(self.left_out, self.total, "nothing was submitted")

    def _read_studies(self, studies: Studies) -> None:
        from ddib_fed.formats.parts import check_outputs, finished_study

        options = self.options
        for at, origin in enumerate(studies.origins):
            try:
                earlier = None
                if not options.force:
                    earlier = finished_study(origin, options.out, asked=options.digest())
                if earlier is None:
                    check_outputs(origin, options.out, force=options.force)
                options.progress.study(len(self._readable), origin, None if earlier else studies[at])
                self._readable.append((at, earlier))
            except (UsageError, AlreadyExists, Cancelled):
                raise
            except Exception as error:  # noqa: BLE001 - whatever a reader raises is about its study alone
                self.left_out.append(LeftOut.of(origin.given, error))

    def translate(self) -> None:
        """Translate what is not on the disk yet, studies first; or what was submitted before `progress` stopped it."""
        with locked(self.options.out), self.options.progress.opened(self.options.profile) as client:
            for number, (at, earlier) in enumerate(self._readable):
                if self.options.progress.stopped:
                    return
                self._translate_study(client, number, at, earlier)
            if self.items:
                self._translate_items(client)

    def _translate_study(self, client: Client, number: int, at: int, earlier: WrittenStudy | None) -> None:
        """Translate a study. One that fails does not stop the others, except for a bad one if none is left out."""
        from ddib_fed.formats.parts import translate_study
        from ddib_fed.formats.study import LATENT

        assert self.studies is not None
        options = self.options
        study, written = None, earlier
        try:
            if written is None:
                study = self.studies[at]
                kept = study.planes == 1 and f"{study.name}{LATENT}" in study.origin.beside
                if options.header.keep_latent and not kept:
                    options.progress.say(f"latents of {study.origin.called} are not kept")
                written = translate_study(
                    study,
                    options.out,
                    partial(self._translate_parts, client, number, study.pixels.volume_sha256),
                    asked=options.digest(),
                    force=options.force,
                )
        except Exception as error:
            ours = (JobFailed, InputError, InternalError) if options.skip_bad else JobFailed
            ends = isinstance(error, DdibError | OSError) and not isinstance(error, ours)
            if ends or isinstance(error, UsageError):
                raise
            self.left_out.append(LeftOut.of(self.studies.origins[at].given, error))
            if not options.skip_bad:
                self._errors.append(self.left_out[-1].error)
            return
        if earlier is not None:  # a run may have been killed between its record and the end of the parts
            shutil.rmtree(earlier.record.with_suffix(".parts"), ignore_errors=True)
        self.written.append(written)
        options.progress.study_written(number, written, study)

    def _translate_parts(
        self, client: Client, number: int, volume_sha256: bytes, paths: Sequence[Path], out: Path
    ) -> dict[Path, str]:
        """Translate the items of a study into a folder; why those that have no result were refused."""
        header = self.options.with_classes(())
        header.volume_sha256 = volume_sha256
        # Credentials are of the whole, not of its parts.
        own = replace(self.options, header=header, out=out, skip_bad=True, credentials=None)
        run = FolderRun(own, find_items(paths)[0])
        own.progress.parts(number, paths)
        run.read()
        with locked(out):
            run._translate_items(client)
        for job in run.jobs:
            keep_calibration(self.options.out, job)
        if not run.results:
            for each in run.left_out:
                raise each.error
        try:
            run.require_translated()
        except Cancelled as error:
            # Others of the command's studies go on; Ctrl-C is raised above.
            raise JobFailed(error.detail, hint="the same command again", hop=error.hop) from error
        return {each.path: f"{each.why} [{each.reason}]" for each in (*run.left_out, *run.failed)}

    def _translate_items(self, client: Client) -> None:
        with self._explained(client):
            for job_id, job in self._begin(client).items():
                self._receive(client, job_id, job.items, earlier=True)
            while self._pending or self._waiting:
                while self._waiting and len(self._pending) < AHEAD and not self._at_its_end:
                    if not self._submit_next(client, patiently=not self._pending):
                        break
                if not self._pending:
                    break
                self._receive(client, *self._pending.popleft())

    def submit(self) -> None:
        """Only submit what is neither on the disk nor in an unfinished job."""
        options = self.options
        with locked(options.out), options.progress.opened(options.profile) as client, self._explained(client):
            self._begin(client)
            while self._waiting:
                self._submit_next(client, patiently=True)

    def _begin(self, client: Client) -> dict[str, JobFile]:
        """Plan what is neither on the disk nor in an unfinished job of an earlier run; these jobs by their ids."""
        options, progress = self.options, self.options.progress
        remove_broken(options.out, self.items)
        if not options.force:
            self._take_finished(self.items)
        self.earlier = len(self.results)
        jobs: dict[str, JobFile] = {}
        if found := unfinished(self.items, options.out):
            ids = {job.request.request_id: job.job_id for job in client.list(MOST_JOBS)}
            for job in found:
                if job.request_id in ids:
                    jobs[ids[job.request_id]] = job
                else:  # the node has removed it, or not accepted it yet: then the same id is the same job
                    job.remove(options.out)
                    self._unknown[job.items] = job.request_id
        under_way = {item for job in jobs.values() for item in job.items}
        left = [item for item in self.items if item.name not in self.results]
        self._waiting = deque(item for item in left if item not in under_way)
        check_free(self._waiting, self._inputs, options.out, force=options.force)
        progress.done = self.earlier
        progress.whole(len(self.items), self.earlier)
        if self.earlier or jobs:
            covered = len(left) - len(self._waiting)
            told = f", {covered:,} are in unfinished jobs" if covered else ""
            marks = "; --force puts content credentials into them too" if options.credentials else ""
            progress.say(
                f"{self.earlier:,} of {len(self.items):,} files are translated already{told}; "
                f"{len(self._waiting):,} are left{marks}"
            )
        return jobs

    def _take_finished(self, items: Sequence[FileItem]) -> None:
        for result in finished(items, self.options.out):
            self.results[items[result.item].name] = result

    @property
    def _at_its_end(self) -> bool:
        """Whether nothing more is submitted: it was stopped, or a job ended without any result, as the next would."""
        with_result = {pb.ITEM_STATE_DECODED, pb.ITEM_STATE_DELIVERED}
        return self.options.progress.stopped or any(
            job.state in WITHOUT_RESULT
            and not any(item.state in with_result for item in job.items)
            and not (self.options.skip_bad and _failed_by_items(job))
            for job in self.jobs
        )

    def _submit_next(self, client: Client, *, patiently: bool) -> bool:
        """Submit the next job; false if the node is busy and is not waited for."""
        items: list[FileItem] = []
        size = 0
        while self._waiting and len(items) < self._most_files:
            size += self._waiting[0].size_bytes
            if items and size > JOB_BYTES:
                break
            items.append(self._waiting.popleft())
        again: Sequence[FileItem] = ()
        try:
            submitted = self._send(client, items, while_busy=patiently)
        except ItemsTooMany as error:
            limit = int(error.facts.get("limit_items", "0") or 0)
            if not 0 < limit < len(items):
                raise
            self._most_files, again = limit, items
        except ExhaustedError:
            if patiently:
                raise
            again = items
            return False
        except (InputError, InternalError) as error:
            again = self._without_refused(items, error)
        else:
            self.options.progress.submitted(submitted.job_id, len(items))
            self.submitted.append(submitted)
            self._pending.append((submitted.job_id, items))
        finally:
            self._waiting.extendleft(reversed(again))
        return True

    def _send(self, client: Client, items: Sequence[FileItem], *, while_busy: bool) -> pb.SubmitJobResponse:
        out = self.options.out
        header = self.options.with_classes([item.classes for item in items if item.classes is not None])
        header.request_id, target = self._unknown.pop(tuple(items), str(uuid.uuid4())), target_of(header)
        names = JobFile(header.request_id, tuple(items))
        make_private_folders(out)
        names.save(out)
        try:
            payloads = [item.payload for item in items if item.payload is not None]
            with explaining_interruption(client, ""):
                return client.send(payloads, header, while_busy=while_busy)
        except (UnavailableError, DeadlineExceeded, Cancelled):
            raise  # the node may have accepted the job although its answer was lost
        except Exception as error:
            names.remove(out)
            if isinstance(error, DomainNotFound | PeerNotFound):
                with suppress(DdibError):
                    known = [f"{each.institution}/{each.domain}" for each in client.domains().domains]
                    if target not in known and (close := nearest(target, known)):
                        error.hint = f"did you mean {close}? `ddib domains` lists the targets"
            raise

    def _without_refused(self, items: Sequence[FileItem], error: DdibError) -> tuple[FileItem, ...]:
        numbers = dict(error.refused)
        if is_number(first_item := error.facts.get("item", "")):
            numbers.setdefault(int(first_item), error.reason)
        numbers = {n: why for n, why in numbers.items() if n < len(items)}
        if not numbers:
            raise error
        first, *others = sorted(numbers)
        bad = [LeftOut.of(items[first].path, error)]
        bad += [LeftOut.of(items[n].path, error_class(numbers[n])(hop=error.hop)) for n in others]
        if not self.options.skip_bad:
            submitted = len(self._pending) + len(self.jobs)
            under_way = f"{submitted:,} other {'job is' if submitted == 1 else 'jobs are'} under way"
            state = under_way if submitted else "nothing was submitted"
            raise refused(bad, self.total, state) from error
        self.left_out += bad
        return tuple(item for n, item in enumerate(items) if n not in numbers)

    def _receive(
        self, client: Client, job_id: str, items: Sequence[FileItem], *, earlier: bool = False
    ) -> None:
        """Write the results of a job as they come; of an earlier run's job what it left undone is planned again."""
        options, progress = self.options, self.options.progress
        known, names = {item: item for item in self.items}, {item.name for item in self.items}
        changed = {n for n, item in enumerate(items) if item not in known and item.name in names}
        if changed:
            delete = (
                f"ddib job delete {shlex.quote(job_id)} --profile {shlex.quote(str(client.profile.path))}"
            )
            progress.say(
                f"job {job_id} also translates {len(changed):,} files that have changed since; when it has ended, "
                f"remove those results: {delete}"
            )
        progress.begin(job_id, [item.file for item in items])
        how = {"force": options.force, "credentials": options.credentials}
        with explaining_interruption(client, job_id, options.out):
            results = client.results(job_id, on_event=progress.event)
            for result in write_results(client, job_id, results, items, options.out, changed, **how):
                item = items[result.item]
                if item in known and item.name not in self.results:
                    progress.done += 1
                    progress.written(item, result)
                self.results[item.name] = result
            view = client.get(job_id)
        keep_calibration(options.out, view)
        if not changed:
            JobFile(view.request.request_id, ()).remove(options.out)
        state = state_of(view).lower()
        progress.job_ended(job_id, state)
        own = [(each, known[item]) for each, item in zip(view.items, items, strict=False) if item in known]
        if earlier:
            without = [item for _, item in own if item.name not in self.results]
            self._take_finished(without)
            if view.state in WITHOUT_RESULT:
                progress.say(f"job {job_id} is {state}: what it left undone is submitted again")
                self._waiting.extend(item for item in without if item.name not in self.results)
                return
        self.jobs.append(view)
        for each, item in own:
            if each.state == pb.ITEM_STATE_FAILED:
                self.failed.append(LeftOut(item.path, failure(each.error, client.hop)))
            elif earlier and item.name not in self.results:  # its result was removed
                self._waiting.append(item)

    @contextmanager
    def _explained(self, client: Client) -> Iterator[None]:
        try:
            with explaining_interruption(client):
                yield
        except Cancelled as error:
            if client.aborted:
                done, total = self.options.progress.done, len(self.items)
                error.detail += f"; {done:,} of {total:,} results are complete in {self.options.out}"
                error.hint = f"{RESUMES}\n{error.hint}".rstrip()
            raise

    def conclude(self) -> None:
        """Raise what the command ends with, where not everything was translated."""
        errors = list(self._errors)
        try:
            self.require_translated()
        except JobFailed as error:
            errors.append(error.kept())
        if self.options.skip_bad and (missing := [*self.left_out, *self.failed]):
            state = f"the others are in {self.options.out}"
            if self.submitted and not self.jobs:
                state = "the others are submitted or translated"
            errors.append(left_out(missing, self.total, state))
        if partly := [f"{each.given}: {each.refused}" for each in self.written if each.refused]:
            hint = "the records name each item; what was refused is not in the results"
            errors.append(FilesLeftOut("\n".join(partly), hint=hint))
        if len(errors) > 1:
            kind = JobFailed if any(isinstance(error, JobFailed) for error in errors) else FilesLeftOut
            hints = dict.fromkeys(error.hint for error in errors if error.hint)
            detail = "\n".join(error.detail for error in errors)
            raise kind(detail, hint="\n".join(hints), hop=errors[0].hop)
        if errors:
            raise errors[0]

    def require_translated(self) -> None:
        """Raise unless every job succeeded; where bad files are left out, some of its items may have failed."""
        hop, rest = self.options.profile.hop, len(self.not_submitted)
        unsent = f"{rest:,} of {self.total:,} files {'was' if rest == 1 else 'were'} not submitted"
        bad = [*self.left_out, *self.failed] if self.items else []
        for job in self.jobs:
            if self.options.skip_bad and (job.state == pb.JOB_STATE_FINISHED or _failed_by_items(job)):
                continue
            try:
                require_finished(job, hop)
            except (JobFailed, Cancelled) as error:
                error.detail += (f"; {unsent}" if rest else "") + (f"\n{listed(bad)}" if bad else "")
                hints = [error.hint, "the rest: the same command again" if rest else ""]
                if bad:
                    others = f"without {'it' if len(bad) == 1 else 'them'}: the same command with --skip-bad"
                    steps = next_steps(each.error for each in bad)
                    hints = [steps, others if len(bad) < self.total else "", *hints]
                error.hint = "\n".join(filter(None, hints))
                raise
        if rest:
            raise JobFailed(unsent, hop="client", hint="the same command again")


def _failed_by_items(job: pb.Job) -> bool:
    return job.state == pb.JOB_STATE_FAILED and all(i.state == pb.ITEM_STATE_FAILED for i in job.items)


def open_run(
    files: Sequence[Path], reading: Mapping[str, Any], options: RunOptions, say: Callable[[str], object]
) -> FolderRun:
    """The run of the files of a command, none of which is read yet; arguments as of `open_inputs`."""

    def own_domain() -> pb.ListDomainsResponse:
        with options.progress.opened(options.profile) as client:
            return client.domains(own_alone=True)

    return FolderRun(options, *open_inputs(files, options.out, reading, own_domain, say))
