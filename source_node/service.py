"""Serves the TranslationService to this institution's clients; each sees only its own jobs."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc import ServicerContext
from opentelemetry.trace import Span, SpanKind

from ddib_fed.errors import Cancelled, DdibError, ItemNotFound, MessageInvalid, TooManyStreams
from ddib_fed.files import check_private_folder
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.connections import Repeated
from ddib_fed.node.role import NodeContext, RoleService
from ddib_fed.node.server import caller
from ddib_fed.protocol.contract import LAST_MOMENT
from ddib_fed.protocol.messages import JobState, provenance_message
from ddib_fed.protocol.streams import stream_file
from ddib_fed.security import tls
from ddib_fed.telemetry import named, trace_of
from ddib_fed.v1 import common_pb2, translation_pb2_grpc
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.v1.decoding_pb2 import ContractSide
from source_node.remote import Remotes
from source_node.runner import DIAGNOSE_TIMEOUT_S, EventHub, JobRunner
from source_node.store import PENDING_ITEMS, RESULTS, ItemCounts, JobStore, StoredJob
from source_node.submission import DESCRIBE_TIMEOUT_S, Submissions, active_terms, trace_key


def job_message(job: StoredJob, progress: ItemCounts | None = None, *, expires: float = 0.0) -> pb.Job:
    """Return a job's message, with its items or, with `progress`, only their counts; `expires` is Unix time."""
    message = pb.Job(
        job_id=job.job_id,
        request=job.request,
        state=f"JOB_STATE_{job.state.name}",
        created=job.created,
        finished=job.finished,
        expires=min(expires, LAST_MOMENT),  # `result_days` has no upper limit
        error=job.error,
    )
    if progress is None:
        message.item_count = len(job.items)
        message.items_done = sum(item.state not in PENDING_ITEMS for item in job.items)
        for item in job.items:
            message.items.add(
                index=item.index,
                state=f"ITEM_STATE_{item.state}",
                size_bytes=item.size_bytes,
                sha256=item.sha256,
                error=item.error,
            )
    else:
        message.item_count, message.items_done = progress.items, progress.done
        message.request.ClearField("item_classes")
    return message


def _domain_fields(side: ContractSide) -> dict[str, Any]:
    names = ("institution", "domain", "sample_kind", "sample_shape", "classes", "class_names")
    return {name: getattr(side, name) for name in names}


MAX_LISTINGS = 2
"""Limit concurrent ListDomains: each holds a thread of unary calls for as long as peers are silent."""
EXPIRE_EVERY_S = 60.0
"""A kill loses at most so much of the time of deadlines."""


@dataclass(slots=True, eq=False)
class TranslationServicer(translation_pb2_grpc.TranslationServiceServicer):
    """See translation.proto; every method answers for the client that called it."""

    node: NodeContext
    store: JobStore
    events: EventHub
    remotes: Remotes
    runner: JobRunner
    listings: threading.BoundedSemaphore = field(init=False)
    submissions: Submissions = field(init=False)

    def __post_init__(self) -> None:
        self.listings = threading.BoundedSemaphore(MAX_LISTINGS)
        self.submissions = Submissions(self.node, self.store, self.remotes, is_away=self.runner.is_away)

    def ListDomains(self, request: pb.ListDomainsRequest, context: ServicerContext) -> pb.ListDomainsResponse:
        side, picture = self.node.side(), self.node.running_engine.model.bundle.manifest.picture
        answer = pb.ListDomainsResponse(
            intensity=(picture and picture.intensity) or "",
            slices=(picture and picture.slices) or "",
            spacing_mm=side.spacing_mm,
            tiles=self.node.translates_in_tiles,
            **_domain_fields(side),
        )
        if request.own_alone:
            return answer
        institutions = sorted(peer.institution for peer in self.node.peers.list())
        if not self.listings.acquire(blocking=False):
            raise TooManyStreams(
                f"{MAX_LISTINGS} calls ask the peers already",
                facts={"limit": MAX_LISTINGS},
                retry_after_s=1.0,
            )
        try:
            with ThreadPoolExecutor(8, thread_name_prefix="describe") as pool:
                answer.domains.extend(pool.map(self._domain, institutions))
        finally:
            self.listings.release()
        return answer

    def SubmitJob(
        self, request_iterator: Iterator[pb.SubmitJobRequest], context: ServicerContext
    ) -> pb.SubmitJobResponse:
        _ = self.node.engine  # refuses while loading or draining
        with self._span("submit", context) as span:
            job, repeated = self.submissions.receive(
                request_iterator, span, ended=lambda: not context.is_active()
            )
            target = job.request.target_institution
            span.set_attributes(named(job=job.job_id, items=len(job.items), peer=target, repeated=repeated))
        if not repeated:
            self.runner.publish(job.job_id, self.store.head(job.job_id).state)  # a worker may have claimed it
            self.runner.accepted(job)
        return pb.SubmitJobResponse(
            job_id=job.job_id, state=f"JOB_STATE_{job.state.name}", repeated_request=repeated
        )

    def WatchJob(
        self, request: pb.WatchJobRequest, context: ServicerContext
    ) -> Iterator[pb.WatchJobResponse]:
        job = self.store.head(request.job_id, caller().uri)
        if self.events.last(job.job_id) is None:  # not since the node was started
            self.runner.publish(job.job_id, job.state)
        yield from self.events.subscribe(
            job.job_id,
            request.after_sequence,
            idle_s=self.node.config.limits.idle_s,
            stop=lambda: not context.is_active(),
        )

    def GetJob(self, request: pb.GetJobRequest, context: ServicerContext) -> pb.GetJobResponse:
        job = self.store.get(request.job_id, caller().uri)
        expires = self.store.unix_time(job.expires)
        answer = pb.GetJobResponse(job=job_message(job, expires=expires))
        signed = self.node.calibrations.find(job.request.calibration_sha256)
        if signed is not None:
            answer.job.calibration = signed.calibration.canonical
        return answer

    def ListJobs(self, request: pb.ListJobsRequest, context: ServicerContext) -> pb.ListJobsResponse:
        jobs = self.store.list(caller().uri, min(request.limit or 100, 1000))
        progress = self.store.progress_of([job.job_id for job in jobs])
        return pb.ListJobsResponse(
            jobs=[
                job_message(
                    job, progress.get(job.job_id, ItemCounts()), expires=self.store.unix_time(job.expires)
                )
                for job in jobs
            ]
        )

    def CancelJob(self, request: pb.CancelJobRequest, context: ServicerContext) -> pb.CancelJobResponse:
        before = self.store.head(request.job_id, caller().uri)
        state = self.store.cancel(request.job_id, caller().uri)
        self.runner.cancel(request.job_id)
        if state == JobState.CANCELLED and not before.state.ended:
            self.runner.announce(before, state, Cancelled.reason)
        return pb.CancelJobResponse(state=f"JOB_STATE_{state.name}")

    def FetchResults(
        self, request: pb.FetchResultsRequest, context: ServicerContext
    ) -> Iterator[pb.FetchResultsResponse]:
        job = self.store.head(request.job_id, caller().uri)
        ready = self.store.ready(job.job_id)
        _require_once(request.items)
        wanted = list(request.items) or ready
        for index in sorted(set(wanted).difference(ready)):
            raise ItemNotFound(f"item {index} of job {job.job_id}", facts={"item": index, "job": job.job_id})
        if wanted:
            self.store.sending(job.job_id, job.owner, wanted)
        with self._span("deliver", context, trace_key(job.owner, job.request)) as span:
            span.set_attributes(named(job=job.job_id, items=len(wanted)))
            for index in wanted:
                yield from self._result(job, index)

    def AcknowledgeItems(
        self, request: pb.AcknowledgeItemsRequest, context: ServicerContext
    ) -> pb.AcknowledgeItemsResponse:
        pairs = [(item.item, item.sha256) for item in request.items]
        _require_once([index for index, _ in pairs])
        remaining = self.store.acknowledge(request.job_id, caller().uri, pairs)
        return pb.AcknowledgeItemsResponse(remaining=remaining)

    def DeleteJob(self, request: pb.DeleteJobRequest, context: ServicerContext) -> pb.DeleteJobResponse:
        self.store.delete(request.job_id, caller().uri)
        return pb.DeleteJobResponse()

    def _span(self, name: str, context: ServicerContext, otherwise: str = "") -> AbstractContextManager[Span]:
        tracing = self.node.tracing
        parent = trace_of(context.invocation_metadata(), tracing, self.node.config.node.institution)
        return tracing.span(name, kind=SpanKind.SERVER, parent=parent or tracing.recall(otherwise))

    def _domain(self, institution: str) -> pb.Domain:
        started = time.perf_counter()
        try:
            side, guidance = self.remotes.get(institution).describe(DESCRIBE_TIMEOUT_S)
        except DdibError as error:
            error = self.remotes.channels.explained(institution, error, DIAGNOSE_TIMEOUT_S)
            self.node.peer_problems.failed(institution, error)
            cause = error.facts.get("cause", "")
            status = f"{error.reason} ({cause})" if cause else error.reason
            answer = pb.Domain(institution=institution, status=status)
        else:
            self.node.peer_problems.answered(institution)
            answer = pb.Domain(
                status="ready",
                size_rule=side.size_rule,
                calibration=active_terms(self.node, (side.institution, side.domain)),
                guidance=guidance,
                **_domain_fields(side),
            )
        answer.latency_ms = round(1000 * (time.perf_counter() - started))
        return answer

    def _result(self, job: StoredJob, index: int) -> Iterator[pb.FetchResultsResponse]:
        item, kept = self.store.item_with_parts(job.job_id, index)
        provenance: pb.Provenance | None = provenance_message(item.provenance)
        for part in [part for part in RESULTS if (part, 0) in kept]:
            record = kept[part, 0]
            header = pb.ResultHeader(
                item=index,
                part=f"RESULT_PART_{part.name}",
                file=common_pb2.FileHeader(
                    media_type=common_pb2.MediaType.Name(record.media_type),
                    size_bytes=record.size_bytes,
                    sha256=record.sha256,
                ),
                provenance=provenance,
            )
            provenance = None
            with self.store.open_file(job.job_id, index, record) as file:
                yield from stream_file(pb.FetchResultsResponse, "result", header, file, record.size_bytes)


def _require_once(items: Sequence[int]) -> None:
    if len(set(items)) < len(items):
        raise MessageInvalid("an item is named twice", facts={"field": "items"})


class SourceService(RoleService):
    service_names = ("ddib_fed.v1.TranslationService",)

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        paths = node.config.paths
        self._store = JobStore(node.audit, paths.spool, node.config.limits)
        node.metrics.spool_bytes.set_function(lambda: float(self._store.spool.used_bytes))
        self._events = EventHub(self._store.boot)
        self._remotes = Remotes(
            tls.PeerChannels(paths.pki, node.peers, proxy=node.config.proxy),
            max_file_bytes=node.config.limits.max_item_bytes,
        )
        self._runner = JobRunner(node, self._store, self._events, self._remotes)
        self._servicer = TranslationServicer(node, self._store, self._events, self._remotes, self._runner)

        self._janitor = Repeated("janitor", self._store.expire, lambda: EXPIRE_EVERY_S)

    @classmethod
    def check(cls, config: NodeConfig) -> str:
        check_private_folder(config.paths.spool)
        return "keeps jobs"

    def register(self, server: grpc.Server) -> None:
        translation_pb2_grpc.add_TranslationServiceServicer_to_server(self._servicer, server)

    def start(self) -> None:
        self._runner.start()
        self._janitor.start()

    def jobs(self) -> Mapping[str, int]:
        return {state.lower(): count for state, count in self._store.counts().items()}

    def drain(self, timeout_s: float) -> None:
        self._runner.drain(timeout_s)

    def peers_changed(self) -> None:
        self._remotes.channels.refresh()

    def close(self) -> None:
        self._events.close()
        self._runner.close()
        self._remotes.channels.close()

    def release(self) -> None:
        self._janitor.stop()
        self._store.close()


ROLE = SourceService
