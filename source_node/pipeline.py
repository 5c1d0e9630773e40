"""One job's items through `engine.party.translate`: the node's own model, the peer, and what is kept of each item.

`JobPipeline` is the node's model as a `Party` that stores each latent before it leaves and sends a stored one again;
`RemoteParty` is the peer. Nothing waits for the disk but what must: a latent, before it is sent. Memory holds some
batches of samples, whatever the job's size.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, Final

from opentelemetry.trace import Span

from ddib_fed.calibration.record import leg_map
from ddib_fed.data.points import to_npy
from ddib_fed.engine.party import (
    Control,
    Decoded,
    Encoded,
    Failed,
    Leg,
    ToDecode,
    ToEncode,
    TranslatedItem,
    translate,
)
from ddib_fed.engine.record import LatentFigures
from ddib_fed.errors import ContractUnknown, DdibError, InputError, LatentNotGaussian, StateConflict
from ddib_fed.evaluation.samples import samples_of
from ddib_fed.models.units import ChannelMap
from ddib_fed.node.admin import Metrics
from ddib_fed.node.config import MAX_POINTS_PER_ITEM
from ddib_fed.node.policy import check_evaluations, check_softening, policy_digest
from ddib_fed.node.role import MEDIA_TYPES, NodeContext, limits_of, rule_of_side, solver_settings
from ddib_fed.protocol.contract import guidance_from_pb
from ddib_fed.protocol.latent import ApprovedLatent, approve
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.security.audit import RECEIPT, Exchanged, anchor_of
from ddib_fed.telemetry import MOST_ITEMS, OFF, Tracing
from source_node.events import EventHub
from source_node.intake import Intake, ItemWork, Numbers, rows_about
from source_node.records import PENDING_ITEMS, NewFile, SpoolPart, StoredItem, StoredJob, error_record
from source_node.remote import Remotes
from source_node.remote_party import RemoteParty
from source_node.store import JobStore
from source_node.submission import calibration_of, check_allowed

log = logging.getLogger(__name__)

MOST_WRITES: Final = 32
"""Results of one job that wait for the disk at once: enough for a batch to be made durable together."""
MOST_WRITE_BYTES: Final = 8 << 20
"""Of the same; a single larger result goes."""
TRY_AGAIN_S: Final = 0.1
STEPS_EVERY_S: Final = 0.1
"""Steps of one stage are published at most this often, whichever item they are of: an event for every step of every
item in flight costs the node, and each client that watches, more than storing it."""


class JobPipeline:
    """One job's way under one policy; made again for what an interruption, or another policy, left."""

    def __init__(
        self,
        node: NodeContext,
        store: JobStore,
        events: EventHub,
        remotes: Remotes,
        job: StoredJob,
        control: Control,
        on_answer: Callable[[], object] = lambda: None,
        trace: Span | None = None,
    ) -> None:
        self._node, self._trace = node, trace
        self._config = node.config
        self._on_answer = on_answer
        self._engine = node.running_engine
        self._store = store
        self._remotes = remotes
        self._job = job
        self._control = control
        self._samples = samples_of(self._engine.model, limits_of(node.config.limits), MAX_POINTS_PER_ITEM)
        self._numbers = Numbers(job.items, self._engine.model.sample_shape)
        self._progress = StepEvents(events, node.metrics, job, self._numbers, node.tracing, trace)
        self._work: dict[int, ItemWork] = {}
        self._storing: dict[int, Future[None]] = {}
        """Latents on their way to the disk."""
        self._writing: deque[tuple[Future[None], int]] = deque()
        """Results on their way to the disk, with their sizes."""

    def run(self, items: Sequence[StoredItem]) -> None:
        """Take the items as far as they go; returns when everything is on the disk."""
        request, policy = self._job.request, self._config.policy
        check_allowed(self._job.owner, request, self._config)
        self._peer = self._node.peers.get(request.target_institution)
        remote = self._remotes.get(request.target_institution)
        calibration = calibration_of(self._node, request)
        contract = self._contract = remote.negotiate(
            self._node.side(),
            request.target_domain,
            self._control,
            None if calibration is None else calibration.terms,
        )
        self._on_answer()
        check_softening(contract.source.soften_sigma, policy)
        floor = contract.limits.min_evaluations
        check_evaluations(solver_settings(request.solver), floor, where=contract.target.institution)
        digest = policy_digest(self._config)
        self._intake = Intake(
            self._node, self._store, self._job, self._samples, contract, self._numbers, digest
        )
        target = RemoteParty(
            remote,
            contract,
            request_id=self._job.job_id,
            read=lambda file, count: self._samples.answer(file, rule_of_side(contract.target), count),
            release=self._release,
            receipt=self._receipt,
            batch_rows=max(1, self._engine.window // 2),
            tracing=self._node.tracing,
            trace=self._trace,
        )
        self._rotation: ChannelMap | None = leg_map(calibration, self._engine.model.bundle.manifest)
        shape = self._engine.model.sample_shape
        leg = Leg(
            solver_settings(request.solver),
            guidance_from_pb(request.guidance),
            round_trip=request.cycle,
            control=self._control,
            on_step=self._progress.step,
            calibration=self._rotation,
            flow=self._job.job_id,
            owner=self._job.owner,
            stream_rows=rows_about(len(items), sum(item.size_bytes for item in items), shape),
            least_evaluations=max(policy.least_evaluations, floor),
        )
        given = self._intake.each(items, self._begin, self._fail_item)
        with closing(translate(self, target, given, leg)) as outcomes:
            for outcome in outcomes:
                self._take(outcome, target)
        self._wait_for_writes(0)

    def _begin(self, work: ItemWork) -> None:
        self._work[work.item.index] = work
        self._progress.begins(work.item.index, len(work.ranges))

    def _place(self, number: int) -> tuple[ItemWork | None, int]:
        return self._work.get(self._numbers.item(number)), self._numbers.place(number)

    # What the own model does

    def known(self, item: ToEncode) -> Encoded | None:
        """The latent that was made for a range before an interruption."""
        work, place = self._place(item.number)
        made = None if work is None else work.made.get(place)
        return None if made is None else Encoded(item.number, *made, 0.0)

    def encode_each(self, items: Iterable[ToEncode], leg: Leg) -> Iterator[Encoded | Failed]:
        """The latents of ranges: those that were stored before, and new ones, given to the store."""
        for outcome in self._engine.encode_each(items, leg, known=self.known):
            work, place = self._place(outcome.number)
            if work is None:
                yield Failed(outcome.number, InputError("the item was given up because of another range"))
                continue
            if isinstance(outcome, Encoded):
                self._keep_latent(work, place, outcome)
            yield outcome

    def _keep_latent(self, work: ItemWork, place: int, encoded: Encoded) -> None:
        """Give a latent to the store; `_release` waits for it. The last one of an item takes it further."""
        work.encoded[place] = encoded
        files, state = [], None
        if place not in work.made:
            self._progress.observe("encode", encoded.seconds, len(encoded.latent.data))
            files.append(NewFile(SpoolPart.ENCODED, encoded.latent.to_bytes(), range=place))
        if not work.stored and (whole := work.whole_latent) is not None:
            state, (latent, statistics) = ItemState.ENCODED, whole
            work.record = work.record.with_(
                latent_sha256=latent.sha256.hex(),
                latent=LatentFigures(**asdict(statistics)),
                seconds={"encode": work.encode_seconds},
            )
            if self._job.request.keep_latent:
                files.append(NewFile(SpoolPart.LATENT, to_npy(latent.data)))
        if files or state is not None:
            self._storing[encoded.number] = self._store.keep(
                self._job.job_id, work.item.index, *files, state=state, provenance=work.record.stored()
            )

    def decode_each(self, latents: Iterable[ToDecode], leg: Leg) -> Iterator[Decoded | Failed]:
        """Decode the latents that a cycle returns; progress is reported as the stage "return"."""

        def on_step(number: int, _: str, step: int, steps: int) -> None:
            self._progress.step(number, "return", step, steps)

        for outcome in self._engine.decode_each(latents, replace(leg, on_step=on_step)):
            if isinstance(outcome, Decoded):
                self._progress.observe("return", outcome.seconds, len(outcome.samples))
            yield outcome

    # What leaves

    def _release(self, latents: Sequence[ToDecode]) -> list[ApprovedLatent]:
        """The latents that are fit to leave, each on the disk and recorded as sent."""
        contract, peer = self._contract, self._contract.target.institution
        stored = [latent for latent in latents if self._is_stored(latent.number)]
        if not self._node.peers.get(peer).still_vouches_for(self._peer):
            raise ContractUnknown(
                f"the entry of {peer} was replaced meanwhile: a contract is agreed on over a new connection",
                retry_after_s=TRY_AGAIN_S,
            )
        if not stored:
            return []
        approved = []
        for latent in stored:
            assert latent.statistics is not None  # the own model's gate measured them
            approved.append(approve(latent.latent, contract, latent.statistics, item=latent.number))
        line = {
            "job": self._job.job_id,
            "peer": peer,
            "contract": contract.digest.hex(),
            "calibration": str(contract.calibration or ""),
        }
        head = self._node.audit.write_each(
            "latent_sent",
            [{**line, "item": each.item, "latent": each.sha256.hex()} for each in approved],
        )
        for each in approved:
            self._storing.pop(each.item, None)
            self._node.metrics.latent_bytes.labels("out").inc(each.size_bytes)
        return [each.recorded(anchor_of(head)) for each in approved]

    def _is_stored(self, number: int) -> bool:
        """Wait until the latent of a range is on the disk; False when its item was given up meanwhile."""
        try:
            if (stored := self._storing.get(number)) is not None:
                stored.result()
        except StateConflict:
            if self._place(number)[0] is not None:
                raise
            return False
        return True

    def _receipt(self, exchanged: Exchanged) -> None:
        """Record what a call exchanged, and the peer's anchor; its latents are recorded already."""
        if not exchanged.sent_items:
            return
        try:
            self._node.audit.write(
                RECEIPT,
                job=self._job.job_id,
                peer=self._contract.target.institution,
                contract=self._contract.digest.hex(),
                policy=self._node.policy_sha256,
                **exchanged.values(),
            )
        except OSError:
            log.exception("the receipt of job %s could not be written to the audit log", self._job.job_id)

    # What comes back

    def _take(self, outcome: TranslatedItem | Failed, target: RemoteParty) -> None:
        """A range that has gone all its way: the last one of an item finishes it."""
        number = outcome.number if isinstance(outcome, Failed) else outcome.item.number
        work, place = self._place(number)
        if work is None:
            return
        index = work.item.index
        if isinstance(outcome, Failed):
            self._fail_item(index, outcome.error)
            return
        work.found[place] = outcome
        if (found := work.translated) is None:
            return
        try:
            files, record = self._result(work, *found)
        except (InputError, LatentNotGaussian) as error:
            # One that cannot be written ends this item and no other.
            self._fail_item(index, target.unusable(error))
            return
        size = sum(len(file.data) for file in files)
        self._wait_for_writes(size)
        del self._work[index]
        future = self._store.keep(self._job.job_id, index, *files, state=ItemState.DECODED, provenance=record)
        self._writing.append((future, size))
        future.add_done_callback(lambda done: None if done.exception() else self._progress.finished(index))

    def _result(
        self, work: ItemWork, there: Decoded, back: Decoded | None
    ) -> tuple[list[NewFile], Mapping[str, Any]]:
        """The files and the record of a translation."""
        files: list[NewFile] = []
        record = work.record.with_(seconds={"remote": there.seconds}, wire_bytes=there.wire_bytes)
        given, rule = work.given, rule_of_side(self._contract.target)
        made: dict[SpoolPart, Callable[[], Any]] = {
            SpoolPart.TRANSLATION: lambda: self._samples.translation(
                there.samples, rule, given, self._rotation
            )
        }
        if given.model_size:
            made[SpoolPart.SOURCE] = lambda: self._samples.source(given)
        if back is not None:
            made[SpoolPart.RETURNED] = lambda: self._samples.returned(given, back)
        for part, make in made.items():
            with self._node.decoding.work(self._job.owner, self._samples.output_memory(given)):
                result = make()
            files.append(NewFile(part, result.file, MEDIA_TYPES[self._samples.format]))
            record = record.with_(**result.figures)
        if back is not None:
            record = record.with_(seconds={"return": back.seconds})
            if given.is_fitted:  # against the picture as it was sent
                with self._intake.file(work.item) as content:
                    record = record.with_(picture=self._samples.returned_at_own_size(content, back))
        return files, record.stored()

    def _wait_for_writes(self, more: int) -> None:
        """Until there is room for a result of so many bytes; with 0, until all are on the disk."""
        while self._writing:
            future, _ = self._writing[0]
            room = len(self._writing) < MOST_WRITES
            room &= sum(size for _, size in self._writing) + more <= MOST_WRITE_BYTES
            if more and room and not future.done():
                return
            self._writing.popleft()
            future.result()

    def _fail_item(self, index: int, error: DdibError) -> None:
        self._work.pop(index, None)
        self._store.keep(self._job.job_id, index, state=ItemState.FAILED, error=error_record(error)).result()
        self._progress.failed(index, error.reason)


class StepEvents:
    """Publishes the events of one job, and counts them in the metrics; safe to use from any thread."""

    def __init__(
        self,
        events: EventHub,
        metrics: Metrics,
        job: StoredJob,
        numbers: Numbers,
        tracing: Tracing = OFF,
        trace: Span | None = None,
    ) -> None:
        self._events = events
        self._metrics = metrics
        self._job = job
        self._numbers = numbers
        self._tracing, self._trace = tracing, trace
        self._observed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._done = sum(item.state not in PENDING_ITEMS for item in job.items)
        self._ranges: dict[int, int] = {}
        self._steps: dict[int, dict[tuple[str, int], int]] = {}
        """Of each item that is being worked on: how far each of its ranges is in each stage."""
        self._said: dict[str, float] = {}

    def begins(self, item: int, ranges: int) -> None:
        with self._lock:
            self._ranges[item], self._steps[item] = ranges, {}

    def step(self, number: int, stage: str, step: int, steps: int) -> None:
        """A range has gone so many steps of a stage: the item's steps are those of all its ranges."""
        item, now = self._numbers.item(number), time.monotonic()
        with self._lock:
            so_far = self._steps.get(item)
            if so_far is None:  # it has ended
                return
            so_far[stage, self._numbers.place(number)] = step
            # Called on the engine's thread for every step: the ranges are added up only for what is published.
            said = now - self._said.get(stage, float("-inf")) < STEPS_EVERY_S
            if said and not (step == steps and len(self._job.items) == 1):
                return
            of_all = self._ranges[item] * steps
            done = min(of_all, sum(value for (name, _), value in so_far.items() if name == stage))
            if said and done < of_all:
                return
            self._said[stage] = now
        self._events.publish(
            self._job.job_id, JobState.RUNNING, item=item, stage=stage, step=done, steps=of_all
        )

    def observe(self, stage: str, seconds: float, samples: int) -> None:
        """Some samples have gone through a stage of the own model."""
        self._metrics.seconds.labels(stage).observe(seconds)
        self._metrics.samples.labels(stage).inc(samples)
        with self._lock:
            self._observed[stage] += 1
            seen = self._observed[stage]
        if seen <= MOST_ITEMS:
            self._tracing.record(stage, seconds, parent=self._trace, samples=samples)

    def finished(self, item: int) -> None:
        self._metrics.items.labels("decode", "ok").inc()
        self._end(item, "done")

    def failed(self, item: int, reason: str) -> None:
        self._metrics.items.labels("encode", "failed").inc()
        self._end(item, "failed", reason)

    def _end(self, item: int, stage: str, reason: str = "") -> None:
        with self._lock:
            self._done += 1
            self._steps.pop(item, None)
            self._ranges.pop(item, None)
            self._events.publish(
                self._job.job_id,
                JobState.RUNNING,
                item=item,
                stage=stage,
                reason=reason,
                items_done=self._done,
                items=len(self._job.items),
            )
