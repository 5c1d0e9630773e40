"""The typed client: submits files to the institution's own source node, watches jobs, fetches verified results.

    with Client.from_profile() as client:
        for result in client.translate([Path("points.npy")], "south.example/checkerboards", cycle=True):
            print(result.provenance.cycle)

Importable without torch. Every method raises `ddib_fed.errors.DdibError` with the hop at which it failed, and
nothing of gRPC.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc
from opentelemetry.trace import Span, SpanKind

from ddib_fed.client.connection import BUSY_PATIENCE_S, PATIENCE_S, Connection, OnWait, collect
from ddib_fed.client.payload import Payload, name_item, payloads, send_job, split_target
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import (
    JOB_STATES,
    Domains,
    JobResult,
    JobView,
    Submitted,
    domains_view,
    event_view,
    job_view,
    require_finished,
)
from ddib_fed.engine.record import UNGUIDED, Guidance
from ddib_fed.errors import ChunkCorrupt, DdibError, JobNotFound, MessageInvalid, PeerUnreachable
from ddib_fed.protocol.contract import PROTOCOL, guidance_to_pb
from ddib_fed.protocol.details import status_of
from ddib_fed.protocol.messages import Event, ItemState, JobState, Settings, settings_to_pb
from ddib_fed.telemetry import Tracing, open_tracing, trace_entries
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.v1.translation_pb2_grpc import TranslationServiceStub


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What is asked of a job, apart from its files.

    Attributes:
        target: `INSTITUTION/DOMAIN`.
        settings: Solver of the ODE.
        cycle: Translate back too, and report the error of each item.
        keep_latent: Keep the latents for fetching.
        deadline_s: Seconds until the job fails; by default the node's.
        source_class: Name or index of the class that the items are of, where the node's model has classes.
        target_class: Name or index of the class that they become, where the target has classes.
        guidance: How the target guides decoding towards the class.
        classes: (source class, target class) of each item, instead of one of each for all.
        model_size: Whether pictures come back at the models' size, each with the picture as the source's model saw
            it (`Part.SOURCE`).
        no_calibration: Leave out the calibration that is active for the target.
    """

    target: str
    settings: Settings = field(default_factory=Settings)
    cycle: bool = False
    keep_latent: bool = False
    deadline_s: float | None = None
    source_class: str = ""
    target_class: str = ""
    guidance: Guidance = UNGUIDED
    classes: Sequence[tuple[str, str]] = ()
    model_size: bool = False
    no_calibration: bool = False

    def header(self, items: int, request_id: str) -> pb.JobHeader:
        institution, domain = split_target(self.target)
        return pb.JobHeader(
            protocol=PROTOCOL,
            request_id=request_id,
            target_institution=institution,
            target_domain=domain,
            solver=settings_to_pb(self.settings),
            cycle=self.cycle,
            keep_latent=self.keep_latent,
            items=items,
            deadline_s=int(self.deadline_s or 0),
            source_class=self.source_class,
            target_class=self.target_class,
            guidance=guidance_to_pb(self.guidance),
            item_classes=[
                pb.ItemClasses(source_class=own, target_class=other) for own, other in self.classes
            ],
            model_size=self.model_size,
            no_calibration=self.no_calibration,
        )

    def digest(self, institution: str, classes: Sequence[tuple[str, str]] = ()) -> str:
        """SHA-256, hex, of all that decides what a file of these classes becomes; the deadline does not."""
        asked = asdict(replace(self, classes=classes, deadline_s=None)) | {"institution": institution}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


ItemSource = str | Path | bytes | Payload
CALL_S = 30.0
"""For a call with one answer."""
WATCH_CALL_S = 300.0
FETCH_CALL_S = 3600.0
FETCH_EVERY_S = 0.5
"""Results of a running job are fetched at most this often: a call for each would cost more than what it carries."""


def _watch(request: pb.WatchJobRequest, limit_s: float, stub: TranslationServiceStub) -> Any:
    return stub.WatchJob(request, timeout=limit_s)


def _fetch_results(
    request: pb.FetchResultsRequest, limit_s: float, trace: Span, stub: TranslationServiceStub
) -> Any:
    return stub.FetchResults(request, timeout=limit_s, **trace_entries(trace))


@contextmanager
def _ended(call: Any) -> Iterator[Any]:
    try:
        yield call
    finally:
        call.cancel()


class Client:
    """A connection to the source node of the client's own institution; a context manager, for one thread.

    Every method raises `DdibError` where the node refuses or cannot be reached.

    Args:
        profile: Who the client is and where its node is.
        patience_s: How long a node that was reached before may be away before a call gives up; submitting, watching
            and fetching continue where they stopped once it is back.
        busy_s: How long the node may refuse because a limit is reached (`TOO_MANY_STREAMS`, `QUEUE_FULL`); each try is
            made when the node says. None for 10 minutes, or 0 without patience.
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
        busy_s: float | None = None,
        on_wait: OnWait | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        if busy_s is None:
            busy_s = BUSY_PATIENCE_S if patience_s > 0 else 0.0
        self._connection = Connection(profile, patience_s=patience_s, busy_s=busy_s, on_wait=on_wait)
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
            if kind is None and self._connection.reached:
                self._connection.renew()
        finally:
            self.close()

    def close(self) -> None:
        self._connection.close()
        self._tracing.close()

    @property
    def hop(self) -> str:
        """What the node is called in errors."""
        return self._connection.hop

    @property
    def clock_s(self) -> float | None:
        """Seconds by which the node's clock is ahead of this machine's, by the last call; None where it did not say."""
        return self._connection.clock_s

    def abort(self) -> None:
        """Abort running calls, which then raise Cancelled, as does every later call; callable from any thread."""
        self._connection.abort()

    @property
    def aborted(self) -> bool:
        return self._connection.aborted

    @property
    def profile(self) -> Profile:
        return self._connection.profile

    def domains(self, *, own_alone: bool = False) -> Domains:
        """The node's own domain and those it can translate to; or its own alone, for which it asks no peer."""
        request = pb.ListDomainsRequest(own_alone=own_alone)
        return domains_view(self._connection.call(lambda stub: stub.ListDomains(request, timeout=CALL_S)))

    def submit(
        self,
        files: Iterable[ItemSource],
        target: str,
        settings: Settings | None = None,
        *,
        request_id: str | None = None,
        while_busy: bool = True,
        **options: Any,
    ) -> Submitted:
        """As `send`, of files (paths, bytes or payloads) and the fields of a `JobRequest`."""
        request = JobRequest(target, settings or Settings(), **options)
        return self.send(payloads(files), request, request_id=request_id, while_busy=while_busy)

    def send(
        self,
        items: Sequence[Payload],
        request: JobRequest,
        *,
        request_id: str | None = None,
        while_busy: bool = True,
    ) -> Submitted:
        """Submit a job; returns once it is on the node's disk.

        Args:
            items: The files of the job.
            request: What is asked.
            request_id: A UUID; the same id with the same content is the same job. Made when missing, and kept
                over the tries of this call, so that a job is never submitted twice.
            while_busy: Whether a node that refuses because a limit is reached is waited for, as long as `busy_s` says.

        Raises:
            ContractMismatch: The node speaks another version of the protocol.
            PictureMisfit, KindMismatch: An item is not in the units, or not of the kind, of the node's model.
            InputError: An item or the target cannot be used; an item is named.
        """
        header = request.header(len(items), request_id or str(uuid.uuid4()))
        try:
            with self._tracing.span(
                "submit", kind=SpanKind.CLIENT, peer=header.target_institution, items=len(items)
            ) as span:
                answer = self._connection.call(
                    lambda stub: send_job(stub, header, items, span), while_busy=while_busy
                )
            self._tracing.remember(answer.job_id, span)
        except DdibError as error:
            name_item(error, items)
            raise
        return Submitted(
            answer.job_id, header.request_id, JOB_STATES[answer.state], repeated=answer.repeated_request
        )

    def watch(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """Events of a job after a sequence number, until it has ended; survives a restart of the node."""
        connection, last = self._connection, after
        patience = connection.patience()
        while True:
            request = pb.WatchJobRequest(job_id=job_id, after_sequence=last)
            try:
                limit_s = connection.call_s(WATCH_CALL_S)
                with _ended(connection.invoke(partial(_watch, request, limit_s))) as call:
                    for message in call:
                        connection.reached = True
                        if message.sequence <= last:
                            continue
                        patience.progress()
                        last = message.sequence
                        event = event_view(message)
                        yield event
                        if event.state.ended:
                            return
            except grpc.RpcError as error:
                # Only this client's time limit for one call has passed: not a failure; make the next call.
                if status_of(error) is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    connection.give_way(patience, error)
                continue
            if self.get(job_id).state.ended:
                return
            patience.wait(
                PeerUnreachable(f"the events of job {job_id} ended before the job did", hop=self.hop)
            )
            connection.close()

    def get(self, job_id: str) -> JobView:
        """A job with its items.

        Raises:
            JobNotFound: This client has no such job.
            MessageInvalid: The node answers with what the protocol does not allow.
        """
        request = pb.GetJobRequest(job_id=job_id)
        job = job_view(self._connection.call(lambda stub: stub.GetJob(request, timeout=CALL_S)).job)
        if job.job_id != job_id:
            raise MessageInvalid("the node answered with another job than the requested one", hop=self.hop)
        return job

    def list(self, limit: int = 100) -> tuple[JobView, ...]:
        """This client's jobs, newest first, without their items."""
        request = pb.ListJobsRequest(limit=limit)
        answer = self._connection.call(lambda stub: stub.ListJobs(request, timeout=CALL_S))
        return tuple(job_view(job) for job in answer.jobs)

    def fetch(self, job_id: str, items: Sequence[int] | None = None) -> Iterator[JobResult]:
        """Results, each complete and of the announced digests; continues with the rest after a restart of the node.

        Without `items` those that are decoded and not acknowledged.

        Raises:
            ChunkCorrupt: The bytes differ from what was announced, or a result lacks a part.
            MessageInvalid: The node sends something that was not requested.
        """
        job = self.get(job_id)
        yield from self._fetch(job, job.ready if items is None else items)

    def _fetch(self, job: JobView, items: Iterable[int]) -> Iterator[JobResult]:
        connection, due = self._connection, sorted(set(items))
        patience, parent = connection.patience(), self._tracing.recall(job.job_id)
        while due:
            request = pb.FetchResultsRequest(job_id=job.job_id, items=due)
            try:
                span = self._tracing.span("deliver", kind=SpanKind.CLIENT, parent=parent, items=len(due))
                with span as trace:
                    limit_s = connection.call_s(FETCH_CALL_S)
                    attempt = partial(_fetch_results, request, limit_s, trace)
                    with _ended(connection.invoke(attempt)) as call:
                        for result in collect(call, job.job_id, due, job.expected_parts):
                            patience.progress()
                            due.remove(result.item)
                            yield result
            except grpc.RpcError as error:
                connection.give_way(patience, error)
            except DdibError as error:
                error.hop = error.hop or self.hop
                raise
            else:
                if due:
                    raise ChunkCorrupt(f"items {due} of job {job.job_id} did not come", hop=self.hop)

    def results(self, job_id: str, *, on_event: Callable[[Event], None] | None = None) -> Iterator[JobResult]:
        """Watch a job to its end, and fetch each result while the others are being made; see `fetch` and `watch`.

        Results that were acknowledged before do not come again. How the job ended is to be asked for (`get`).
        """
        job: JobView | None = None
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
        yield from self._fetch(ended, [item for item in ended.ready if item not in given])

    def acknowledge(self, job_id: str, results: Iterable[tuple[int, bytes]]) -> int:
        """Acknowledge stored results, so that the node removes them; returns how many items are still to be delivered.

        Args:
            job_id: The job.
            results: Item number and SHA-256 of the translation that was written."""
        items = [pb.Acknowledgement(item=item, sha256=sha256) for item, sha256 in results]
        request = pb.AcknowledgeItemsRequest(job_id=job_id, items=items)
        answer = self._connection.call(lambda stub: stub.AcknowledgeItems(request, timeout=CALL_S))
        return int(answer.remaining)

    def cancel(self, job_id: str) -> JobState:
        """Stop a job at the solver's next step; its state afterwards."""
        request = pb.CancelJobRequest(job_id=job_id)
        return JOB_STATES[self._connection.call(lambda stub: stub.CancelJob(request, timeout=CALL_S)).state]

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
            self._connection.call(attempt)
        except JobNotFound:
            # The answer to an earlier try was lost: the job is already removed.
            if tries == 1:
                raise

    def translate(
        self,
        files: Iterable[ItemSource],
        target: str,
        settings: Settings | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        acknowledge: bool = True,
        **options: Any,
    ) -> tuple[JobResult, ...]:
        """Submit, watch, fetch and acknowledge; the results, in the order of the files.

        `options` are the other fields of `JobRequest`. With `acknowledge=False` the node keeps the results until they
        expire, for callers that write them.

        Raises:
            JobFailed: The job or one of its items failed; finished items can still be fetched.
            Cancelled: The job was cancelled.
            DdibError: An input cannot be used, or the node refuses or cannot be reached.
        """
        job = self.submit(files, target, settings, **options)
        fetched = list(self.results(job.job_id, on_event=on_event))
        self.require_finished(job.job_id)
        results = tuple(sorted(fetched, key=lambda result: result.item))
        if acknowledge:
            self.acknowledge(job.job_id, [(r.item, r.translation.sha256) for r in results])
        return results

    def require_finished(self, job_id: str) -> JobView:
        """The job, once all its items are translated.

        Raises:
            JobFailed: It, or an item, failed.
            Cancelled: It was cancelled.
        """
        return require_finished(self.get(job_id), self.hop)
