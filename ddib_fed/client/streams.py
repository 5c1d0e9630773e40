"""A job as the node has it, and its two streams, events and results, which continue where they stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import grpc
from opentelemetry.trace import Span, SpanKind

from ddib_fed.bridge.records.translation_record import Part
from ddib_fed.client.connection import Connection, Patience
from ddib_fed.client.results import Collector
from ddib_fed.client.views import JobView, Result, event_view, job_view
from ddib_fed.errors import ChunkCorrupt, DdibError, MessageInvalid, PeerUnreachable
from ddib_fed.rpc.details import status_of
from ddib_fed.telemetry import OFF, Tracing, trace_entries
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.wire.jobs import Event, ItemState

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

    def fetch(self, job: JobView, items: Iterable[int]) -> Iterator[Result]:
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
    ) -> Iterator[Result]:
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

    def _results(self, job_id: str, due: Sequence[int], parts: frozenset[Part]) -> Iterator[Result]:
        parent = self._tracing.recall(job_id)
        with self._tracing.span("deliver", kind=SpanKind.CLIENT, parent=parent, items=len(due)) as span:
            yield from self._results_in(job_id, due, parts, span)

    def _results_in(
        self, job_id: str, due: Sequence[int], parts: frozenset[Part], trace: Span
    ) -> Iterator[Result]:
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
