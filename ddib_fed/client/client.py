"""The typed client: submits files to the institution's own source node, watches jobs, fetches verified results.

    with Client.from_profile() as client:
        for result in client.translate([Path("points.npy")], "south.example/checkerboards", cycle=True):
            print(result.provenance.cycle)

Jobs, events and domains are the messages of translation.proto. Importable without torch. Every method raises
`ddib_fed.errors.DdibError` with the hop at which it failed, and nothing of gRPC.
"""

from __future__ import annotations

import itertools
import shlex
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import grpc
from opentelemetry.trace import Span, SpanKind

from ddib_fed.client.connection import PATIENCE_S, Connection, OnWait
from ddib_fed.client.files import SUFFIXES, Origin, Payload, payloads
from ddib_fed.client.profile import Profile
from ddib_fed.errors import (
    Cancelled,
    ChunkCorrupt,
    DdibError,
    DeadlineExceeded,
    ExhaustedError,
    JobFailed,
    JobNotFound,
    MessageInvalid,
    PeerFault,
    PeerUnreachable,
    UsageError,
    error_class,
)
from ddib_fed.protocol.calls import from_detail, is_number, status_of
from ddib_fed.protocol.contract import PROTOCOL, guidance_to_pb
from ddib_fed.protocol.messages import provenance_record, settings_to_pb
from ddib_fed.record import DIAL, UNGUIDED, Guidance, Part, Record, Settings
from ddib_fed.telemetry import Tracing, open_tracing, trace_entries
from ddib_fed.terminal import say
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
ENDED = frozenset({pb.JOB_STATE_FINISHED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})
WITHOUT_RESULT = frozenset({pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})
RESUMES = "to resume: the same command again"
"""The line of a hint above the command that goes on."""


def split_target(target: str) -> tuple[str, str]:
    """`INSTITUTION/DOMAIN` in two."""
    institution, slash, domain = target.partition("/")
    if not slash or not institution or not domain or "/" in domain:
        raise UsageError(
            f"{target!r} is no target: INSTITUTION/DOMAIN is expected, e.g. south.example/checkerboards",
            hop="client",
            hint="ddib domains",
        )
    return institution, domain


def job_header(
    target: str,
    settings: Settings | None = None,
    *,
    guidance: Guidance = UNGUIDED,
    left: Collection[str] = (),
    **fields: Any,
) -> pb.JobHeader:
    """What is asked of a job: its target, `INSTITUTION/DOMAIN`, and other fields of the message, such as `cycle`.

    Settings in `left` are left to the calibration; without settings all of `DIAL` are.
    """
    institution, domain = split_target(target)
    try:
        header = pb.JobHeader(
            protocol=PROTOCOL,
            target_institution=institution,
            target_domain=domain,
            solver=settings_to_pb(settings or Settings()),
            guidance=guidance_to_pb(guidance),
            **fields,
        )
    except (TypeError, ValueError) as error:  # a field that is none, or of another type
        raise UsageError(f"no such job can be asked for: {error}") from error
    for name in DIAL if settings is None else left:
        header.solver.ClearField(name)
    return header


def target_of(job: pb.JobHeader) -> str:
    return f"{job.target_institution}/{job.target_domain}"


def state_of(
    message: pb.Job | pb.Item | pb.SubmitJobResponse | pb.CancelJobResponse | pb.WatchJobResponse,
) -> str:
    kind = pb.ItemState if isinstance(message, pb.Item) else pb.JobState
    return kind.Name(message.state).partition("_STATE_")[2]


def failure_text(failure: common_pb2.ErrorDetail) -> str:
    """What failed, in words of the picture, or whose fault it is, or the last cause of a job whose time was up."""
    facts, peer = failure.facts, failure.facts.get("peer") or failure.institution
    if failure.reason == DeadlineExceeded.reason and "deadline_s" in facts:
        last = f"; last: {facts['last']}" if "last" in facts else ""
        done = facts.get("items_done", "some")
        return f"the deadline of {facts['deadline_s']} s passed, {done} items were done{last}"
    if "picture" in facts:
        return f"{facts['picture']}, and the source's model has not learned such pictures"
    if "found" not in facts:
        return failure.sentence
    if failure.reason == PeerFault.reason:
        return f"{peer} answered with what cannot be used: {facts['found']}"
    return f"{peer}: {facts['found']}"


def failure(detail: common_pb2.ErrorDetail, hop: str) -> DdibError:
    kind = error_class(detail.reason) if detail.reason else JobFailed
    return kind(failure_text(detail), hop=hop)


def require_finished(job: pb.Job, hop: str) -> pb.Job:
    """Return the job if all its items were translated; raise JobFailed if one failed, Cancelled if it was cancelled."""
    if job.state == pb.JOB_STATE_CANCELLED:
        raise Cancelled(f"job {job.job_id} was cancelled", hop=hop)
    bad = [item for item in job.items if item.state == pb.ITEM_STATE_FAILED]
    if job.state != pb.JOB_STATE_FAILED and not bad:
        return job
    what = f"{len(bad)} of {len(job.items)} items of job {job.job_id}" if bad else f"job {job.job_id}"
    hint = f"ddib job show {job.job_id}" if hop else ""  # in one process nothing is kept
    first = job.error if job.HasField("error") or not bad else bad[0].error
    why = f": {failure_text(first)} ({first.reason})" if first.reason else ""
    cause = from_detail(first.SerializeToString(), hop) or JobFailed(hop=hop)
    error = JobFailed(
        f"{what} failed{why}",
        hint=hint,
        hop=cause.hop,
        facts=cause.facts,
        differences=cause.differences,
        incident=cause.incident,
    )
    error.says = cause.says
    raise error


@dataclass(frozen=True, slots=True)
class ResultFile:
    suffix: str
    data: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class JobResult:
    """All files of one item, each verified against its announced digest, and their provenance."""

    item: int
    files: Mapping[Part, ResultFile]
    provenance: Record

    @property
    def translation(self) -> ResultFile:
        return self.files[Part.TRANSLATION]


def collect(
    messages: Iterable[pb.FetchResultsResponse], job_id: str, wanted: Collection[int], parts: frozenset[Part]
) -> Iterator[JobResult]:
    """Each result as soon as its last part is complete; every part was announced, and is what was asked for.

    Raises:
        ChunkCorrupt: The bytes differ from what was announced, or a result lacks a part.
        MessageInvalid: A part is not expected here.
    """
    from ddib_fed.protocol.streams import assemble, open_file

    due, files = set(wanted), dict[Part, ResultFile]()
    now: tuple[int, Record] | None = None

    def opened(header: pb.ResultHeader) -> Announced:
        nonlocal now
        item, part = header.item, PARTS.get(header.part)
        if item not in due or (now is not None and now[0] != item):
            raise MessageInvalid(f"a part of item {item} is not expected here")
        if part is None or part not in parts or part in files:
            raise MessageInvalid(f"{part or header.part} of item {item} is not expected here")
        if now is None:
            if not header.HasField("provenance"):
                raise MessageInvalid(f"item {item} came without provenance")
            if header.provenance.job_id != job_id:
                raise MessageInvalid(f"item {item} says that it is of another job")
            now = item, provenance_record(header.provenance)
        return open_file(header.file, max_bytes=MAX_PART_BYTES, accepted=SUFFIXES)

    for whole in assemble(messages, {"result": opened}):
        file = whole.header.file
        files[PARTS[whole.header.part]] = ResultFile(
            SUFFIXES[file.media_type], bytes(whole.data), file.sha256
        )
        if parts <= files.keys() and now is not None:
            yield JobResult(now[0], files, now[1])
            due.discard(now[0])
            now, files = None, {}
    if now is not None:
        missing = ", ".join(sorted(parts - files.keys()))
        raise ChunkCorrupt(f"item {now[0]} came without its {missing}")


def _ready(job: pb.Job) -> list[int]:
    return [item.index for item in job.items if item.state == pb.ITEM_STATE_DECODED]


class Client(Connection):
    """A connection to the source node of the client's own institution; a context manager, for one thread.

    Every method raises `DdibError` where the node refuses or cannot be reached.

    Args:
        profile: Who the client is and where its node is.
        patience_s: How long a node that was reached before may be away before a call gives up; submitting, watching
            and fetching continue where they stopped once it is back. A node that refuses because a limit is reached
            (`TOO_MANY_STREAMS`, `QUEUE_FULL`) is tried again when it says, for 10 minutes; without patience not at all.
        on_wait: Called with the failure and the seconds until the next try whenever a call waits for the node.
        tracing: Records its calls; by default what the profile's `[telemetry]` says.
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
        """A client for the profile at `path`, or the first of the usual places.

        Raises:
            FileMissing: There is no profile.
            ConfigError: It cannot be used.
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

    def domains(self, *, own_alone: bool = False) -> pb.ListDomainsResponse:
        """The node's own domain and those it can translate to; or its own alone, for which it asks no peer."""
        request = pb.ListDomainsRequest(own_alone=own_alone)
        return self.call(lambda stub: stub.ListDomains(request, timeout=CALL_S))

    def submit(
        self, files: Iterable[Origin], target: str, settings: Settings | None = None, **fields: Any
    ) -> pb.SubmitJobResponse:
        """As `send`, of files (paths, bytes or payloads) and the arguments of `job_header`."""
        return self.send(payloads(files), job_header(target, settings, **fields))

    def send(
        self, items: Sequence[Payload], header: pb.JobHeader, *, while_busy: bool = True
    ) -> pb.SubmitJobResponse:
        """Submit a job; returns once it is on the node's disk.

        Args:
            items: The files of the job.
            header: What is asked. Its request id, a UUID, is made when missing; the same id with the same content is
                the same job, so that a job is never submitted twice by the tries of this call.
            while_busy: Whether a node that refuses because a limit is reached is waited for, as long as `busy_s` says.

        Raises:
            ContractMismatch: The node speaks another version of the protocol.
            PictureMisfit, KindMismatch: An item is not in the units, or not of the kind, of the node's model.
            InputError: An item or the target cannot be used; an item is named.
        """
        header.items, header.request_id = len(items), header.request_id or str(uuid.uuid4())
        try:
            with self._tracing.span(
                "submit", kind=SpanKind.CLIENT, peer=header.target_institution, items=len(items)
            ) as span:
                answer = self.call(lambda stub: _send_once(stub, header, items, span), while_busy=while_busy)
            self._tracing.remember(answer.job_id, span)
        except DdibError as error:
            name_item(error, items)
            raise
        return answer

    def watch(self, job_id: str, after: int = 0) -> Iterator[pb.WatchJobResponse]:
        """Events of a job after a sequence number, until it has ended; survives a restart of the node."""
        last = after
        patience = self.patience()
        while True:
            request = pb.WatchJobRequest(job_id=job_id, after_sequence=last)
            try:
                with self.streaming("WatchJob", request, WATCH_CALL_S) as events:
                    for event in events:
                        self.reached = True
                        if event.sequence <= last:
                            continue
                        patience.progress()
                        last = event.sequence
                        yield event
                        if event.state in ENDED:
                            return
            except grpc.RpcError as error:
                # Only this client's time limit for one call has passed: not a failure; make the next call.
                if status_of(error) is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    self.give_way(patience, error)
                continue
            if self.get(job_id).state in ENDED:
                return
            patience.wait(PeerUnreachable(f"the events of job {job_id} ended before the job", hop=self.hop))
            self.drop()

    def get(self, job_id: str) -> pb.Job:
        """A job with its items.

        Raises:
            JobNotFound: This client has no such job.
            MessageInvalid: The node answers with what the protocol does not allow.
        """
        request = pb.GetJobRequest(job_id=job_id)
        job = self.call(lambda stub: stub.GetJob(request, timeout=CALL_S)).job
        if job.job_id != job_id:
            raise MessageInvalid("the node answered with another job than the requested one", hop=self.hop)
        return job

    def list(self, limit: int = 100) -> Sequence[pb.Job]:
        """This client's jobs, newest first, without their items."""
        request = pb.ListJobsRequest(limit=limit)
        return self.call(lambda stub: stub.ListJobs(request, timeout=CALL_S)).jobs

    def fetch(self, job_id: str, items: Sequence[int] | None = None) -> Iterator[JobResult]:
        """Results, each complete and of the announced digests; continues with the rest after a restart of the node.

        Without `items` those that are decoded and not acknowledged.

        Raises:
            ChunkCorrupt: The bytes differ from what was announced, or a result lacks a part.
            MessageInvalid: The node sends something that was not requested.
        """
        job = self.get(job_id)
        yield from self._fetch(job, _ready(job) if items is None else items)

    def _fetch(self, job: pb.Job, items: Iterable[int]) -> Iterator[JobResult]:
        due = sorted(set(items))
        patience, parent = self.patience(), self._tracing.recall(job.job_id)
        of = job.request
        asked = {Part.RETURNED: of.cycle, Part.LATENT: of.keep_latent, Part.SOURCE: of.model_size}
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
            except DdibError as error:
                error.hop = error.hop or self.hop
                raise
            else:
                if due:
                    raise ChunkCorrupt(f"items {due} of job {job.job_id} did not come", hop=self.hop)

    def results(
        self, job_id: str, *, on_event: Callable[[pb.WatchJobResponse], None] | None = None
    ) -> Iterator[JobResult]:
        """Watch a job to its end, and fetch each result while the others are being made; see `fetch` and `watch`.

        Results that were acknowledged before do not come again. How the job ended is to be asked for (`get`).
        """
        job: pb.Job | None = None
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
                    given.update(i.index for i in job.items if i.state == pb.ITEM_STATE_DELIVERED)
                due = [item for item in ready if item not in given]
                given.update(due)
                yield from self._fetch(job, due)
                ready = []
        ended = self.get(job_id)
        yield from self._fetch(ended, [item for item in _ready(ended) if item not in given])

    def acknowledge(self, job_id: str, results: Iterable[tuple[int, bytes]]) -> int:
        """Acknowledge stored results, so that the node removes them; returns how many items are still to be delivered.

        Args:
            job_id: The job.
            results: Item number and SHA-256 of the translation that was written."""
        items = [pb.Acknowledgement(item=item, sha256=sha256) for item, sha256 in results]
        request = pb.AcknowledgeItemsRequest(job_id=job_id, items=items)
        return self.call(lambda stub: stub.AcknowledgeItems(request, timeout=CALL_S)).remaining

    def cancel(self, job_id: str) -> pb.CancelJobResponse:
        """Stop a job at the solver's next step; its state afterwards."""
        request = pb.CancelJobRequest(job_id=job_id)
        return self.call(lambda stub: stub.CancelJob(request, timeout=CALL_S))

    def delete(self, job_id: str) -> None:
        """Remove an ended job and all its data at the node.

        Raises:
            JobNotFound: This client has no such job.
        """
        tries = 0

        def attempt(stub: TranslationServiceStub) -> pb.DeleteJobResponse:
            nonlocal tries
            tries += 1
            return stub.DeleteJob(pb.DeleteJobRequest(job_id=job_id), timeout=CALL_S)

        try:
            self.call(attempt)
        except JobNotFound:
            # The answer to an earlier try was lost: the job is already removed.
            if tries == 1:
                raise

    def translate(
        self,
        files: Iterable[Origin],
        target: str,
        settings: Settings | None = None,
        *,
        on_event: Callable[[pb.WatchJobResponse], None] | None = None,
        **fields: Any,
    ) -> tuple[JobResult, ...]:
        """Submit, watch, fetch and acknowledge; the results, in the order of the files.

        `fields` are other arguments of `job_header`.

        Raises:
            JobFailed: The job or one of its items failed; finished items can still be fetched.
            Cancelled: The job was cancelled.
            DdibError: An input cannot be used, or the node refuses or cannot be reached.
        """
        job = self.submit(files, target, settings, **fields)
        fetched = list(self.results(job.job_id, on_event=on_event))
        require_finished(self.get(job.job_id), self.hop)
        results = tuple(sorted(fetched, key=lambda result: result.item))
        self.acknowledge(job.job_id, [(r.item, r.translation.sha256) for r in results])
        return results


def _send_once(
    stub: TranslationServiceStub, header: pb.JobHeader, items: Sequence[Payload], trace: Span
) -> pb.SubmitJobResponse:
    """One try of SubmitJob; an item that cannot be read ends it with its own error."""
    from ddib_fed.protocol.streams import stream

    unread: list[Exception] = []

    def messages() -> Iterator[pb.SubmitJobRequest]:
        yield pb.SubmitJobRequest(header=header)
        try:
            for item in items:
                yield from stream(pb.SubmitJobRequest, "item", item.header(), memoryview(item.read()))
        except (DdibError, OSError) as error:
            unread.append(error)
            raise

    timeout_s = CALL_S + sum(item.size_bytes for item in items) / SLOWEST_BYTES_PER_S
    try:
        return stub.SubmitJob(messages(), timeout=timeout_s, **trace_entries(trace))
    except grpc.RpcError:
        for error in unread:
            raise error from None
        raise


def name_item(error: DdibError, items: Sequence[Payload]) -> None:
    """The error with the file's name, if the node named the item, and with what does not fit."""
    number = error.facts.get("item", "")
    if not (is_number(number) and int(number) < len(items)):
        return
    # Only for an error: it imports numpy, a third of what a client loads.
    from ddib_fed.data.points import name_file

    origin = items[int(number)].origin
    found = name_file(error, f"item {number}" if isinstance(origin, bytes) else str(origin))
    error.detail, error.hint = found.detail, found.hint


def waiting_line(error: DdibError, delay_s: float) -> str:
    again = f"trying again in {delay_s:.1f} s" if isinstance(error, ExhaustedError) else "trying again"
    return f"{error.hop or 'the node'}: {error.detail}; {again}"


@contextmanager
def open_client(
    profile: Profile | Path | None,
    *,
    on_wait: OnWait | None = None,
    patience_s: float = PATIENCE_S,
    client: Client | None = None,
) -> Iterator[Client]:
    """A client for one command, or the given one; the first Ctrl-C, or SIGTERM of a batch system, ends its calls."""
    if client is None:
        found = profile if isinstance(profile, Profile) else Profile.load(profile)
        client = Client(found, patience_s=patience_s, on_wait=on_wait or _say_first())
    with client, _interruptible(client):
        yield client


def _say_first() -> OnWait:
    waits = itertools.count()

    def on_wait(error: DdibError, delay_s: float) -> None:
        if next(waits) == 0:
            say(waiting_line(error, delay_s), err=True)

    return on_wait


@contextmanager
def _interruptible(client: Client) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, before[signal.Signals(number)])
        threading.Thread(target=client.abort, daemon=True).start()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with explaining_interruption(client):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def explaining_interruption(
    client: Client, job_id: str | None = None, out: Path | None = None
) -> Iterator[None]:
    """Turn Ctrl-C into an error with the commands for what goes on; `job_id` is empty while a job is submitted."""
    try:
        yield
    except DdibError as error:
        if not client.aborted or (isinstance(error, Cancelled) and error.hint):
            raise
        # The id comes from the node, and these lines are meant to be pasted.
        job, more = shlex.quote(job_id or ""), f" --profile {shlex.quote(str(client.profile.path))}"
        if not client.keeps_jobs or job_id is None:
            said, hint = "interrupted", ""
        elif job_id:
            said = f"interrupted; job {job_id} continues at the source node"
            fetch = f"ddib job fetch {job} --out {shlex.quote(str(out or 'DIR'))}{more}"
            hint = f"ddib job watch {job}{more}\n{fetch}\nto stop it:\nddib job cancel {job}{more}"
        else:
            said, hint = "interrupted: the node may have accepted a job", f"ddib job list{more}"
        raise Cancelled(said, hint=hint, hop=client.hop) from error
