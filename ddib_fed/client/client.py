"""The client: submits files to the institution's own source node, watches jobs, fetches verified results.

Messages of the protocol become the values of `client.jobs` here, and go no further. Importable without torch. Every
method raises `ddib_fed.errors.DdibError` with the hop at which it failed, and nothing of gRPC.
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import grpc
from opentelemetry.trace import Span, SpanKind

from ddib_fed import errors
from ddib_fed.client.connection import PATIENCE_S, Connection, OnWait
from ddib_fed.client.files import SUFFIXES, Origin, Payload, payloads
from ddib_fed.client.jobs import Event, Failure, Item, Job, Progress, Request, split_target
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import ResultFile, Translated
from ddib_fed.protocol.calls import TOLERATED_S, described, from_detail, is_number, status_of
from ddib_fed.protocol.contract import PROTOCOL, guidance_from_pb, guidance_to_pb
from ddib_fed.protocol.messages import (
    Domains,
    ItemState,
    JobState,
    domains_value,
    provenance_record,
    settings_to_pb,
)
from ddib_fed.record import DIAL, Part, Record, Settings
from ddib_fed.security import diagnosis
from ddib_fed.security.pki import load_identity, root_warning
from ddib_fed.telemetry import Tracing, open_tracing, trace_entries
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.v1.translation_pb2_grpc import TranslationServiceStub

if TYPE_CHECKING:
    from ddib_fed.protocol.streams import Announced

CALL_S = 30.0
WATCH_CALL_S = 300.0
FETCH_CALL_S = 3600.0
FETCH_EVERY_S = 0.5
"""Results of a running job are fetched at most this often: a call for each would cost more than what it carries."""
SLOWEST_BYTES_PER_S = 128 * 1024
"""A submission may take as long as its bytes take on a slow line, and the node its time to answer."""
MAX_PART_BYTES = 1 << 30
PARTS = {pb.ResultPart.Value(f"RESULT_PART_{part.name}"): part for part in Part}
RESUMES = "to resume: the same command again"  # the line of a hint above the command that goes on


def _header(target: str, request: Request, classes: Sequence[tuple[str, str]], **fields: Any) -> pb.JobHeader:
    """Return the message of a request; items with classes of their own keep the models' size."""
    request.require_of_nodes()
    institution, domain = split_target(target)
    try:
        header = pb.JobHeader(
            protocol=PROTOCOL,
            target_institution=institution,
            target_domain=domain,
            solver=settings_to_pb(request.settings),
            guidance=guidance_to_pb(request.guidance),
            cycle=request.cycle,
            keep_latent=request.keep_latents,
            source_class=str(request.source_class),
            target_class=str(request.target_class),
            no_calibration=request.without_calibration,
            model_size=bool(classes),
            item_classes=[pb.ItemClasses(source_class=own, target_class=other) for own, other in classes],
            **fields,
        )
    except (TypeError, ValueError) as error:  # a value of another type
        raise errors.UsageError(f"no such job can be asked for: {error}") from error
    for name in request.left:
        header.solver.ClearField(name)
    return header


def _request(header: pb.JobHeader) -> Request:
    """Return the request of a job that a node has."""
    settings = Settings.like(header.solver)
    left = [name for name in DIAL if not header.solver.HasField(name)]
    return Request(
        replace(settings, **{name: getattr(Settings(), name) for name in left}),
        guidance_from_pb(header.guidance),
        header.cycle,
        header.keep_latent,
        header.source_class,
        header.target_class,
        header.no_calibration,
        left,
    )


def _failure(detail: common_pb2.ErrorDetail, hop: str) -> Failure:
    cause = from_detail(detail.SerializeToString(), hop) or errors.JobFailed(
        hop=hop, facts=dict(detail.facts)
    )
    same = {name: getattr(cause, name) for name in ("incident", "facts", "differences", "hop", "says")}
    return Failure(detail.reason, detail.sentence, detail.institution, **same)


def job_from_pb(message: pb.Job, hop: str) -> Job:
    """Return the job of a message from the node at `hop`."""
    header = message.request

    def error(part: pb.Job | pb.Item) -> Failure | None:
        return _failure(part.error, hop) if part.HasField("error") else None

    items = (
        Item(
            item.index, ItemState(_name(pb.ItemState, item.state)), item.size_bytes, item.sha256, error(item)
        )
        for item in message.items
    )
    same = ("job_id", "created", "finished", "expires", "item_count", "items_done", "calibration")
    return Job(
        **{name: getattr(message, name) for name in same},
        target=f"{header.target_institution}/{header.target_domain}",
        request=_request(header),
        state=JobState(_name(pb.JobState, message.state)),
        request_id=header.request_id,
        items=tuple(items),
        error=error(message),
        model_size=header.model_size,
    )


def _name(kind: Any, number: int) -> str:
    return str(kind.Name(number).partition("_STATE_")[2])


def _event(message: pb.WatchJobResponse) -> Event:
    values = {each.name: getattr(message, each.name) for each in fields(Event)}
    return Event(**{**values, "state": JobState(_name(pb.JobState, message.state))})


def collect(
    messages: Iterable[pb.FetchResultsResponse], job_id: str, wanted: Collection[int], parts: frozenset[Part]
) -> Iterator[Translated]:
    """Yield each result when its last part is complete; every part was announced, and is one that was asked for.

    Raise ChunkCorrupt if bytes are not those announced or a part is missing, MessageInvalid if one is unexpected.
    """
    from ddib_fed.protocol.streams import assemble, open_file

    due, files = set(wanted), dict[Part, ResultFile]()
    now: tuple[int, Record] | None = None

    def opened(header: pb.ResultHeader) -> Announced:
        nonlocal now
        item, part = header.item, PARTS.get(header.part)
        if item not in due or (now is not None and now[0] != item):
            raise errors.MessageInvalid(f"a part of item {item} is not expected here")
        if part is None or part not in parts or part in files:
            raise errors.MessageInvalid(f"{part or header.part} of item {item} is not expected here")
        if now is None:
            if not header.HasField("provenance"):
                raise errors.MessageInvalid(f"item {item} came without provenance")
            if header.provenance.job_id != job_id:
                raise errors.MessageInvalid(f"item {item} says that it is of another job")
            now = item, provenance_record(header.provenance).judged()
        return open_file(header.file, max_bytes=MAX_PART_BYTES, accepted=SUFFIXES)

    for whole in assemble(messages, {"result": opened}):
        file = whole.header.file
        files[PARTS[whole.header.part]] = ResultFile(
            SUFFIXES[file.media_type], bytes(whole.data), file.sha256
        )
        if parts <= files.keys() and now is not None:
            yield Translated(now[0], files, now[1])
            due.discard(now[0])
            now, files = None, {}
    if now is not None:
        missing = ", ".join(sorted(parts - files.keys()))
        raise errors.ChunkCorrupt(f"item {now[0]} came without its {missing}")


def _ready(job: Job) -> list[int]:
    return [item.index for item in job.items if item.state is ItemState.DECODED]


class Client(Connection):
    """A connection to the source node of the client's own institution; a context manager, for one thread.

    Every method raises `DdibError` where the node refuses or cannot be reached.

    Parameters
    ----------
    profile
        Who the client is and where its node is.
    patience_s
        How long a node that was reached before may be away before a call gives up; submitting, watching and fetching
        continue where they stopped once it is back. A node that refuses because a limit is reached
        (`TOO_MANY_STREAMS`, `QUEUE_FULL`) is tried again when it says, for 10 minutes; without patience not at all.
    on_wait
        Called with the failure and the seconds until the next try whenever a call waits for the node.
    tracing
        Records its calls; by default what the profile's `[telemetry]` says.

    Examples
    --------
    >>> import ddib_fed
    >>> with ddib_fed.Client.from_profile() as client:  # doctest: +SKIP
    ...     for domain in client.domains().domains:
    ...         print(domain.target, domain.status)
    """

    keeps_jobs = True
    """Whether jobs outlive the command, at a node."""

    def __init__(
        self,
        profile: Profile,
        *,
        patience_s: float = PATIENCE_S,
        on_wait: OnWait | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__(profile, patience_s=patience_s, on_wait=on_wait)
        self._tracing = tracing or open_tracing(
            profile.telemetry, institution=profile.institution, what="client"
        )

    @classmethod
    def from_profile(cls, path: str | Path | None = None, *, on_wait: OnWait | None = None) -> Self:
        """Return a client for the profile at `path`, or at the first of the usual places.

        Raise FileMissing if there is no profile, ConfigError if it cannot be used.
        """
        return cls(Profile.load(path), on_wait=on_wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None and self.reached:
                self.renew()
        finally:
            self.close()

    def close(self) -> None:
        self.drop()
        self._tracing.close()

    @classmethod
    @contextmanager
    def for_command(
        cls,
        via: Client | Profile | Path | None = None,
        *,
        on_wait: OnWait | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Iterator[Client]:
        """Open a client for one command; the first Ctrl-C, or SIGTERM of a batch system, ends its calls.

        `via` is a client that is open, and stays so; or a profile, its file, or None for the usual places.
        """
        with ExitStack() as opened:
            if not isinstance(via, Client):
                profile = via if isinstance(via, Profile) else Profile.load(via)
                via = opened.enter_context(
                    Client(profile, patience_s=patience_s, on_wait=on_wait or Progress().wait)
                )
            opened.enter_context(via.interruptible())
            if threading.current_thread() is threading.main_thread():
                opened.enter_context(_signals(via.abort))
            yield via

    @contextmanager
    def interruptible(self, job_id: str | None = None, out: Path | None = None) -> Iterator[None]:
        """Turn Ctrl-C into an error with the commands for what goes on; `job_id` is empty while a job is submitted."""
        try:
            yield
        except errors.DdibError as error:
            if not self.aborted or (isinstance(error, errors.Cancelled) and error.hint):
                raise
            # The id comes from the node, and these lines are meant to be pasted.
            job, more = shlex.quote(job_id or ""), f" --profile {shlex.quote(str(self.profile.path))}"
            if not self.keeps_jobs or job_id is None:
                said, hint = "interrupted", ""
            elif job_id:
                said = f"interrupted; job {job_id} continues at the source node"
                fetch = f"ddib job fetch {job} --out {shlex.quote(str(out or 'DIR'))}{more}"
                hint = f"ddib job watch {job}{more}\n{fetch}\nto stop it:\nddib job cancel {job}{more}"
            else:
                said, hint = "interrupted: the node may have accepted a job", f"ddib job list{more}"
            raise errors.Cancelled(said, hint=hint, hop=self.hop) from error

    @classmethod
    def diagnose(cls, profile: Profile) -> Iterator[tuple[str, str]]:
        """Check the way to the node step by step; yield each step and its finding, raise at the first that fails."""
        # The folder's certificate is the profile's, and valid now.
        own = load_identity(profile.pki_folder)
        expected = f"spiffe://{profile.institution}/client/{profile.name}"
        if own.identity.uri != expected:
            raise errors.Unauthenticated(
                f"the certificate names {own.identity}, the profile {expected}",
                hop="client",
                hint=f"edit {profile.path}, or make a client anew: ddib init client --help",
            )
        if (invalid := diagnosis.own_validity(own)) is not None:
            raise invalid.as_error("client")
        warning = root_warning(own.identity.institution, own.root_not_after, datetime.now(UTC))
        until = f"valid until {own.not_after:%Y-%m-%d %H:%M} UTC"
        yield "certificate", f"{own.identity}, {until}{warning and f'; {warning}'}"

        # Both sides accept the other's certificate over TLS 1.3.
        causes = profile.diagnosis()
        if not causes.ok:
            raise causes.as_error(profile.hop)
        through = f" through the proxy {profile.way.address}" if profile.way is not None else ""
        yield "connection", f"{profile.source_address}{through}: {causes.text}"

        try:
            with cls.for_command(profile, patience_s=0) as client:
                served = client.domains()
                ahead_s = client.clock_s or 0.0
        except errors.DdibError as error:
            error.hint = error.hint or "ask the operator of the node: its log says why"
            raise
        targets = [f"{each.institution}/{each.domain or '?'} {each.status}" for each in served.domains]
        yield "service", f"{served.institution}/{served.domain}; {', '.join(targets) or 'no targets yet'}"

        if abs(ahead_s) >= TOLERATED_S:  # certificates and deadlines depend on both clocks
            raise errors.ConfigError(
                f"the clock of the node is {described(ahead_s)}",
                hop=profile.hop,
                hint="compare both with a third: `timedatectl` shows whether this machine's is synchronised",
            )
        yield "clock", f"within {max(1.0, abs(ahead_s)):.0f} s of the node's"

    def domains(self, *, own_alone: bool = False) -> Domains:
        """Return the node's own domain and those it can translate to; or its own alone, for which it asks no peer."""
        request = pb.ListDomainsRequest(own_alone=own_alone)
        return domains_value(self.call(lambda stub: stub.ListDomains(request, timeout=CALL_S)))

    def submit(
        self,
        files: Iterable[Origin],
        target: str,
        request: Request | None = None,
        *,
        classes: Sequence[tuple[str, str]] = (),
        volume_sha256: bytes = b"",
        deadline_s: int = 0,
        request_id: str = "",
        while_busy: bool = True,
    ) -> Job:
        """Submit a job; return once it is on the node's disk.

        Parameters
        ----------
        files
            Paths, or contents.
        target
            INSTITUTION/DOMAIN.
        request
            What is asked; without one the defaults.
        classes
            Source and target class of each file, in place of the request's; results then keep the models' size.
        volume_sha256
            Of all pixels of a volume of which the files are slices: one noise may soften them.
        deadline_s
            Seconds after which the node gives the job up; 0 for the node's default.
        request_id
            A UUID, made if it is missing: the same id with the same content is the same job.
        while_busy
            Wait for a node that refuses because a limit is reached.

        Returns
        -------
        Job
            Without its items.

        Raises
        ------
        InputError
            A file or the target cannot be used, such as PictureMisfit and KindMismatch; a file is named.
        """
        request, items = request or Request(), payloads(files)
        header = _header(
            target,
            request,
            classes,
            volume_sha256=volume_sha256,
            deadline_s=deadline_s,
            request_id=request_id or str(uuid.uuid4()),  # the tries of this call submit one job
            items=len(items),
        )
        try:
            with self._tracing.span(
                "submit", kind=SpanKind.CLIENT, peer=header.target_institution, items=len(items)
            ) as span:
                answer = self.call(lambda stub: _send_once(stub, header, items, span), while_busy=while_busy)
            self._tracing.remember(answer.job_id, span)
        except errors.DdibError as error:
            name_item(error, items)
            raise
        state, repeated = JobState(_name(pb.JobState, answer.state)), answer.repeated_request
        return Job(
            answer.job_id, target, request, state, header.request_id, item_count=len(items), repeated=repeated
        )

    def check(self, target: str, request: Request) -> None:
        """Raise what the node objects to in such a job, without one.

        The node checks a job's header, and the target's domain, before it reads items. None come, so there is no job.
        """
        header = _header(target, request, (), items=1, request_id=str(uuid.uuid4()))
        asked = pb.SubmitJobRequest(header=header)
        try:
            self.call(lambda stub: stub.SubmitJob(iter([asked]), timeout=CALL_S))
        except errors.MessageInvalid as error:
            if error.facts.get("received") != "0":
                raise

    def watch(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """Yield events of a job after a sequence number until it has ended, also over a restart of the node."""
        last = after
        patience = self.patience()
        while True:
            request = pb.WatchJobRequest(job_id=job_id, after_sequence=last)
            try:
                with self.streaming("WatchJob", request, WATCH_CALL_S) as events:
                    for event in map(_event, events):
                        self.reached = True
                        if event.sequence <= last:
                            continue
                        patience.progress()
                        last = event.sequence
                        yield event
                        if event.state.ended:
                            return
            except grpc.RpcError as error:
                # Only this client's time limit for one call has passed: not a failure; make the next call.
                if status_of(error) is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    self.give_way(patience, error)
                continue
            if self.get(job_id).state.ended:
                return
            patience.wait(
                errors.PeerUnreachable(f"the events of job {job_id} ended before the job", hop=self.hop)
            )
            self.drop()

    def get(self, job_id: str) -> Job:
        """Return a job with its items; raise JobNotFound if this client has no such job."""
        request = pb.GetJobRequest(job_id=job_id)
        job = self.call(lambda stub: stub.GetJob(request, timeout=CALL_S)).job
        if job.job_id != job_id:
            raise errors.MessageInvalid(
                "the node answered with another job than the requested one", hop=self.hop
            )
        return job_from_pb(job, self.hop)

    def list(self, limit: int = 100) -> Sequence[Job]:
        """Return this client's jobs, newest first, without their items."""
        request = pb.ListJobsRequest(limit=limit)
        answer = self.call(lambda stub: stub.ListJobs(request, timeout=CALL_S))
        return [job_from_pb(each, self.hop) for each in answer.jobs]

    def fetch(self, job_id: str, items: Sequence[int] | None = None) -> Iterator[Translated]:
        """Yield results, each complete and of the announced digests, also over a restart of the node.

        `items` are their numbers; None for those that are decoded and not acknowledged. Raise ChunkCorrupt if bytes
        differ from what was announced or a part is missing, MessageInvalid if something comes that was not requested.
        """
        job = self.get(job_id)
        yield from self._fetch(job, _ready(job) if items is None else items)

    def _fetch(self, job: Job, items: Iterable[int]) -> Iterator[Translated]:
        due = sorted(set(items))
        patience, parent = self.patience(), self._tracing.recall(job.job_id)
        of = job.request
        asked = {Part.RETURNED: of.cycle, Part.LATENT: of.keep_latents, Part.SOURCE: job.model_size}
        parts = frozenset({Part.TRANSLATION, *(part for part, wanted in asked.items() if wanted)})
        while due:
            request = pb.FetchResultsRequest(job_id=job.job_id, items=due)
            try:
                span = self._tracing.span("deliver", kind=SpanKind.CLIENT, parent=parent, items=len(due))
                with span as trace:
                    how = trace_entries(trace)
                    with self.streaming("FetchResults", request, FETCH_CALL_S, **how) as messages:
                        for result in collect(messages, job.job_id, due, parts):
                            patience.progress()
                            due.remove(result.item)
                            yield result
            except grpc.RpcError as error:
                self.give_way(patience, error)
            except errors.DdibError as error:
                error.hop = error.hop or self.hop
                raise
            else:
                if due:
                    raise errors.ChunkCorrupt(f"items {due} of job {job.job_id} did not come", hop=self.hop)

    def results(
        self, job_id: str, *, on_event: Callable[[Event], None] | None = None
    ) -> Iterator[Translated]:
        """Watch a job to its end, and fetch each result while the others are being made; see `fetch` and `watch`.

        Results that were acknowledged before do not come again. How the job ended is to be asked for (`get`).
        """
        job: Job | None = None
        given: set[int] = set()
        ready: list[int] = []
        fetched = time.monotonic()
        for event in self.watch(job_id):
            if on_event is not None:
                on_event(event)
            if event.stage == "done" and event.item not in given:
                ready.append(event.item)
            if ready and (now := time.monotonic()) - fetched >= FETCH_EVERY_S:
                fetched = now
                if job is None:
                    # Asked for when first needed: a short job is over before, and has one round trip fewer.
                    job = self.get(job_id)
                    # The events of a job that was watched before come again, and so do its delivered items.
                    given.update(i.index for i in job.items if i.state is ItemState.DELIVERED)
                due = [item for item in ready if item not in given]
                given.update(due)
                yield from self._fetch(job, due)
                ready = []
        ended = self.get(job_id)
        yield from self._fetch(ended, [item for item in _ready(ended) if item not in given])

    def acknowledge(self, job_id: str, results: Iterable[tuple[int, bytes]]) -> int:
        """Acknowledge stored results, so that the node removes them; return how many items are still to be delivered.

        Each of `results` is the number of an item, and the SHA-256 of its translation that was written.
        """
        items = [pb.Acknowledgement(item=item, sha256=sha256) for item, sha256 in results]
        request = pb.AcknowledgeItemsRequest(job_id=job_id, items=items)
        return self.call(lambda stub: stub.AcknowledgeItems(request, timeout=CALL_S)).remaining

    def cancel(self, job_id: str) -> JobState:
        """Stop a job at the solver's next step; return its state afterwards."""
        request = pb.CancelJobRequest(job_id=job_id)
        answer = self.call(lambda stub: stub.CancelJob(request, timeout=CALL_S))
        return JobState(_name(pb.JobState, answer.state))

    def delete(self, job_id: str) -> None:
        """Remove an ended job and all its data at the node; raise JobNotFound if this client has no such job."""
        tries = 0

        def attempt(stub: TranslationServiceStub) -> pb.DeleteJobResponse:
            nonlocal tries
            tries += 1
            return stub.DeleteJob(pb.DeleteJobRequest(job_id=job_id), timeout=CALL_S)

        try:
            self.call(attempt)
        except errors.JobNotFound:
            # The answer to an earlier try was lost: the job is already removed.
            if tries == 1:
                raise

    def translate(
        self,
        files: Iterable[Origin],
        target: str,
        request: Request | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
    ) -> Iterator[Translated]:
        """Submit files, and yield each result, in their order, as soon as it and those before it are there.

        They are acknowledged, and removed at the node, when the last one was taken.

        Parameters
        ----------
        files, target, request
            As of `submit`.
        on_event
            Called with each event of the job.

        Raises
        ------
        JobFailed, Cancelled
            An item failed, which is raised after the results of the others; or the job was cancelled.
        DdibError
            A file cannot be used, or the node refuses or cannot be reached.
        """
        job = self.submit(files, target, request)
        done, early = list[tuple[int, bytes]](), dict[int, Translated]()
        for result in self.results(job.job_id, on_event=on_event):
            early[result.item] = result
            done.append((result.item, result.files[Part.TRANSLATION].sha256))
            while (following := early.pop(len(done) - len(early), None)) is not None:
                yield following
        for _, result in sorted(early.items()):
            yield result
        self.get(job.job_id).require_finished(self.hop)
        self.acknowledge(job.job_id, done)


def _send_once(
    stub: TranslationServiceStub, header: pb.JobHeader, items: Sequence[Payload], trace: Span
) -> pb.SubmitJobResponse:
    """Call SubmitJob once; raise the error of an item that cannot be read."""
    from ddib_fed.protocol.streams import stream

    unread: list[Exception] = []

    def messages() -> Iterator[pb.SubmitJobRequest]:
        yield pb.SubmitJobRequest(header=header)
        try:
            for item in items:
                yield from stream(pb.SubmitJobRequest, "item", item.header(), memoryview(item.read()))
        except (errors.DdibError, OSError) as error:
            unread.append(error)
            raise

    timeout_s = CALL_S + sum(item.size_bytes for item in items) / SLOWEST_BYTES_PER_S
    try:
        return stub.SubmitJob(messages(), timeout=timeout_s, **trace_entries(trace))
    except grpc.RpcError:
        for error in unread:
            raise error from None
        raise


def name_item(error: errors.DdibError, items: Sequence[Payload]) -> None:
    """Put the file's name and its misfit into the error, if the node named the item."""
    number = error.facts.get("item", "")
    if not (is_number(number) and int(number) < len(items)):
        return
    # Only for an error: it imports numpy, a third of what a client loads.
    from ddib_fed.data.points import name_file

    origin = items[int(number)].origin
    named = name_file(error, f"item {number}" if isinstance(origin, bytes) else str(origin))
    error.detail, error.hint = named.detail, named.hint


@contextmanager
def _signals(abort: Callable[[], object]) -> Iterator[None]:
    """Call `abort`, in another thread, at the first Ctrl-C or SIGTERM; a second one ends the process as usual."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, before[signal.Signals(number)])
        threading.Thread(target=abort, daemon=True).start()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
