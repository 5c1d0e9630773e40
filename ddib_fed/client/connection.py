"""A client's channel to its source node, with retries while the node is away, or busy.

Only errors that may pass are retried, for a stated time since the last progress: those of a node that is away
(UnavailableError), for which the channel is recreated, so that a renewed certificate is used; and limits that were
reached (ExhaustedError), if the node says when to come back.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

import grpc
from opentelemetry.trace import Span, SpanKind

from ddib_fed.client.profile import Profile
from ddib_fed.client.views import MEDIA, PARTS, JobResult, JobView, ResultFile, event_view, job_view
from ddib_fed.engine.record import Part, Translation
from ddib_fed.errors import (
    Cancelled,
    ChunkCorrupt,
    DdibError,
    ExhaustedError,
    MessageInvalid,
    PeerUnreachable,
    UnavailableError,
)
from ddib_fed.protocol.details import from_rpc_error, status_of
from ddib_fed.protocol.messages import Event, ItemState, provenance_record
from ddib_fed.protocol.streams import Announced, Whole, assemble, open_file
from ddib_fed.security import tls
from ddib_fed.security.diagnosis import explained, may_pass
from ddib_fed.security.pki import load_identity
from ddib_fed.telemetry import OFF, Tracing, trace_entries
from ddib_fed.v1 import translation_pb2, translation_pb2_grpc
from ddib_fed.v1 import translation_pb2 as pb

log = logging.getLogger(__name__)


PATIENCE_S = 120.0
"""How long a node that was reached before may be away: a restart with a large model takes a minute."""

BUSY_PATIENCE_S = 600.0
"""How long a node may refuse because a limit is reached: others' jobs of some minutes are waited for."""

FIRST_CONTACT_S = 5.0
"""How long to try when the node has never answered: a wrong address or certificate does not fix itself."""

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 5.0

LOOK_EVERY_S = 1.0
"""How often a connection looks whether its certificate is due for renewal."""

T = TypeVar("T")
OnWait = Callable[[DdibError, float], None]
Attempt = Callable[[translation_pb2_grpc.TranslationServiceStub], T]


class Patience:
    """Decides after a failure whether to try again, and waits."""

    def __init__(
        self, limit_s: float, busy_s: float, on_wait: OnWait | None, aborted: threading.Event
    ) -> None:
        self._limit_s = limit_s
        self._busy_s = busy_s
        self._on_wait = on_wait
        self._aborted = aborted
        self._heard = 0.0
        self.progress()

    def progress(self) -> None:
        self._since = time.monotonic()
        self._delay_s = FIRST_DELAY_S

    def wait(self, error: DdibError) -> None:
        """Wait before the next try: as long as the node asks, longer by some chance, so that not all come at once."""
        busy, asked = isinstance(error, ExhaustedError), error.retry_after_s or 0.0
        now = time.monotonic()
        waited = now - (self._since if busy else max(self._since, self._heard))
        left = (self._busy_s if busy else self._limit_s) - waited
        # A limit without a time is none that passes; one that passes after our patience is not waited for.
        if not (isinstance(error, UnavailableError) or (busy and 0 < asked <= left)) or left <= 0:
            raise self._given_up(error, waited) if busy and asked else error
        delay = max(asked, 0.0 if busy else self._delay_s) * random.uniform(0.9, 1.4)  # noqa: S311 - jitter
        delay = min(left, delay if busy else max(asked, delay))
        if self._on_wait is not None:
            self._on_wait(error, delay)
        if self._aborted.wait(delay):
            raise Cancelled("ended while waiting for the node")
        if busy:
            # It was there: should it go away now, patience with that begins now, after the wait that it asked for.
            self._heard = time.monotonic()
        self._delay_s = min(self._delay_s * 2, LAST_DELAY_S)

    def _given_up(self, error: DdibError, waited_s: float) -> DdibError:
        """The error with what was done about it."""
        if waited_s >= 1:
            error.detail = f"{error.detail}, and was still after {waited_s:.0f} s of trying again"
            error.args = (error.detail,)
        error.hint = (
            error.hint or "the same command again when there is less to do; `ddib job list` shows your jobs"
        )
        return error


class Connection:
    """One channel to the source node, created when first needed."""

    def __init__(self, profile: Profile, *, patience_s: float, busy_s: float, on_wait: OnWait | None) -> None:
        self.profile = profile
        self.hop = profile.hop
        self._patience_s = patience_s
        self._busy_s = busy_s
        self._on_wait = on_wait
        self._channel: grpc.Channel | None = None
        self._retired: grpc.Channel | None = None
        self._lock = threading.Lock()
        self._aborted = threading.Event()
        self._reached = False
        self._looked = -math.inf
        self._expires = math.inf
        self._diagnosed = -math.inf
        self.clock_s: float | None = None
        """Seconds by which the node's clock is ahead of this one's, by the last call; None where it did not say."""

    @property
    def aborted(self) -> bool:
        return self._aborted.is_set()

    def abort(self) -> None:
        """Abort running calls and make every later call fail; for use from another thread."""
        self._aborted.set()
        with self._lock:
            for channel in (self._channel, self._retired):
                if channel is not None:
                    channel.close()

    def stub(self) -> translation_pb2_grpc.TranslationServiceStub:
        """The service over the current channel, which has a certificate that is not due for renewal if that works."""
        if self._reached and time.monotonic() - self._looked >= LOOK_EVERY_S:
            self.renew()
        return translation_pb2_grpc.TranslationServiceStub(self.channel())

    def renew(self) -> None:
        """Renew the own certificate if it is due; a failure is only logged: the one there is may still do."""
        from ddib_fed.client.profile import renew_client

        self._looked = time.monotonic()
        try:
            if renew_client(self.profile):
                log.info("renewed the certificate in %s", self.profile.pki_folder)
                self._retire()
        except (DdibError, OSError) as error:
            log.warning("the certificate in %s could not be renewed: %s", self.profile.pki_folder, error)

    def _retire(self) -> None:
        with self._lock:
            if self._retired is not None:
                self._retired.close()
            self._retired, self._channel = self._channel, None

    def call_s(self, most_s: float) -> float:
        return max(1.0, min(most_s, self._expires - time.time()))

    def channel(self) -> grpc.Channel:
        """The current channel."""
        with self._lock:
            if self.aborted:
                raise Cancelled("the connection was ended", hop=self.hop)
            if self._channel is None:
                self._expires = load_identity(self.profile.pki_folder).not_after.timestamp()
                self._channel = tls.channel(
                    self.profile.source_address,
                    server_name=self.profile.source_identity,
                    pki_folder=self.profile.pki_folder,
                    hop=self.hop,
                    own=True,
                    proxy=self.profile.way,
                )
            return self._channel

    def close(self) -> None:
        """Close the channel; the next use creates another."""
        with self._lock:
            for channel in (self._channel, self._retired):
                if channel is not None:
                    channel.close()
            self._channel = self._retired = None

    def patience(self, *, while_busy: bool = True) -> Patience:
        limit = self._patience_s if self._reached else min(self._patience_s, FIRST_CONTACT_S)
        return Patience(limit, self._busy_s if while_busy else 0.0, self._on_wait, self._aborted)

    def reached(self) -> None:
        self._reached = True

    @property
    def was_reached(self) -> bool:
        return self._reached

    def failure(self, error: grpc.RpcError) -> DdibError:
        """The error of a failed call, with the hop; an answer with a reason shows that the node is reachable."""
        if self.aborted:
            return Cancelled("the connection was ended", hop=self.hop)
        failure = from_rpc_error(error, self.hop)
        if failure.incident:
            self._reached = True
        return failure

    def invoke(self, attempt: Attempt[T]) -> T:
        """Begin one call."""
        try:
            return attempt(self.stub())
        except ValueError as error:  # what gRPC raises for a closed channel
            if not self.aborted:
                raise
            raise Cancelled("the connection was ended", hop=self.hop) from error

    def call(self, attempt: Attempt[T], *, while_busy: bool = True) -> T:
        """Make an idempotent call, retrying until it succeeds or patience ends."""
        patience = self.patience(while_busy=while_busy)
        while True:
            try:
                answer = self.invoke(attempt)
            except grpc.RpcError as error:
                self.give_way(patience, error)
            else:
                self.reached()
                self.clock_s = getattr(self._channel, "clock_s", None)
                return answer

    def give_way(self, patience: Patience, error: grpc.RpcError) -> None:
        """Wait for the node after a failed call; the channel is dropped, unless the node only said that it is busy."""
        found = self._sooner(self.failure(error))
        try:
            patience.wait(found)
        except DdibError as failure:
            raise self.explained(failure) from error
        finally:
            if not isinstance(found, ExhaustedError):
                self.close()

    def explained(self, failure: DdibError) -> DdibError:
        """A failure with the cause of the failed connection, where that is what it is; see `trust.diagnosis`."""
        self._diagnosed = time.monotonic()
        return explained(
            failure,
            self.profile.source_address,
            server_name=self.profile.source_identity,
            pki_folder=self.profile.pki_folder,
            proxy=self.profile.way,
        )

    def _sooner(self, failure: DdibError) -> DdibError:
        """As `explained`, of a node that never answered, once: a wrong address or certificate stays wrong."""
        if self._reached or self._diagnosed > -math.inf:
            return failure
        found = self.explained(failure)
        if "cause" in found.facts and not may_pass(found.facts["cause"]):
            raise found
        return failure


MAX_PART_BYTES = 1 << 30


class Collector:
    """Gathers the parts of one item after the other."""

    def __init__(
        self, job_id: str, wanted: Collection[int], parts: frozenset[Part], max_bytes: int = MAX_PART_BYTES
    ) -> None:
        self._job_id = job_id
        self._due = set(wanted)
        self._parts = parts
        self._max_bytes = max_bytes
        self._item: int | None = None
        self._files: dict[Part, ResultFile] = {}
        self._provenance: Translation | None = None

    def results(self, messages: Iterable[translation_pb2.FetchResultsResponse]) -> Iterator[JobResult]:
        """Each result as soon as its last part is complete."""
        for whole in assemble(messages, {"result": self._open}):
            self._take(whole)
            if self._parts <= self._files.keys():
                yield self._result()
        if self._item is not None:
            missing = ", ".join(sorted(self._parts - self._files.keys()))
            raise ChunkCorrupt(f"item {self._item} came without its {missing}")

    def _open(self, header: translation_pb2.ResultHeader) -> Announced:
        """Check a header against the request and the parts received."""
        part = PARTS.get(header.part)
        if header.item not in self._due or self._item not in {None, header.item}:
            raise MessageInvalid(f"a part of item {header.item} is not expected here")
        if part is None or part not in self._parts or part in self._files:
            raise MessageInvalid(f"{part or header.part} of item {header.item} is not expected here")
        if self._item is None:
            self._begin(header)
        return open_file(header.file, max_bytes=self._max_bytes, accepted=MEDIA)

    def _begin(self, header: translation_pb2.ResultHeader) -> None:
        if not header.HasField("provenance"):
            raise MessageInvalid(f"item {header.item} came without provenance")
        if header.provenance.job_id != self._job_id:
            raise MessageInvalid(f"item {header.item} says that it is of another job")
        self._item, self._provenance = header.item, provenance_record(header.provenance)

    def _take(self, whole: Whole) -> None:
        header: translation_pb2.ResultHeader = whole.header
        media = MEDIA[header.file.media_type]
        self._files[PARTS[header.part]] = ResultFile(media, bytes(whole.data), header.file.sha256)

    def _result(self) -> JobResult:
        assert self._item is not None
        assert self._provenance is not None
        result = JobResult(self._item, dict(self._files), self._provenance)
        self._due.discard(self._item)
        self._item, self._files, self._provenance = None, {}, None
        return result


CALL_S = 30.0
"""For a call with one answer."""
WATCH_CALL_S = 300.0
FETCH_CALL_S = 3600.0
FETCH_EVERY_S = 0.5
"""Results of a running job are fetched at most this often: a call for each would cost more than what it carries."""


def get_job(connection: Connection, job_id: str) -> JobView:
    request = pb.GetJobRequest(job_id=job_id)
    job = job_view(connection.call(lambda stub: stub.GetJob(request, timeout=CALL_S)).job)
    if job.job_id != job_id:
        raise MessageInvalid("the node answered with another job than the requested one", hop=connection.hop)
    return job


class JobStreams:
    """WatchJob and FetchResults over a connection."""

    def __init__(self, connection: Connection, tracing: Tracing = OFF) -> None:
        self._connection = connection
        self._tracing = tracing

    def watch(self, job_id: str, after: int = 0) -> Iterator[Event]:
        patience = self._connection.patience()
        last = after
        while True:
            try:
                for event in self._events(job_id, last):
                    patience.progress()
                    last = event.sequence
                    yield event
                    if event.state.ended:
                        return
            except grpc.RpcError as error:
                # Only this client's time limit for one call has passed: not a failure; make the next call.
                if status_of(error) is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._connection.give_way(patience, error)
                continue
            if get_job(self._connection, job_id).state.ended:
                return
            self._ended_early(patience, f"the events of job {job_id}")

    def fetch(self, job: JobView, items: Iterable[int]) -> Iterator[JobResult]:
        """Results of these items of a job; see `Client.fetch`."""
        job_id, due = job.job_id, sorted(set(items))
        patience = self._connection.patience()
        while due:
            try:
                for result in self._results(job_id, due, job.expected_parts):
                    patience.progress()
                    due.remove(result.item)
                    yield result
            except grpc.RpcError as error:
                self._connection.give_way(patience, error)
            else:
                if due:
                    raise ChunkCorrupt(f"items {due} of job {job_id} did not come", hop=self._connection.hop)

    def fetch_while_running(
        self, job_id: str, on_event: Callable[[Event], None] | None = None
    ) -> Iterator[JobResult]:
        """Each result while the others are being made; see `Client.results`."""
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
                    job = get_job(self._connection, job_id)
                    # The events of a job that was watched before come again, and so do its delivered items.
                    given.update(i.index for i in job.items if i.state is ItemState.DELIVERED)
                due = [item for item in ready if item not in given]
                given.update(due)
                yield from self.fetch(job, due)
                ready = []
        ended = get_job(self._connection, job_id)
        yield from self.fetch(ended, [item for item in ended.ready if item not in given])

    def _events(self, job_id: str, after: int) -> Iterator[Event]:
        """One try of WatchJob; events already seen are skipped."""
        request = pb.WatchJobRequest(job_id=job_id, after_sequence=after)
        limit = self._connection.call_s
        call = self._connection.invoke(lambda stub: stub.WatchJob(request, timeout=limit(WATCH_CALL_S)))
        try:
            for message in call:
                self._connection.reached()
                if message.sequence > after:
                    after = message.sequence
                    yield event_view(message)
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def _ended_early(self, patience: Patience, what: str) -> None:
        error = PeerUnreachable(f"{what} ended before the job did", hop=self._connection.hop)
        patience.wait(error)
        self._connection.close()

    def _results(self, job_id: str, due: Sequence[int], parts: frozenset[Part]) -> Iterator[JobResult]:
        parent = self._tracing.recall(job_id)
        with self._tracing.span("deliver", kind=SpanKind.CLIENT, parent=parent, items=len(due)) as span:
            yield from self._results_in(job_id, due, parts, span)

    def _results_in(
        self, job_id: str, due: Sequence[int], parts: frozenset[Part], trace: Span
    ) -> Iterator[JobResult]:
        request, beside = pb.FetchResultsRequest(job_id=job_id, items=due), trace_entries(trace)
        limit = self._connection.call_s
        call = self._connection.invoke(
            lambda stub: stub.FetchResults(request, timeout=limit(FETCH_CALL_S), **beside)
        )
        try:
            yield from Collector(job_id, due, parts).results(call)
        except DdibError as error:
            error.hop = error.hop or self._connection.hop
            raise
        finally:
            call.cancel()  # type: ignore[no-untyped-call]
