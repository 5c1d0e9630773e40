"""Translates files and studies into a folder: submits one job ahead, writes results as they come, resumes, reports.

Names of items are on the disk before their job is submitted, under a request id of its own, so that nothing is
computed twice after an interruption: the next run finds the job by that id.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed import errors
from ddib_fed.client import files as inputs
from ddib_fed.client import results as outputs
from ddib_fed.client.client import RESUMES, Client
from ddib_fed.client.files import FileItem, LeftOut
from ddib_fed.client.jobs import Job, Progress, Request, split_target
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import Delivered, JobFile, Translated
from ddib_fed.files import locked, make_private_folders, write_file
from ddib_fed.names import nearest
from ddib_fed.protocol.calls import is_number
from ddib_fed.protocol.messages import Domains, ItemState, JobState
from ddib_fed.record import CALIBRATION_FILE, Classes, Part, Record

if TYPE_CHECKING:
    from ddib_fed.client.parts import WrittenStudy
    from ddib_fed.data.study import Studies

JOB_FILES = 250
"""Files of a job: its result is sooner complete, and less is sent again if the node refuses one of them."""
JOB_BYTES = 256 << 20
AHEAD = 2  # jobs at the node at once: it computes one while the next is sent
MOST_JOBS = 1000  # as many as a node lists
ACKNOWLEDGED_TOGETHER = 16
"""Items. One that was written and not acknowledged is fetched again after an interruption, and found to be the same."""
PAGE = "report.html"
FEWEST = 2  # pictures of a page: of one alone the record and the file say all
SLOW = 50  # pictures from which drawing has a bar of its own


@dataclass(slots=True, eq=False)
class Run:
    """The translation of files into a folder, and what became of each file.

    `open` finds the files, `read` reads them, `translate` or `submit` has them translated, `report` and `page` describe
    the results, and `conclude` raises what could not be done. The same run again resumes one that was interrupted.

    Parameters
    ----------
    via
        The client, or the profile of one, which is opened for each step.
    target, out, request
        INSTITUTION/DOMAIN; folder of the results; what is asked of every file.
    force, skip_bad
        Translate everything again, and overwrite; leave out what cannot be translated, instead of doing nothing.
    volume_sha256
        Of all pixels of a volume whose slices the files are.

    Examples
    --------
    >>> import ddib_fed, numpy, pathlib, tempfile
    >>> place = tempfile.TemporaryDirectory()
    >>> folder = pathlib.Path(place.name)
    >>> angles = numpy.linspace(0.2, 2.9, 16)
    >>> numpy.save(folder / "points.npy", numpy.stack([numpy.cos(angles), numpy.sin(angles)], 1))
    >>> moons, squares = ddib_fed.Model.open("moons"), ddib_fed.Model.open("checkerboards")
    >>> here = moons.to(squares)
    >>> request = ddib_fed.Request(ddib_fed.Settings(evaluations=12))
    >>> run = ddib_fed.Run(here, here.target, folder / "out", request)
    >>> run.open([folder / "points.npy"])
    >>> run.read()
    >>> run.translate()
    >>> run.conclude()
    >>> [path.name for path in sorted((folder / "out").iterdir())]
    ['points.json', 'points.npy']
    >>> place.cleanup()
    """

    via: Client | Profile
    target: str
    out: Path
    request: Request = field(default_factory=Request)
    progress: Progress = field(default_factory=Progress)
    force: bool = False
    skip_bad: bool = False
    volume_sha256: bytes = b""
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
    jobs: list[Job] = field(default_factory=list)
    submitted: list[Job] = field(default_factory=list)
    _inputs: list[Path] = field(default_factory=list)
    _readable: list[tuple[int, WrittenStudy | None]] = field(default_factory=list)
    """The studies that can be translated, or are by an earlier run."""
    _errors: list[errors.DdibError] = field(default_factory=list)
    _pending: deque[tuple[str, Sequence[FileItem]]] = field(default_factory=deque)  # jobs at the node
    _waiting: deque[FileItem] = field(default_factory=deque)
    _unknown: dict[tuple[FileItem, ...], str] = field(default_factory=dict)
    """Request ids of an earlier run's jobs that the node does not list, by their items."""
    _most_files: int = JOB_FILES

    look = staticmethod(inputs.look)
    check_intensity = staticmethod(inputs.check_intensity)

    def __post_init__(self) -> None:
        if self.target:  # of results that are only fetched, their job says it
            split_target(self.target)

    @property
    def profile(self) -> Profile:
        return self.via.profile if isinstance(self.via, Client) else self.via

    @contextmanager
    def opened(self) -> Iterator[Client]:
        """Open the client; Ctrl-C ends its calls, with the commands for what goes on."""
        with self.progress, Client.for_command(self.via, on_wait=self.progress.wait) as client:
            yield client

    def open(
        self, files: Sequence[Path], *, intensity: str = "auto", slices: str = "auto", tile: str = "auto"
    ) -> None:
        """Find the files and studies to translate; none of them is read yet.

        Parameters
        ----------
        files
            Files, and folders that stand for the files below them.
        intensity, slices, tile
            As of `ddib translate`: the rule by which values become the model's numbers, the plane in which a volume is
            cut, the side in pixels of the tiles of larger pictures.
        """

        def own_domain() -> Domains:
            with self.opened() as client:
                return client.domains(own_alone=True)

        reading = {"intensity": intensity, "slices": slices, "tile": tile}
        self.items, self.studies, self.left_out = inputs.open_inputs(
            files, self.out, reading, own_domain, self.progress.say
        )

    def open_below(self, root: Path, files: Sequence[Path]) -> None:
        """Take files below a folder, whose results are called by their paths there."""
        self.items = inputs.items_below(root, files)

    def open_pairs(
        self, pairs: str, find: Callable[[Sequence[tuple[int, int]], Sequence[str]], Sequence[Any]]
    ) -> None:
        """Take pictures of pairs of classes by numbers or names, such as ``260:261,cat:dog``: from one to the other.

        `find` gets pairs of numbers, and the names of the source's classes; it returns pictures with `path`, `source`,
        `target` and `ordinal`.
        """
        with self.opened() as client:
            domains = client.domains()
        own = Classes(f"{domains.institution}/{domains.domain}", domains.classes, domains.class_names)
        institution, _ = split_target(self.target)
        other = next((each for each in domains.domains if each.institution == institution), None)
        if other is None or not other.domain:
            why = "is not ready, so its classes are not known"
            raise errors.DomainNotFound(
                f"{self.target} {why}" if other else f"{institution} is no peer", hint="ddib domains"
            )
        # A model without classes may be guided by a classifier.
        count = other.classes or other.guidance.classifier_classes
        numbers = own.pairs(pairs, Classes(self.target, count, other.class_names))
        self.items = [
            FileItem(
                f"{each.source}_{each.ordinal}_translated_{each.target}",
                each.path.name,
                source=f"{each.source}_{each.ordinal}",
                path=each.path,
                classes=(str(each.source), str(each.target)),
            )
            for each in find(numbers, own.names)
        ]
        inputs.check_names(self.items, self.out)

    def digest(self, classes: tuple[str, str] | None = None) -> str:
        """Return SHA-256, hex, of all that decides what a file of these classes becomes beside what it is part of."""
        asked = {"target": self.target, "institution": self.profile.institution, "classes": classes}
        asked |= self.request.values()
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

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
        progress = self.progress
        self.total = len(self.items) + len(self.studies or ()) + len(self.left_out)
        self._inputs = [item.path for item in self.items]
        self._most_files = JOB_FILES
        if self.studies is not None:
            self._read_studies(self.studies)
        if not self.skip_bad:
            for each in self.left_out:
                if isinstance(each.error, errors.ExtraMissing):
                    raise each.error  # one command repairs it for all files
        digest = cache(self.digest)
        many = len(self.items) > JOB_FILES
        with progress.counted("reading files") if many else nullcontext() as show:
            self.items, bad = inputs.read_items(self.items, digest, decode=many, on_read=show)
        self.left_out += bad
        if self.left_out and not (self.skip_bad and (self.items or self._readable)):
            raise inputs.refused(self.left_out, self.total, "nothing was submitted")

    def _read_studies(self, studies: Studies) -> None:
        from ddib_fed.client.parts import check_outputs, finished_study

        for at, origin in enumerate(studies.origins):
            try:
                earlier = None
                if not self.force:
                    earlier = finished_study(origin, self.out, asked=self.digest())
                if earlier is None:
                    check_outputs(origin, self.out, force=self.force)
                self.progress.study(len(self._readable), None if earlier else studies[at])
                self._readable.append((at, earlier))
            except (errors.UsageError, errors.AlreadyExists, errors.Cancelled):
                raise
            except Exception as error:  # noqa: BLE001 - whatever a reader raises is about its study alone
                self.left_out.append(LeftOut.of(origin.given, error))

    def translate(self) -> None:
        """Translate what is not on the disk yet, studies first; or what was submitted before `progress` stopped it."""
        with locked(self.out), self.opened() as client:
            for number, (at, earlier) in enumerate(self._readable):
                if self.progress.stopped:
                    return
                self._translate_study(client, number, at, earlier)
            if self.items:
                self._translate_items(client)

    def _translate_study(self, client: Client, number: int, at: int, earlier: WrittenStudy | None) -> None:
        """Translate a study. One that fails does not stop the others, except for a bad one if none is left out."""
        from ddib_fed.client.parts import translate_study
        from ddib_fed.data.study import LATENT

        assert self.studies is not None
        study, written = None, earlier
        try:
            if written is None:
                study = self.studies[at]
                kept = study.planes == 1 and f"{study.name}{LATENT}" in study.origin.beside
                if self.request.keep_latents and not kept:
                    self.progress.say(f"latents of {study.origin.called} are not kept")
                written = translate_study(
                    study,
                    self.out,
                    partial(self._translate_parts, client, number, study.pixels.volume_sha256),
                    asked=self.digest(),
                    force=self.force,
                )
        except Exception as error:
            ours = (
                (errors.JobFailed, errors.InputError, errors.InternalError)
                if self.skip_bad
                else errors.JobFailed
            )
            ends = isinstance(error, errors.DdibError | OSError) and not isinstance(error, ours)
            if ends or isinstance(error, errors.UsageError):
                raise
            self.left_out.append(LeftOut.of(self.studies.origins[at].given, error))
            if not self.skip_bad:
                self._errors.append(self.left_out[-1].error)
            return
        if earlier is not None:  # a run may have been killed between its record and the end of the parts
            shutil.rmtree(earlier.record.with_suffix(".parts"), ignore_errors=True)
        self.written.append(written)
        self.progress.study_written(number, written, study)

    def _translate_parts(
        self, client: Client, number: int, volume_sha256: bytes, paths: Sequence[Path], out: Path
    ) -> dict[Path, str]:
        """Translate the items of a study into a folder; why those that have no result were refused."""
        run = Run(
            self.via, self.target, out, self.request, self.progress,
            force=self.force, skip_bad=True, volume_sha256=volume_sha256, items=inputs.find_items(paths)[0],
        )  # fmt: skip
        self.progress.parts(number, paths)
        run.read()
        with locked(out):
            run._translate_items(client)
        for job in run.jobs:
            self._keep_calibration(job)
        if not run.results:
            for each in run.left_out:
                raise each.error
        try:
            run.require_translated()
        except errors.Cancelled as error:
            # Others of the command's studies go on; Ctrl-C is raised above.
            raise errors.JobFailed(error.detail, hint="the same command again", hop=error.hop) from error
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
        """Submit what is neither on the disk nor in an unfinished job, without waiting for results."""
        with locked(self.out), self.opened() as client, self._explained(client):
            self._begin(client)
            while self._waiting:
                self._submit_next(client, patiently=True)

    def _begin(self, client: Client) -> dict[str, JobFile]:
        """Plan what is neither on the disk nor in an unfinished job of an earlier run; these jobs by their ids."""
        progress = self.progress
        outputs.remove_broken(self.out, self.items)
        if not self.force:
            self._take_finished(self.items)
        self.earlier = len(self.results)
        jobs: dict[str, JobFile] = {}
        if earlier := outputs.unfinished(self.items, self.out):
            ids = {job.request_id: job.job_id for job in client.list(MOST_JOBS)}
            for job in earlier:
                if job.request_id in ids:
                    jobs[ids[job.request_id]] = job
                else:  # the node has removed it, or not accepted it yet: then the same id is the same job
                    job.remove(self.out)
                    self._unknown[job.items] = job.request_id
        under_way = {item for job in jobs.values() for item in job.items}
        left = [item for item in self.items if item.name not in self.results]
        self._waiting = deque(item for item in left if item not in under_way)
        outputs.check_free(self._waiting, self._inputs, self.out, force=self.force)
        progress.done = self.earlier
        progress.whole(len(self.items), self.earlier)
        if self.earlier or jobs:
            covered = len(left) - len(self._waiting)
            told = f", {covered:,} are in unfinished jobs" if covered else ""
            progress.say(
                f"{self.earlier:,} of {len(self.items):,} files are translated already{told}; "
                f"{len(self._waiting):,} are left"
            )
        return jobs

    def _take_finished(self, items: Sequence[FileItem]) -> None:
        for result in outputs.finished(items, self.out):
            self.results[items[result.item].name] = result

    @property
    def _at_its_end(self) -> bool:
        """Whether nothing more is submitted: it was stopped, or a job ended without any result, as the next would."""
        with_result = {ItemState.DECODED, ItemState.DELIVERED}
        return self.progress.stopped or any(
            job.state in {JobState.FAILED, JobState.CANCELLED}
            and not any(item.state in with_result for item in job.items)
            and not (self.skip_bad and job.has_failed_items_alone)
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
        except errors.ItemsTooMany as error:
            limit = int(error.facts.get("limit_items", "0") or 0)
            if not 0 < limit < len(items):
                raise
            self._most_files, again = limit, items
        except errors.ExhaustedError:
            if patiently:
                raise
            again = items
            return False
        except (errors.InputError, errors.InternalError) as error:
            again = self._without_refused(items, error)
        else:
            self.progress.submitted(submitted.job_id, len(items))
            self.submitted.append(submitted)
            self._pending.append((submitted.job_id, items))
        finally:
            self._waiting.extendleft(reversed(again))
        return True

    def _send(self, client: Client, items: Sequence[FileItem], *, while_busy: bool) -> Job:
        request_id = self._unknown.pop(tuple(items), str(uuid.uuid4()))
        make_private_folders(self.out)
        names = JobFile(request_id, tuple(items))
        names.save(self.out)
        try:
            with client.interruptible(""):
                return client.submit(
                    [item.payload for item in items if item.payload is not None],
                    self.target,
                    self.request,
                    classes=[item.classes for item in items if item.classes is not None],
                    volume_sha256=self.volume_sha256,
                    request_id=request_id,
                    while_busy=while_busy,
                )
        except (errors.UnavailableError, errors.DeadlineExceeded, errors.Cancelled):
            raise  # the node may have accepted the job although its answer was lost
        except Exception as error:
            names.remove(self.out)
            if isinstance(error, errors.DomainNotFound | errors.PeerNotFound):
                with suppress(errors.DdibError):
                    known = [each.target for each in client.domains().domains]
                    if self.target not in known and (close := nearest(self.target, known)):
                        error.hint = f"did you mean {close}? `ddib domains` lists the targets"
            raise

    def _without_refused(self, items: Sequence[FileItem], error: errors.DdibError) -> tuple[FileItem, ...]:
        numbers = dict(error.refused)
        if is_number(first_item := error.facts.get("item", "")):
            numbers.setdefault(int(first_item), error.reason)
        numbers = {n: why for n, why in numbers.items() if n < len(items)}
        if not numbers:
            raise error
        first, *others = sorted(numbers)
        bad = [LeftOut.of(items[first].path, error)]
        bad += [LeftOut.of(items[n].path, errors.error_class(numbers[n])(hop=error.hop)) for n in others]
        if not self.skip_bad:
            submitted = len(self._pending) + len(self.jobs)
            under_way = f"{submitted:,} other {'job is' if submitted == 1 else 'jobs are'} under way"
            state = under_way if submitted else "nothing was submitted"
            raise inputs.refused(bad, self.total, state) from error
        self.left_out += bad
        return tuple(item for n, item in enumerate(items) if n not in numbers)

    def _receive(
        self, client: Client, job_id: str, items: Sequence[FileItem], *, earlier: bool = False
    ) -> None:
        """Write the results of a job as they come; of an earlier run's job what it left undone is planned again."""
        progress = self.progress
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
        with client.interruptible(job_id, self.out):
            results = client.results(job_id, on_event=progress.event)
            for result in self._write(client, job_id, results, items, changed):
                item = items[result.item]
                if item in known and item.name not in self.results:
                    progress.done += 1
                    progress.written(result)
                self.results[item.name] = result
            view = client.get(job_id)
        self._keep_calibration(view)
        if not changed:
            JobFile(view.request_id, ()).remove(self.out)
        progress.job_ended(job_id, view.state)
        own = [(each, known[item]) for each, item in zip(view.items, items, strict=False) if item in known]
        if earlier:
            without = [item for _, item in own if item.name not in self.results]
            self._take_finished(without)
            if view.state in {JobState.FAILED, JobState.CANCELLED}:
                progress.say(f"job {job_id} is {view.state.lower()}: what it left undone is submitted again")
                self._waiting.extend(item for item in without if item.name not in self.results)
                return
        self.jobs.append(view)
        for each, item in own:
            if each.error is not None:
                self.failed.append(LeftOut(item.path, each.error.error(client.hop)))
            elif earlier and item.name not in self.results:  # its result was removed
                self._waiting.append(item)

    def _write(
        self,
        client: Client,
        job_id: str,
        results: Iterable[Translated],
        items: Sequence[FileItem],
        without: Collection[int] = (),
    ) -> Iterator[Delivered]:
        """Write results as they come, and acknowledge items once they are on the disk, some at a time.

        Items that are not in `items` are called by their number; those whose numbers are in `without` stay at the node.
        """
        written: list[tuple[int, bytes]] = []
        for result in results:
            if result.item in without:
                continue
            item = FileItem(f"item-{result.item:04}", f"item-{result.item:04}")
            if result.item < len(items):
                item = items[result.item]
                if result.record.input_sha256 != item.sha256:
                    raise errors.ChunkCorrupt(f"item {result.item} is not a translation of {item.file}")
            try:
                delivered = outputs.write_result(result, item, self.out, force=self.force)
            except OSError as error:
                kept = f"the node keeps the rest of job {job_id}"
                kept = kept if client.keeps_jobs else "what was written before is complete"
                raise outputs.not_written(error, self.out, kept) from error
            written.append((result.item, result.files[Part.TRANSLATION].sha256))
            if len(written) >= ACKNOWLEDGED_TOGETHER:
                client.acknowledge(job_id, written)
                written = []
            yield delivered
        if written:
            client.acknowledge(job_id, written)

    def _keep_calibration(self, job: Job) -> None:
        """Keep a job's calibration beside its results: `ddib evaluate` shows what its map alone makes of a picture."""
        if job.calibration:
            write_file(self.out / CALIBRATION_FILE, job.calibration, private=True)

    @contextmanager
    def _explained(self, client: Client) -> Iterator[None]:
        try:
            with client.interruptible():
                yield
        except errors.Cancelled as error:
            if client.aborted:
                done, total = self.progress.done, len(self.items)
                error.detail += f"; {done:,} of {total:,} results are complete in {self.out}"
                error.hint = f"{RESUMES}\n{error.hint}".rstrip()
            raise

    def conclude(self) -> None:
        """Raise what the command ends with, where not everything was translated."""
        failures = list(self._errors)
        try:
            self.require_translated()
        except errors.JobFailed as error:
            failures.append(error.kept())
        if self.skip_bad and (missing := [*self.left_out, *self.failed]):
            state = f"the others are in {self.out}"
            if self.submitted and not self.jobs:
                state = "the others are submitted or translated"
            failures.append(inputs.left_out(missing, self.total, state))
        if partly := [f"{each.given}: {each.refused}" for each in self.written if each.refused]:
            hint = "the records name each item; what was refused is not in the results"
            failures.append(errors.FilesLeftOut("\n".join(partly), hint=hint))
        if len(failures) > 1:
            kind = (
                errors.JobFailed
                if any(isinstance(error, errors.JobFailed) for error in failures)
                else errors.FilesLeftOut
            )
            hints = dict.fromkeys(error.hint for error in failures if error.hint)
            detail = "\n".join(error.detail for error in failures)
            raise kind(detail, hint="\n".join(hints), hop=failures[0].hop)
        if failures:
            raise failures[0]

    def require_translated(self) -> None:
        """Raise unless every job succeeded; where bad files are left out, some of its items may have failed."""
        hop, rest = self.profile.hop, len(self.not_submitted)
        unsent = f"{rest:,} of {self.total:,} files {'was' if rest == 1 else 'were'} not submitted"
        bad = [*self.left_out, *self.failed] if self.items else []
        for job in self.jobs:
            if self.skip_bad and (job.state is JobState.FINISHED or job.has_failed_items_alone):
                continue
            try:
                job.require_finished(hop)
            except (errors.JobFailed, errors.Cancelled) as error:
                error.detail += (f"; {unsent}" if rest else "") + (f"\n{inputs.listed(bad)}" if bad else "")
                hints = [error.hint, "the rest: the same command again" if rest else ""]
                if bad:
                    others = f"without {'it' if len(bad) == 1 else 'them'}: the same command with --skip-bad"
                    steps = errors.next_steps(each.error for each in bad)
                    hints = [steps, others if len(bad) < self.total else "", *hints]
                error.hint = "\n".join(filter(None, hints))
                raise
        if rest:
            raise errors.JobFailed(unsent, hop="client", hint="the same command again")

    def fetch(self, job_id: str) -> None:
        """Fetch the results of a job that are ready, whoever submitted it; `conclude` raises what is missing.

        They are written, acknowledged, and then removed at the node. Names come from the folder that the job was
        submitted for; without them items are called item-0000 and so on.
        """
        with self.opened() as client, client.interruptible(job_id, self.out), locked(self.out):
            job = client.get(job_id)
            path = JobFile(job.request_id, ()).path(self.out)
            items = JobFile.read(path).items if path.exists() else ()
            results = self._write(client, job_id, client.fetch(job_id), items)
            self.results = {str(each.record): each for each in results}
            job = client.get(job_id)
            self._keep_calibration(job)
        self.target, self.jobs, self.total = job.target, [job], len(job.items)
        states = Counter(item.state for item in job.items)
        here, delivered = outputs.records_of(job_id, self.out), states[ItemState.DELIVERED]
        missing = len(job.items) - delivered - states[ItemState.FAILED]
        if job.state.ended and not missing:
            path.unlink(missing_ok=True)
        name, place = shlex.quote(job_id), shlex.quote(str(self.out))
        error: errors.DdibError | None = None
        if not job.state.ended:
            what = f"job {job_id} is {job.state.lower()}: {missing} items are not ready yet"
            hint = f"ddib job watch {name}\nddib job fetch {name} --out {place}"
            error = errors.StateConflict(what, hint=hint)
        elif here < delivered:
            what = f"{delivered - here} of {delivered} results of job {job_id} were fetched before, not to {self.out}"
            hint = f"grep -rl --include='*.json' {name} ~  # finds their records"
            error = errors.ItemNotFound(f"{what}, and the node then removed them", hint=hint)
        if error is not None:
            error.hop = self.profile.hop
            self._errors.append(error)

    def page(self) -> Path | None:
        """Write the page of the results; return where it is, or None if there are too few pictures."""
        pictures = [each for each in self.delivered if each.provenance.picture is not None]
        plain = all(each.shown.suffix == ".png" for each in self.written)
        if len(pictures) + len(self.written) < FEWEST and plain:
            return None
        page = self._place_of_page()
        try:
            self._write_page(pictures, page)
        except OSError as error:
            raise outputs.not_written(error, page, f"every result is in {self.out}") from error
        return page

    def _place_of_page(self) -> Path:
        """Return where the page goes: in place of an earlier one of ours, and of nothing else."""
        from ddib_fed.pages import GENERATOR

        for earlier in itertools.count():
            page = self.out / (PAGE.replace(".", f"-{earlier}.") if earlier else PAGE)
            if not page.exists():
                break
            with page.open("rb") as file:
                if f'content="{GENERATOR}"'.encode() in file.read(500):
                    break
        return page

    def _write_page(self, pictures: list[Delivered], page: Path) -> None:
        from ddib_fed.evaluation.pages import write_results as write
        from ddib_fed.evaluation.translations import FoundPicture

        sources = {item.file: {Part.SOURCE: item.path} for item in self.items}
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
        missing = [(str(each.path), each.why) for each in (*self.left_out, *self.failed)]
        missing += [(str(path), "was not submitted") for path in self.not_submitted]
        total = self.total
        for study in self.written:
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
        many = len(files) >= SLOW
        with self.progress.counted("drawing the page") if many else nullcontext() as show:
            write(page, target, total, files, missing, on_drawn=show)

    def report(self, page: Path | None = None) -> dict[str, Any]:
        """Return what was asked and made, as values; of each result its files and, as `record`, what is known of it."""
        jobs = [{"job_id": job.job_id, "state": job.state} for job in self.jobs]
        bad = {
            name: [{"file": each.path, "reason": each.reason, "why": each.why} for each in files]
            for name, files in (("left_out", self.left_out), ("failed", self.failed))
        }
        items = [
            {
                "item": each.item,
                "file": each.file,
                **{part.value: each.files.get(part) for part in Part},
                "provenance": each.record,
                "record": each.provenance,
            }
            for each in self.delivered
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
            for each in self.written
        ]
        return {
            **(jobs[0] if len(jobs) == 1 else {}),
            "target": self.target,
            "out": self.out,
            "files": self.total,
            "earlier": self.earlier,
            "jobs": jobs,
            "page": page,
            **bad,
            "not_submitted": self.not_submitted,
            "items": items,
            "studies": studies,
        }
