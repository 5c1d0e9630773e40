"""Runs one job's items through `engine.party.translate`, with this node's model as one `Party` and a peer as the other.

Each latent is stored before it leaves; a stored one is sent again. Only latents wait for the disk, and memory holds a
few batches of samples, whatever the job's size.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, field, replace
from typing import Final

import numpy as np
import torch
from opentelemetry.trace import Span

from ddib_fed.calibration.record import check_blend, leg_map
from ddib_fed.data.points import to_npy
from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.diffusion.plans import check_settings
from ddib_fed.engine.party import (
    Array,
    Control,
    Decoded,
    Encoded,
    Failed,
    Leg,
    ToDecode,
    ToEncode,
    ToTranslate,
    TranslatedItem,
    mapped,
    translate,
)
from ddib_fed.errors import (
    ChunkCorrupt,
    ContractUnknown,
    DdibError,
    InputError,
    ItemNotFound,
    LatentNotGaussian,
    PointsTooMany,
)
from ddib_fed.evaluation.samples import Given, SampleFile
from ddib_fed.latent import Latent
from ddib_fed.node.admin import Metrics
from ddib_fed.node.policy import check_evaluations, check_softening, policy_digest
from ddib_fed.node.role import MEDIA_TYPES, NodeContext, rule_of_side, solver_settings
from ddib_fed.protocol.calls import to_detail
from ddib_fed.protocol.contract import calibration_text, guidance_from_pb
from ddib_fed.protocol.latent import ApprovedLatent, approve
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.record import UNGUIDED, LatentFigures, Record, Settings
from ddib_fed.security.audit import Exchanged, Value, anchor_of
from ddib_fed.telemetry import MOST_ITEMS, OFF, Tracing
from ddib_fed.v1 import common_pb2
from source_node.remote import RemoteParty, Remotes
from source_node.spool import NewFile, SpoolPart
from source_node.store import PENDING_ITEMS, Change, JobStore, StoredItem, StoredJob, classes_of
from source_node.submission import calibration_of, check_allowed, own_classes, target_classes

log = logging.getLogger(__name__)

RANGE_ROWS = 2_048
"""Points are split into ranges of a fixed size, so that a restart, or another engine, finds the same ranges."""
MOST_POINTS = 10_000_000
ITEM_ERRORS = (InputError, LatentNotGaussian, ChunkCorrupt)
MOST_WRITES: Final = 32
"""Let this many results of a job wait for the disk, so that a batch is made durable together."""
MOST_WRITE_BYTES: Final = 8 << 20
STEPS_EVERY_S: Final = 0.25
"""Publish a stage's steps at most this often: events of every step would cost more than storing the items."""


class Numbers:
    """Numbers of ranges in the engine, from an item and the range's place in it, and back."""

    def __init__(self, items: Sequence[StoredItem], sample_shape: Sequence[int]) -> None:
        self._stride = 1
        if len(sample_shape) == 1:  # a picture is one row
            # A number takes at least a byte.
            most = max((item.size_bytes // sample_shape[0] for item in items), default=1)
            self._stride = max(1, -(-min(most, MOST_POINTS) // RANGE_ROWS))

    def of(self, item: int, place: int) -> int:
        return item * self._stride + place

    def split(self, number: int) -> tuple[int, int]:
        return divmod(number, self._stride)


def rows_about(items: int, size_bytes: int, sample_shape: Sequence[int]) -> int:
    return items if len(sample_shape) > 1 else size_bytes // (4 * sample_shape[0])


def woven(parts: Sequence[Array]) -> Array:
    """Join an item's ranges; range i of n holds the rows i, i + n, i + 2n, ..."""
    if len(parts) == 1:
        return parts[0]
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for place, part in enumerate(parts):
        whole[place :: len(parts)] = part
    return whole


@dataclass(slots=True)
class ItemWork:
    item: StoredItem
    given: Given
    record: Record
    made: Mapping[int, Encoded]
    """The latents of ranges that were stored before an interruption."""
    encoded: dict[int, Encoded] = field(init=False)
    outcomes: dict[int, TranslatedItem] = field(default_factory=dict)
    kept: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.encoded, self.kept = dict(self.made), set(self.made)

    @property
    def ranges(self) -> int:
        return -(-len(self.given.samples) // RANGE_ROWS)

    def samples(self, place: int) -> Array:
        return np.ascontiguousarray(self.given.samples[place :: self.ranges])

    def whole_latent(self) -> tuple[Latent, LatentStatistics]:
        """Return the item's latent and statistics; all its ranges must be encoded."""
        if self.ranges == 1:
            return self.encoded[0].latent, self.encoded[0].statistics
        latent = Latent.from_array(woven([self.encoded[place].latent.data for place in range(self.ranges)]))
        return latent, measured(latent)

    def translated(self) -> tuple[Decoded, Decoded | None] | None:
        """Return the item as decoded by the target and, in a cycle, by this node; None while ranges are missing."""
        if len(self.outcomes) < self.ranges:
            return None
        outcomes = [self.outcomes[place] for place in range(self.ranges)]
        returned = [outcome.back for outcome in outcomes if outcome.back is not None]
        return _joined([outcome.decoded for outcome in outcomes]), _joined(returned) if returned else None


@dataclass(slots=True, eq=False)
class StepEvents:
    """Events and metrics of one running job; safe to use from any thread."""

    publish: Callable[..., object]
    metrics: Metrics
    job_id: str
    items: int
    done: int
    tracing: Tracing = OFF
    trace: Span | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _observed: Counter[str] = field(default_factory=Counter)
    _ranges: dict[int, int] = field(default_factory=dict)
    _steps: dict[int, dict[tuple[str, int], int]] = field(default_factory=dict)
    _published: dict[str, float] = field(default_factory=dict)

    def begins(self, item: int, ranges: int) -> None:
        with self._lock:
            self._ranges[item], self._steps[item] = ranges, {}

    def step(self, item: int, place: int, stage: str, step: int, steps: int) -> None:
        """Note a range's step, and publish the sum over the item's ranges if it is time."""
        now = time.monotonic()
        with self._lock:
            progress = self._steps.get(item)
            if progress is None:  # it has ended
                return
            progress[stage, place] = step
            # This runs on the engine's thread for every step: add the ranges up only to publish them.
            is_recent = now - self._published.get(stage, float("-inf")) < STEPS_EVERY_S
            if is_recent and not (step == steps and self.items == 1):
                return
            total = self._ranges[item] * steps
            done = min(total, sum(value for (name, _), value in progress.items() if name == stage))
            if is_recent and done < total:
                return
            self._published[stage] = now
        self.publish(self.job_id, JobState.RUNNING, item=item, stage=stage, step=done, steps=total)

    def observe(self, stage: str, seconds: float, samples: int) -> None:
        self.metrics.seconds.labels(stage).observe(seconds)
        self.metrics.samples.labels(stage).inc(samples)
        with self._lock:
            self._observed[stage] += 1
            seen = self._observed[stage]
        if seen <= MOST_ITEMS:
            self.tracing.record(stage, seconds, parent=self.trace, samples=samples)

    def ends(self, item: int, reason: str = "") -> None:
        stage, end = ("encode", "failed") if reason else ("decode", "ok")
        self.metrics.items.labels(stage, end).inc()
        with self._lock:
            self.done += 1
            self._steps.pop(item, None)
            self._ranges.pop(item, None)
            self.publish(
                self.job_id,
                JobState.RUNNING,
                item=item,
                stage="failed" if reason else "done",
                reason=reason,
                items_done=self.done,
                items=self.items,
            )


def measured(latent: Latent) -> LatentStatistics:
    return gaussianity.measure(torch.from_numpy(np.array(latent.data)))


def _joined(parts: Sequence[Decoded]) -> Decoded:
    """Join decoded ranges into one item, without their returned latents."""
    if len(parts) == 1:
        return parts[0]
    normalised = [part.normalised for part in parts if part.normalised is not None]
    return replace(
        parts[0],
        samples=woven([part.samples for part in parts]),
        normalised=woven(normalised) if normalised else None,
        seconds=sum(part.seconds for part in parts),
        again=None,
        wire_bytes=sum(part.wire_bytes for part in parts),
    )


def error_record(error: DdibError) -> common_pb2.ErrorDetail:
    """Return an error as it is stored and sent to the client, without the text of an exception."""
    institution = error.hop.rpartition(" ")[2] if error.hop.startswith("target ") else ""
    detail = to_detail(error, institution, error.incident)
    detail.ClearField("retry_after_ms")
    return detail


class JobPipeline:
    """One attempt at a job, under one policy; also this node's model as a `Party`."""

    def __init__(
        self,
        node: NodeContext,
        store: JobStore,
        publish: Callable[..., object],
        remotes: Remotes,
        job: StoredJob,
        control: Control,
        trace: Span | None = None,
    ) -> None:
        self._node, self._trace, self._control = node, trace, control
        self._engine = node.running_engine
        self._store, self._remotes, self._job = store, remotes, job
        self._samples = node.samples()
        self._numbers = Numbers(job.items, self._engine.model.sample_shape)
        done = sum(item.state not in PENDING_ITEMS for item in job.items)
        self._progress = StepEvents(
            publish, node.metrics, job.job_id, len(job.items), done, node.tracing, trace
        )
        self._work: dict[int, ItemWork] = {}
        self._leaving = threading.Lock()
        """Hold this while latents are stored and recorded: meanwhile no item fails, and no other call sends any."""
        self._writing: deque[tuple[Future[None], int]] = deque()

    def run(self, items: Sequence[StoredItem], on_answer: Callable[[], object] = lambda: None) -> None:
        """Translate items and return when the results are on the disk; call `on_answer` when the peer has agreed."""
        node, job, request, config = self._node, self._job, self._job.request, self._node.config
        check_allowed(job.owner, request, config)
        self._peer = node.peers.get(request.target_institution)
        remote = self._remotes.get(request.target_institution)
        calibration = calibration_of(node, request)
        terms = None if calibration is None else calibration.terms
        contract = remote.negotiate(node.side(), request.target_domain, self._control, terms)
        self._contract = contract
        on_answer()
        check_softening(contract.source.soften_sigma, config.policy)
        floor = contract.limits.min_evaluations
        check_evaluations(solver_settings(request.solver), floor, where=contract.target.institution)
        self._policy_sha256 = policy_digest(config)
        self._volume = request.volume_sha256 if contract.shared_noise else b""
        target = RemoteParty(
            remote,
            contract,
            request_id=job.job_id,
            read=lambda file, count: self._samples.answer(file, rule_of_side(contract.target), count),
            release=self._release,
            receipt=self._receipt,
            batch_rows=max(1, self._engine.window // 2),
            tracing=node.tracing,
            trace=self._trace,
        )
        self._alone = None if calibration is None else calibration.alone
        check_blend(request.solver.blend, calibration)
        leg = Leg(
            solver_settings(request.solver),
            guidance_from_pb(request.guidance),
            round_trip=request.cycle,
            control=self._control,
            on_step=self._on_step,
            calibration=leg_map(calibration, self._engine.model.bundle.manifest),
            flow=job.job_id,
            owner=job.owner,
            stream_rows=rows_about(
                len(items), sum(item.size_bytes for item in items), self._engine.model.sample_shape
            ),
            least_evaluations=max(config.policy.least_evaluations, floor),
        )
        given = self._given(items)
        alone = self._alone if request.solver.blend == 1.0 else None
        made = translate(self, target, given, leg) if alone is None else mapped(given, alone)
        try:
            with closing(made) as outcomes:
                for outcome in outcomes:
                    self._take(outcome, target)
        finally:
            with self._leaving:  # a sender that gRPC has not ended yet finds no work
                self._work.clear()
            self._store.flush()
            wait([future for future, _ in self._writing])
        self._wait_for_writes(0)

    def _place(self, number: int) -> tuple[ItemWork | None, int]:
        item, place = self._numbers.split(number)
        return self._work.get(item), place

    def _on_step(self, number: int, stage: str, step: int, steps: int) -> None:
        self._progress.step(*self._numbers.split(number), stage, step, steps)

    def _given(self, items: Sequence[StoredItem]) -> Iterator[ToTranslate]:
        contract, request = self._contract, self._job.request
        own = own_classes(self._node, request)
        other = target_classes(contract.target, contract.limits.guidance, request)

        def noise(picture: Array, shape: tuple[int, ...]) -> Array:
            return self._node.softener.for_picture(picture, contract.target.institution, shape, self._volume)

        for item in items:
            try:
                work = self._begin(item)
            except ITEM_ERRORS as error:
                self._fail_item(item.index, error)
                continue
            self._work[item.index] = work
            self._progress.begins(item.index, work.ranges)
            source_class, target_class = classes_of(request, item.index)
            for place in range(work.ranges):
                number = self._numbers.of(item.index, place)
                yield ToTranslate(number, work.samples(place), own[source_class], other[target_class], noise)

    def _begin(self, item: StoredItem) -> ItemWork:
        contract, record = self._contract, Record.parse(item.provenance) if item.provenance else None
        made = self._made(item, record)
        if record is None or not made:
            given = self._input(item, contract.size_rule)
            record = Record(input_sha256=item.sha256.hex(), samples=len(given.samples))
        else:
            # By the rule with which it was encoded, whatever the policy says by now.
            given = self._input(item, record.picture.size_rule if record.picture is not None else "none")
        if (rows := len(given.samples)) > (most := contract.limits.max_samples_per_item):
            raise PointsTooMany(
                f"{rows} samples, and the peer takes {most} in one item",
                facts={"points": rows, "limit_points": most},
            )
        offered, terms = contract.limits.guidance, contract.calibration
        request, (source_class, target_class) = self._job.request, classes_of(self._job.request, item.index)
        guidance = guidance_from_pb(request.guidance)
        record = record.with_(
            job_id=self._job.job_id,
            solver=Settings.like(check_settings(solver_settings(request.solver))),
            source_class=source_class,
            target_class=target_class,
            guidance=None if guidance == UNGUIDED else guidance,
            source_institution=contract.source.institution,
            source_domain=contract.source.domain,
            target_institution=contract.target.institution,
            target_domain=contract.target.domain,
            contract_sha256=contract.digest.hex(),
            source_model_sha256=contract.source.model_sha256.hex(),
            target_model_sha256=contract.target.model_sha256.hex(),
            classifier_sha256=offered.classifier_sha256.hex()
            if request.guidance.HasField("classifier_scale")
            else "",
            soften_sigma=contract.source.soften_sigma,
            shared_noise=record.shared_noise if made else bool(self._volume),
            policy_sha256=self._policy_sha256,
            calibration_sha256="" if terms is None else terms.sha256.hex(),
            calibration_kind="" if terms is None else terms.kind,
            picture=given.picture,
        )
        return ItemWork(item, given, record, made)

    def _made(self, item: StoredItem, record: Record | None) -> Mapping[int, Encoded]:
        """Return the stored latents of an item's ranges, by place; reset the item if they cannot be sent any more."""
        if record is None:
            return {}
        job_id, made, lost = self._job.job_id, dict[int, Encoded](), ""
        contract, terms = self._contract, self._contract.calibration
        now = contract.source.model_sha256.hex(), "" if terms is None else terms.sha256.hex()
        if (record.source_model_sha256, record.calibration_sha256) != now:
            lost = "the model or the calibration was replaced"
        elif record.shared_noise and not contract.shared_noise:
            lost = "its noise is shared, and an operator no longer allows it"
        else:
            places = [
                place for part, place in self._store.parts(job_id, item.index) if part == SpoolPart.ENCODED
            ]
            for place in places:
                try:
                    data = self._store.read_part(job_id, item.index, SpoolPart.ENCODED, place)
                    latent = Latent.from_bytes(data, self._engine.model.latent_shape)
                except (ChunkCorrupt, ItemNotFound) as error:
                    lost = error.detail
                else:
                    made[place] = Encoded(self._numbers.of(item.index, place), latent, measured(latent), 0.0)
        if lost and (item.state == ItemState.ENCODED or not made):
            made = {}
            self._store.keep(job_id, Change(item.index, state=ItemState.RECEIVED)).result()
        if lost:
            log.info("item %d of job %s is encoded again: %s", item.index, job_id, lost)
        return made

    def _input(self, item: StoredItem, size_rule: str) -> Given:
        with self._file(item) as content:
            given = self._samples.read(content, size_rule)
        return given.at_model_size() if self._job.request.model_size else given

    def _file(self, item: StoredItem) -> AbstractContextManager[bytes]:
        """Reserve the memory for decoding the client's file, and return its bytes for as long."""
        return self._node.decoding.file(
            self._job.owner,
            item.size_bytes,
            lambda: self._store.read_part(self._job.job_id, item.index, SpoolPart.INPUT),
            self._samples.memory,
        )

    def known(self, item: ToEncode) -> Encoded | None:
        """Return a range's stored latent, if there is one."""
        work, place = self._place(item.number)
        return None if work is None else work.made.get(place)

    def encode_each(self, items: Iterable[ToEncode], leg: Leg) -> Iterator[Encoded | Failed]:
        """Yield the latents of ranges, stored or new."""
        for outcome in self._engine.encode_each(items, leg, known=self.known):
            work, place = self._place(outcome.number)
            if work is None:
                yield Failed(outcome.number, InputError("the item was given up because of another range"))
                continue
            if isinstance(outcome, Encoded):
                work.encoded[place] = outcome
                if place not in work.made:
                    self._progress.observe("encode", outcome.seconds, len(outcome.latent.data))
            yield outcome

    def decode_each(self, latents: Iterable[ToDecode], leg: Leg) -> Iterator[Decoded | Failed]:
        """Decode the latents that a cycle returns; progress is reported as the stage "return"."""

        def on_step(number: int, _: str, step: int, steps: int) -> None:
            self._on_step(number, "return", step, steps)

        for outcome in self._engine.decode_each(latents, replace(leg, on_step=on_step)):
            if isinstance(outcome, Decoded):
                self._progress.observe("return", outcome.seconds, len(outcome.samples))
            yield outcome

    def _release(self, latents: Sequence[ToDecode]) -> list[ApprovedLatent]:
        """Return the latents that may leave, each stored and recorded as sent."""
        contract, peer = self._contract, self._contract.target.institution
        line: dict[str, Value] = {
            "job": self._job.job_id,
            "peer": peer,
            "contract": contract.digest.hex(),
            "calibration": calibration_text(contract.calibration),
        }
        with self._leaving:
            if not self._node.peers.get(peer).still_vouches_for(self._peer):
                raise ContractUnknown(
                    f"the entry of {peer} was replaced meanwhile: a contract is agreed on over a new connection",
                    retry_after_s=0.1,
                )
            approved, changes = list[ApprovedLatent](), list[Change]()
            new: list[tuple[ItemWork, int]] = []
            for latent in latents:
                number, (work, place) = latent.number, self._place(latent.number)
                if work is None:  # given up because of another range
                    continue
                assert latent.statistics is not None  # the own model's gate measured them
                label = latent.label if isinstance(latent.label, int) else None
                approved.append(
                    approve(latent.latent, contract, latent.statistics, item=number, target_class=label)
                )
                if place not in work.kept:
                    new.append((work, place))
                    left = work.ranges - len(work.kept) - sum(each is work for each, _ in new)
                    changes.append(self._latent_change(work, place, is_last=not left))
            if not approved:
                return []
            lines = [line | {"item": each.item, "latent": each.sha256.hex()} for each in approved]
            head = self._store.send(self._job.job_id, changes, lines)
            for work, place in new:
                work.kept.add(place)
        for each in approved:
            self._node.metrics.latent_bytes.labels("out").inc(each.size_bytes)
        return [each.recorded(anchor_of(head)) for each in approved]

    def _latent_change(self, work: ItemWork, place: int, *, is_last: bool) -> Change:
        """Return what to store of a latent before it leaves; the item's last one makes it ENCODED."""
        files, state = [NewFile(SpoolPart.ENCODED, work.encoded[place].latent.to_bytes(), range=place)], None
        if is_last:
            state, (latent, statistics) = ItemState.ENCODED, work.whole_latent()
            work.record = work.record.with_(
                latent_sha256=latent.sha256.hex(),
                latent=LatentFigures(**asdict(statistics)),
                seconds={"encode": sum(each.seconds for each in work.encoded.values())},
            )
            if self._job.request.keep_latent:
                files.append(NewFile(SpoolPart.LATENT, to_npy(latent.data)))
        return Change(work.item.index, files, state, work.record.stored())

    def _receipt(self, exchanged: Exchanged) -> None:
        if exchanged.sent_items:
            peer = self._contract.target.institution
            self._node.write_receipt(peer, self._contract, exchanged, job=self._job.job_id)

    def _take(self, outcome: TranslatedItem | Failed, target: RemoteParty) -> None:
        """Note a range's outcome; store the item's result after its last range."""
        number = outcome.number if isinstance(outcome, Failed) else outcome.item.number
        work, place = self._place(number)
        if work is None:
            return
        index = work.item.index
        if isinstance(outcome, Failed):
            self._fail_item(index, outcome.error)
            return
        work.outcomes[place] = outcome
        if (translated := work.translated()) is None:
            return
        try:
            files, record = self._result(work, *translated)
        except (InputError, LatentNotGaussian) as error:
            self._fail_item(index, target.unusable(error))
            return
        size = sum(len(file.data) for file in files)
        self._wait_for_writes(size)
        del self._work[index]
        change = Change(index, files, ItemState.DECODED, record.stored())
        future = self._store.keep(self._job.job_id, change, patient=True)
        self._writing.append((future, size))
        future.add_done_callback(lambda done: None if done.exception() else self._progress.ends(index))

    def _result(
        self, work: ItemWork, decoded: Decoded, returned: Decoded | None
    ) -> tuple[list[NewFile], Record]:
        files: list[NewFile] = []
        samples, source, rule = self._samples, work.given, rule_of_side(self._contract.target)
        record = work.record.with_(seconds={"remote": decoded.seconds}, wire_bytes=decoded.wire_bytes)
        makers: dict[SpoolPart, Callable[[], SampleFile]] = {
            SpoolPart.TRANSLATION: lambda: samples.translation(
                decoded.samples, rule, source, self._alone, blend=self._job.request.solver.blend
            )
        }
        if source.model_size:
            makers[SpoolPart.SOURCE] = lambda: SampleFile(samples.file(source.samples))
        if returned is not None:
            makers[SpoolPart.RETURNED] = lambda: samples.returned(source, returned)
        for part, make in makers.items():
            with self._node.decoding.work(self._job.owner, samples.output_memory(source)):
                result = make()
            files.append(NewFile(part, result.file, MEDIA_TYPES[samples.format]))
            record = record.with_(**result.figures)
        if returned is not None:
            record = record.with_(seconds={"return": returned.seconds})
            if source.is_fitted:  # against the picture as it was sent
                with self._file(work.item) as content:
                    record = record.with_(picture=samples.returned_at_own_size(content, returned))
        return files, record

    def _wait_for_writes(self, more: int) -> None:
        """Wait until a result of so many bytes has room; with 0, until all results are on the disk."""
        while self._writing:
            future, _ = self._writing[0]
            room = len(self._writing) < MOST_WRITES
            room &= sum(size for _, size in self._writing) + more <= MOST_WRITE_BYTES
            if more and room and not future.done():
                return
            self._writing.popleft()
            if not future.done():
                self._store.flush()
            future.result()

    def _fail_item(self, index: int, error: DdibError) -> None:
        change = Change(index, state=ItemState.FAILED, error=error_record(error))
        with self._leaving:
            self._work.pop(index, None)
            self._store.keep(self._job.job_id, change).result()
        self._progress.ends(index, error.reason)
