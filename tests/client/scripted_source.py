"""A source node's service over real mutual TLS that keeps jobs in memory, translates by doubling, and can misbehave."""

import hashlib
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from ddib_fed.client.profile import Profile
from ddib_fed.data.pictures import decode_image, decode_volume, encode_png, encode_volume, holds_volume
from ddib_fed.errors import DdibError, ItemsTooMany, JobNotFound
from ddib_fed.node.operator import Node
from ddib_fed.node.policy import Policy
from ddib_fed.node.server import CallInterceptor
from ddib_fed.protocol.streams import assemble, file_header, open_file, stream
from ddib_fed.security.peers import PeerStore
from ddib_fed.security.pki import load_identity
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.v1 import translation_pb2_grpc as rpc

NORTH, SOUTH = "north.example", "south.example"
PNG = b"\x89PNG"
TARGET = f"{SOUTH}/checkerboards"


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def points(count: int = 4, start: float = 0.0) -> np.ndarray:
    return (start + np.arange(count * 2, dtype=np.float32)).reshape(count, 2)


@dataclass
class Script:
    """What goes wrong, and what was seen."""

    # Before anything is done: as if the node were away.
    away: Counter[str] = field(default_factory=Counter)
    # After it was done: the answer is lost on the way.
    lose_answer: Counter[str] = field(default_factory=Counter)
    refuse: dict[str, DdibError] = field(default_factory=dict)
    # Streams break after this many messages, once for each number.
    break_watch_after: list[int] = field(default_factory=list)
    break_fetch_after: list[int] = field(default_factory=list)
    # Changes what FetchResults sends.
    tamper: Callable[[list[pb.FetchResultsResponse]], list[pb.FetchResultsResponse]] = list
    # Changes what GetJob answers.
    forge: Callable[[pb.GetJobResponse], object] = lambda answer: None
    on_call: Callable[[str], None] = lambda method: None
    # What ListDomains answers instead.
    listed: pb.ListDomainsResponse | None = None
    fail_items: set[int] = field(default_factory=set)
    # Whether PNGs are taken too; the translation of one is its negative.
    pictures: bool = False
    # Items of a job at most; 0 for any number.
    most_items: int = 0
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def seen(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]


@dataclass
class StoredJob:
    """A job of the double."""

    header: pb.JobHeader
    inputs: list[bytes]
    delivered: set[int] = field(default_factory=set)
    state: int = pb.JOB_STATE_FINISHED


class ScriptedSource(rpc.TranslationServiceServicer):
    """The service."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.jobs: dict[str, StoredJob] = {}

    def _begin(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.script.calls.append((method, request))
        self.script.on_call(method)
        if self.script.away[method] > 0:
            self.script.away[method] -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "")
        if method in self.script.refuse:
            self._refuse(self.script.refuse[method])

    def _end(self, method: str, context: grpc.ServicerContext) -> None:
        if self.script.lose_answer[method] > 0:
            self.script.lose_answer[method] -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "")

    def _refuse(self, error: DdibError) -> None:
        error.incident = "incident1"
        raise error

    def _job(self, job_id: str, context: grpc.ServicerContext) -> StoredJob:
        if job_id not in self.jobs:
            self._refuse(JobNotFound())
        return self.jobs[job_id]

    def ListDomains(self, request: Any, context: grpc.ServicerContext) -> pb.ListDomainsResponse:
        self._begin("ListDomains", request, context)
        if self.script.listed is not None:
            return self.script.listed
        there = pb.Domain(institution=SOUTH, domain="checkerboards", sample_kind="point",
                          sample_shape=[2], status="ready", latency_ms=3)  # fmt: skip
        away = pb.Domain(institution="west.example", status="PEER_UNREACHABLE")
        return pb.ListDomainsResponse(
            institution=NORTH, domain="moons", sample_kind="point", sample_shape=[2],
            domains=[there, away],
        )  # fmt: skip

    def SubmitJob(self, request_iterator: Any, context: grpc.ServicerContext) -> pb.SubmitJobResponse:
        header = next(request_iterator).header
        self._begin("SubmitJob", header, context)
        if self.script.most_items and header.items > self.script.most_items:
            self._refuse(ItemsTooMany(facts={"items": header.items, "limit_items": self.script.most_items}))
        accepted = [common_pb2.MEDIA_TYPE_NPY, *([common_pb2.MEDIA_TYPE_PNG] if self.script.pictures else [])]

        def opener(file: common_pb2.FileHeader) -> Any:
            return open_file(file, max_bytes=1 << 24, accepted=accepted)

        inputs = [bytes(whole.data) for whole in assemble(request_iterator, {"item": opener})]
        if len(inputs) != header.items:  # the caller went away in the middle, as the real node notices too
            context.abort(grpc.StatusCode.CANCELLED, "")
        job_id = f"job-{header.request_id[:8]}"
        repeated = job_id in self.jobs
        self.jobs.setdefault(job_id, StoredJob(header, inputs))
        self._end("SubmitJob", context)
        return pb.SubmitJobResponse(job_id=job_id, state=pb.JOB_STATE_QUEUED, repeated_request=repeated)

    def WatchJob(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.WatchJobResponse]:
        self._begin("WatchJob", request, context)
        job = self._job(request.job_id, context)
        limit = self.script.break_watch_after.pop(0) if self.script.break_watch_after else None
        sent = 0
        for event in self._events(job):
            if event.sequence <= request.after_sequence:
                continue
            if sent == limit:
                context.abort(grpc.StatusCode.UNAVAILABLE, "")
            yield event
            sent += 1

    def _events(self, job: StoredJob) -> list[pb.WatchJobResponse]:
        count = len(job.inputs)
        stages = [(item, stage) for item in range(count) for stage in ("encode", "decode", "done")]
        events = [
            pb.WatchJobResponse(sequence=n + 1, state=pb.JOB_STATE_RUNNING, item=item, stage=stage, step=1,
                                steps=1, items_done=item + (stage == "done"), items=count)
            for n, (item, stage) in enumerate(stages)
        ]  # fmt: skip
        last = pb.WatchJobResponse(sequence=len(events) + 1, state=job.state, items_done=count, items=count)
        return [*events, last]

    def GetJob(self, request: Any, context: grpc.ServicerContext) -> pb.GetJobResponse:
        self._begin("GetJob", request, context)
        answer = pb.GetJobResponse(job=self._view(request.job_id, self._job(request.job_id, context)))
        self.script.forge(answer)
        return answer

    def ListJobs(self, request: Any, context: grpc.ServicerContext) -> pb.ListJobsResponse:
        self._begin("ListJobs", request, context)
        return pb.ListJobsResponse(jobs=[self._view(name, job) for name, job in self.jobs.items()])

    def _view(self, job_id: str, job: StoredJob) -> pb.Job:
        header = job.header
        count = len(job.inputs)
        view = pb.Job(
            job_id=job_id, request=header, state=job.state, created=1e9, item_count=count, items_done=count
        )
        for index, data in enumerate(job.inputs):
            item = view.items.add(index=index, size_bytes=len(data), sha256=hashlib.sha256(data).digest())
            item.state = pb.ITEM_STATE_DELIVERED if index in job.delivered else pb.ITEM_STATE_DECODED
            if index in self.script.fail_items:
                item.state = pb.ITEM_STATE_FAILED
                item.error.CopyFrom(
                    common_pb2.ErrorDetail(
                        reason="LATENT_NOT_GAUSSIAN", sentence="not noise", institution=SOUTH
                    )
                )
        return view

    def CancelJob(self, request: Any, context: grpc.ServicerContext) -> pb.CancelJobResponse:
        self._begin("CancelJob", request, context)
        self._job(request.job_id, context).state = pb.JOB_STATE_CANCELLED
        return pb.CancelJobResponse(state=pb.JOB_STATE_CANCELLED)

    def FetchResults(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.FetchResultsResponse]:
        self._begin("FetchResults", request, context)
        job = self._job(request.job_id, context)
        messages = [m for item in request.items for m in self._result(request.job_id, job, item)]
        limit = self.script.break_fetch_after.pop(0) if self.script.break_fetch_after else None
        for count, message in enumerate(self.script.tamper(messages)):
            if count == limit:
                context.abort(grpc.StatusCode.UNAVAILABLE, "")
            yield message

    def _result(self, job_id: str, job: StoredJob, item: int) -> Iterator[pb.FetchResultsResponse]:
        data, made = job.inputs[item], self._provenance(job_id, job, item)
        if data.startswith(PNG) or holds_volume(data):
            pixels = decode_image(data).pixels if data.startswith(PNG) else decode_volume(data)
            media, encode = common_pb2.MEDIA_TYPE_PNG, encode_png
            *depth, height, width, _ = pixels.shape
            if depth:
                media, encode = common_pb2.MEDIA_TYPE_NPY, encode_volume
            parts = {
                pb.RESULT_PART_TRANSLATION: encode(255 - pixels),
                pb.RESULT_PART_RETURNED: encode(pixels),
            }
            made.samples = 1
            made.ClearField("cycle")
            made.picture.CopyFrom(pb.PictureFigures(depth=depth[0] if depth else None, height=height, width=width,
                                                    slope=1.0, edge_correlation=0.9, low=0, high=255,
                                                    bits=8))  # fmt: skip
        else:
            original, media = np.load(io.BytesIO(data)), common_pb2.MEDIA_TYPE_NPY
            arrays = {
                pb.RESULT_PART_TRANSLATION: original * 2,
                pb.RESULT_PART_RETURNED: original + 1e-3,
                pb.RESULT_PART_LATENT: original - original.mean(),
            }
            parts = {part: npy(array.astype(np.float32)) for part, array in arrays.items()}
        if not job.header.cycle:
            del parts[pb.RESULT_PART_RETURNED]
        if not job.header.keep_latent:
            parts.pop(pb.RESULT_PART_LATENT, None)
        for part, content in parts.items():
            header = pb.ResultHeader(item=item, part=pb.ResultPart.Name(part))
            header.file.CopyFrom(file_header(media, content))
            if part == pb.RESULT_PART_TRANSLATION:
                header.provenance.CopyFrom(made)
            for message in stream(pb.FetchResultsResponse, "result", header, content):
                # Protobuf's own, which tests change and a server without this package's serialisers sends.
                yield pb.FetchResultsResponse.FromString(message.SerializeToString())

    def _provenance(self, job_id: str, job: StoredJob, item: int) -> pb.Provenance:
        data = job.inputs[item]
        made = pb.Provenance(job_id=job_id, source_institution=NORTH, source_domain="moons",
                             target_institution=SOUTH, target_domain="checkerboards", contract_sha256="c" * 64,
                             input_sha256=hashlib.sha256(data).hexdigest(), latent_sha256="1" * 64,
                             source_model_sha256="2" * 64, target_model_sha256="3" * 64,
                             latent=common_pb2.LatentStatistics(std=1.0, count=len(data) // 4),
                             solver=job.header.solver, wire_bytes=2 * len(data), samples=len(data) // 8,
                             seconds={"encode": 1.0, "remote": 2.0})  # fmt: skip
        if job.header.cycle:
            made.cycle.CopyFrom(pb.CycleError(median=1e-4, mean=2e-4, p99=3e-3, max=0.5))
        return made

    def AcknowledgeItems(self, request: Any, context: grpc.ServicerContext) -> pb.AcknowledgeItemsResponse:
        self._begin("AcknowledgeItems", request, context)
        job = self._job(request.job_id, context)
        job.delivered |= {entry.item for entry in request.items}
        self._end("AcknowledgeItems", context)
        return pb.AcknowledgeItemsResponse(remaining=len(job.inputs) - len(job.delivered))

    def DeleteJob(self, request: Any, context: grpc.ServicerContext) -> pb.DeleteJobResponse:
        self._begin("DeleteJob", request, context)
        self._job(request.job_id, context)
        del self.jobs[request.job_id]
        self._end("DeleteJob", context)
        return pb.DeleteJobResponse()


class SourceNodeDouble:
    """North's source node on a port, with alice's profile; can be stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.ahead_s = 0.0
        self.client_roots_pem = b""
        self.script = Script()
        self.service = ScriptedSource(self.script)
        node = Node.create(folder / "north", institution=NORTH, role="source", domain="moons", name="node-1",
                         listen="127.0.0.1:1", address="localhost:1")  # fmt: skip
        self.pki = node.config.paths.pki
        self.port = 0
        self.start()
        address = f"localhost:{self.port}"
        self.profile_path = Profile.create(
            folder / "alice", institution=NORTH, address=address, name="alice", sign=node.pki.sign
        ).path

    def start(self) -> None:
        """Listen, on the same port as before, with the certificate as it is now."""
        self._own = load_identity(self.pki)
        credentials = grpc.ssl_server_credentials(
            [(self._own.key_pem, self._own.cert_chain_pem)],
            self.client_roots_pem or self._own.roots_pem,
            require_client_auth=True,
        )
        policy = Policy(institution=NORTH, roles=("source",), issuer=False)
        store = PeerStore(self.pki.parent, NORTH)
        interceptors = (CallInterceptor(NORTH, store, policy, clock=lambda: time.time() + self.ahead_s),)
        self._server = grpc.server(
            ThreadPoolExecutor(4), interceptors=interceptors, options=(("grpc.so_reuseport", 0),)
        )
        rpc.add_TranslationServiceServicer_to_server(self.service, self._server)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()
