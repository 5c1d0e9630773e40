"""Receives the jobs of clients: checked, charged, and on the disk before they are accepted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from opentelemetry.trace import Span

from ddib_fed.bridge.calibration.applied import leg_map
from ddib_fed.bridge.model import check_given
from ddib_fed.errors import (
    ContractMismatch,
    DdibError,
    ImageTooLarge,
    InputError,
    KindMismatch,
    MessageInvalid,
    PeerNotFound,
    PeerSuspended,
    PictureMisfit,
    PointsTooMany,
)
from ddib_fed.node.config import MAX_POINTS_PER_ITEM
from ddib_fed.node.pictures import MEDIA_FORMATS, limits_of
from ddib_fed.node.policy import client_charges
from ddib_fed.node.quota import Charge, evaluations_of
from ddib_fed.node.role import NodeContext
from ddib_fed.rpc.calls import ReadAhead
from ddib_fed.rpc.refused import refused_facts
from ddib_fed.runs.samples import Samples, samples_of
from ddib_fed.server.interceptors import Slots
from ddib_fed.server.pace import READ_AHEAD, Pace
from ddib_fed.v1 import common_pb2, translation_pb2
from ddib_fed.wire.streams import Announced, assemble, open_file
from source_node.calibrations import calibration_of
from source_node.jobs.store import ItemSpec, Job, JobSpec, JobStore, Staging
from source_node.peer.remote import Remotes
from source_node.specs import check_peer, spec_of

DESCRIBE_TIMEOUT_S = 3.0
# Jobs that are being received at once: gRPC holds up to 25 MiB of each, however slowly it is read (docs/operating.md).
MAX_UPLOADS = 24
MAX_UPLOADS_PER_CLIENT = 16
# A refused job costs its owner nothing; for so long its other items are decoded, to name all that are refused.
REFUSED_S = 10.0
Requests = Iterator[translation_pb2.SubmitJobRequest]


class Submissions:
    """Jobs on their way in."""

    def __init__(
        self, node: NodeContext, store: JobStore, remotes: Remotes, *, away: Callable[[], Collection[str]]
    ) -> None:
        self._node = node
        self._store = store
        self._remotes = remotes
        self._away = away
        self._uploads = Slots(MAX_UPLOADS_PER_CLIENT, MAX_UPLOADS)

    def receive(
        self, messages: Requests, trace: Span | None = None, ended: Callable[[], bool] = lambda: False
    ) -> tuple[Job, bool]:
        """One job; whether its request had been accepted before."""
        stall_s = self._node.config.limits.stall_s
        pace = Pace(stall_s, between_s=stall_s)
        with ReadAhead(messages, READ_AHEAD, "upload") as ahead:
            requests = pace.each(ahead)
            header = _job_header(requests)
            spec = spec_of(header, self._node)
            self._check_target(spec)
            self._node.tracing.remember(trace_key(spec), trace)
            leg_map(calibration_of(self._node, spec), self._node.engine.model.manifest)
            with self._uploads.taken(spec.owner), self._store.stage(spec, self._away()) as staging:
                charged = not staging.accepted_before
                if charged:  # an item has a sample at least
                    self._node.quotas.require(self._charges(spec, header.items))
                samples = self._receive_items(requests, header.items, staging, pace, ended)
                return self._commit(staging, self._charges(spec, samples) if charged else ())

    def _receive_items(
        self, requests: Requests, items: int, staging: Staging, pace: Pace, ended: Callable[[], bool]
    ) -> int:
        """All items, checked; how many samples they have."""
        received = samples = 0
        decode_until = math.inf
        refused: dict[int, DdibError] = {}
        try:
            for whole in assemble(requests, {"item": self._opener(items, staging, pace)}):
                pace.end()
                if time.monotonic() > decode_until:
                    raise _first_of(refused)
                item = staging.keep(whole.header.media_type, whole.header.sha256)
                try:
                    samples += self._check_item(staging, item, ended)
                except InputError as error:
                    refused[item.index] = error.kept()
                    decode_until = min(decode_until, time.monotonic() + REFUSED_S)
                received += 1
        except InputError as error:
            if "item" not in error.facts:
                raise
            refused[int(error.facts["item"])] = error.kept()
            raise _first_of(refused) from None
        if received != items:
            raise MessageInvalid(
                f"{received} items came where {items} were announced",
                facts={"announced": items, "received": received},
            )
        if refused:
            raise _first_of(refused)
        return samples

    def _commit(self, staging: Staging, charges: Sequence[Charge]) -> tuple[Job, bool]:
        """Charge, then accept: a job that is on the disk was paid for, also if the node is killed here."""
        self._node.quotas.charge(charges)
        repeated = True
        try:
            job, repeated = staging.commit()
        finally:
            if repeated:  # or not accepted at all
                self._node.quotas.refund(charges)
        return job, repeated

    def _charges(self, spec: JobSpec, samples: int) -> Sequence[Charge]:
        shape, evaluations = self._node.engine.model.sample_shape, spec.solver.evaluations
        cost = evaluations_of(samples, shape, evaluations)
        if spec.cycle:
            cost += evaluations_of(samples, shape, evaluations, spec.guidance)
        return client_charges(self._node.config.policy, spec.owner, cost)

    def _check_target(self, spec: JobSpec) -> None:
        """Refuse at once what cannot work: an unknown or suspended institution, a domain that it does not serve."""
        try:
            remote = self._remotes.get(spec.target_institution)
        except PeerNotFound as error:
            known = ", ".join(sorted(peer.institution for peer in self._node.peers.list()))
            error.facts.update(institution=spec.target_institution[:200], known=known[:200])
            raise
        if spec.target_institution in self._away():
            return
        try:
            peer = remote.describe(DESCRIBE_TIMEOUT_S)
        except (ContractMismatch, PeerSuspended):
            raise
        except DdibError:
            return
        check_peer(spec, peer)

    def _opener(
        self, max_items: int, staging: Staging, pace: Pace
    ) -> Callable[[common_pb2.FileHeader], Announced]:
        """Checks the header of each item; its bytes go to the disk as they come."""
        seen = 0
        limits = self._node.config.limits
        samples = self._samples()
        accepted = {media for media, name in MEDIA_FORMATS.items() if name in samples.formats}

        def opener(header: common_pb2.FileHeader) -> Announced:
            nonlocal seen
            seen += 1
            if seen > max_items:
                raise MessageInvalid("more items than announced", facts={"announced": max_items})
            if header.media_type not in accepted:
                raise self._of_item(seen - 1, samples.refusal(MEDIA_FORMATS.get(header.media_type, "")))
            try:
                announced = open_file(header, max_bytes=limits.max_item_bytes, accepted=accepted)
            except (ImageTooLarge, PointsTooMany) as error:
                raise self._of_item(seen - 1, error) from None
            pace.begin(header.size_bytes)
            return replace(announced, sink=staging.receive(header.size_bytes))

        return opener

    def _check_item(self, staging: Staging, item: ItemSpec, ended: Callable[[], bool]) -> int:
        """Everything that encoding would refuse, before the job is accepted; how many samples it has."""
        samples, size_rule = self._samples(), self._node.size_rule

        def cost(content: bytes) -> int:
            samples.check_header(content, size_rule)
            return samples.memory(content)

        def load() -> bytes:
            return staging.read(item.index)

        try:
            with self._node.decoding.file(staging.owner, item.size_bytes, load, cost, ended=ended) as content:
                given = samples.read(content, size_rule)
                check_given(self._node.engine.model, given.samples)
                staging.keep_decoded(given.to_bytes(samples.rule))
                return len(given.samples)
        except InputError as error:
            self._of_item(item.index, error)
            raise

    def _samples(self) -> Samples:
        limits = self._node.config.limits
        return samples_of(self._node.engine.model, limits_of(limits), MAX_POINTS_PER_ITEM)

    def _of_item(self, number: int, error: DdibError) -> DdibError:
        error.facts["item"] = str(number)
        if isinstance(error, PictureMisfit | KindMismatch):
            side = self._node.side()
            error.facts["model"] = f"{side.institution}/{side.domain}"
        return error


def _first_of(refused: Mapping[int, DdibError]) -> DdibError:
    first = refused[min(refused)]
    first.facts |= refused_facts({number: error.reason for number, error in refused.items()})
    return first


def trace_key(spec: JobSpec) -> str:
    return f"{spec.owner} {spec.request_id}"


def _job_header(requests: Iterator[translation_pb2.SubmitJobRequest]) -> translation_pb2.JobHeader:
    first = next(requests, None)
    if first is None or first.WhichOneof("message") != "header":
        raise MessageInvalid("the first message of SubmitJob must be its header", facts={"field": "header"})
    return first.header
