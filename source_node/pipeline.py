"""One job's items through `bridge.translate`: the node's own model, the peer, and what is kept of each item.

`Pipeline` is the node's model as a `Party` that stores each latent before it leaves and sends a stored one again;
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
from contextlib import closing, suppress
from dataclasses import asdict, replace
from typing import Any

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
from ddib_fed.engine.record import LatentFigures, Translation
from ddib_fed.errors import (
    ContractUnknown,
    DdibError,
    InputError,
    LatentNotGaussian,
    StateConflict,
)
from ddib_fed.evaluation.samples import samples_of
from ddib_fed.models.units import ChannelMap
from ddib_fed.node.config import MAX_POINTS_PER_ITEM
from ddib_fed.node.model import MEDIA_TYPES, limits_of, rule_of_side
from ddib_fed.node.policy import check_evaluations, check_softening, policy_digest
from ddib_fed.node.probes import Metrics
from ddib_fed.node.role import NodeContext, solver_settings
from ddib_fed.protocol.contract import Contract, guidance_from_pb
from ddib_fed.protocol.latent import ApprovedLatent, approve
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.security.audit import RECEIPT, Exchanged, anchor_of
from ddib_fed.security.peers import Peer
from ddib_fed.telemetry import MOST_ITEMS, OFF, Tracing
from source_node.events import EventHub
from source_node.group_commit import Change, NewFile
from source_node.intake import Intake, Numbers, Work, rows_about
from source_node.records import PENDING_ITEMS, Item, Job, Part, error_record
from source_node.remote import RemoteParty, Remotes
from source_node.store import JobStore
from source_node.submission import calibration_of, check_allowed

log = logging.getLogger(__name__)

MOST_WRITES = 32
"""Results of one job that wait for the disk at once: enough for a batch to be made durable together."""
MOST_WRITE_BYTES = 8 << 20
"""Of the same; a single larger result goes."""


class Pipeline:
    """One job's way under one policy; made again for what an interruption, or another policy, left."""

    def __init__(
        self,
        node: NodeContext,
        store: JobStore,
        events: EventHub,
        remotes: Remotes,
        job: Job,
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
        limits = node.config.limits
        self._samples = samples_of(self._engine.model, limits_of(limits), MAX_POINTS_PER_ITEM)
        self._numbers = Numbers(job.items, self._engine.model.sample_shape)
        self._progress = JobProgress(events, node.metrics, job, self._numbers, node.tracing, trace)
        self._work: dict[int, Work] = {}
        self._failed: dict[int, DdibError] = {}
        self._storing: dict[int, Future[None]] = {}
        self._writing: deque[tuple[Future[None], int]] = deque()
        self._rotation: ChannelMap | None = None

    def run(self, items: Sequence[Item]) -> None:
        """Take the items as far as they go; returns when everything is on the disk."""
        request, policy = self._job.request, self._config.policy
        check_allowed(self._job.owner, request, self._config)
        peer = self._node.peers.get(request.target_institution)
        remote = self._remotes.get(request.target_institution)
        calibration = calibration_of(self._node, request)
        contract = remote.negotiate(
            self._node.side(),
            request.target_domain,
            self._control,
            None if calibration is None else calibration.terms,
        )
        self._on_answer()
        check_softening(contract.source.soften_sigma, policy)
        floor = contract.limits.min_evaluations
        check_evaluations(solver_settings(request.solver), floor, where=contract.target.institution)
        intake = self._intake(contract)
        outbound = Outbound(self._node, self._job.job_id, peer, contract)
        target = RemoteParty(
            remote,
            contract,
            request_id=self._job.job_id,
            read=lambda file, count: self._samples.answer(file, rule_of_side(contract.target), count),
            release=lambda latents: self._release(latents, outbound),
            receipt=outbound.receipt,
            batch_rows=max(1, self._engine.window // 2),
            tracing=self._node.tracing,
            trace=self._trace,
        )
        self._rotation = leg_map(calibration, self._engine.model.bundle.manifest)
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
        given = intake.each(items, self._begin, self._fail_item)
        try:
            with closing(translate(self, target, given, leg)) as outcomes:
                for outcome in outcomes:
                    self._take(outcome, contract, target)
            self._wait_for_writes(0)
        finally:
            self._settle()

    def _intake(self, contract: Contract) -> Intake:
        digest = policy_digest(self._config)
        return Intake(self._node, self._store, self._job, self._samples, contract, self._numbers, digest)

    def _begin(self, work: Work) -> None:
        self._work[work.item.index] = work
        self._progress.begins(work.item.index, len(work.ranges))

    def _place(self, number: int) -> tuple[Work | None, int]:
        return self._work.get(self._numbers.item(number)), self._numbers.place(number)

    def _settle(self) -> None:
        for future in [*self._storing.values(), *(future for future, _ in self._writing)]:
            with suppress(Exception):  # raised before, or the job has ended with another reason
                future.result()

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
            if work is None:  # its item was given up because of another range
                yield Failed(outcome.number, self._failed[self._numbers.item(outcome.number)])
                continue
            if isinstance(outcome, Encoded):
                self._keep_latent(work, place, outcome)
            yield outcome

    def _keep_latent(self, work: Work, place: int, encoded: Encoded) -> None:
        """Give a latent to the store; `_release` waits for it."""
        work.encoded[place] = encoded
        new = place not in work.made
        if new:
            self._progress.observe("encode", encoded.seconds, len(encoded.latent.data))
        whole = self._whole(work)
        if whole is not None:
            # An item of one range: the whole latent is the range's.
            work.kept = self._storing[encoded.number] = self._store.keep(whole)
        if new and len(work.ranges) > 1:
            file = NewFile(Part.ENCODED, encoded.latent.to_bytes(), range=place)
            change = Change(self._job.job_id, work.item.index, (file,), provenance=work.record.stored())
            if whole is None:
                self._storing[encoded.number] = self._store.keep(change)

    def _whole(self, work: Work) -> Change | None:
        """What is stored once the latents of all ranges are there; None before, and for one that is stored."""
        found = work.whole_latent
        if found is None or work.stored:
            return None
        latent, statistics = found
        work.record = work.record.with_(
            latent_sha256=latent.sha256.hex(),
            latent=LatentFigures(**asdict(statistics)),
            seconds={"encode": work.encode_seconds},
        )
        files = [NewFile(Part.ENCODED, latent.to_bytes())]
        if self._job.request.keep_latent:
            files.append(NewFile(Part.LATENT, to_npy(latent.data)))
        index, record = work.item.index, work.record.stored()
        return Change(self._job.job_id, index, files, ItemState.ENCODED, record)

    def decode_each(self, latents: Iterable[ToDecode], leg: Leg) -> Iterator[Decoded | Failed]:
        """Decode the latents that a cycle returns; progress is reported as the stage "return"."""

        def on_step(number: int, _: str, step: int, steps: int) -> None:
            self._progress.step(number, "return", step, steps)

        for outcome in self._engine.decode_each(latents, replace(leg, on_step=on_step)):
            if isinstance(outcome, Decoded):
                self._progress.observe("return", outcome.seconds, len(outcome.samples))
            yield outcome

    # What leaves

    def _release(self, latents: Sequence[ToDecode], outbound: Outbound) -> list[ApprovedLatent]:
        approved = outbound.approve([latent for latent in latents if self._is_stored(latent.number)])
        for each in approved:
            self._storing.pop(each.item, None)
            self._progress.sent(each.size_bytes)
        return approved

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

    # What comes back

    def _take(self, outcome: TranslatedItem | Failed, contract: Contract, target: RemoteParty) -> None:
        """A range that has gone all its way: the last one of an item finishes it."""
        number = outcome.number if isinstance(outcome, Failed) else outcome.item.number
        work, place = self._place(number)
        if work is None:
            return
        if isinstance(outcome, Failed):
            self._fail_item(work.item.index, outcome.error)
            return
        work.found[place] = outcome
        if (found := work.translated) is None:
            return
        try:
            change = self._result(work, *found, contract)
        except (InputError, LatentNotGaussian) as error:
            # One that cannot be written ends this item and no other.
            self._fail_item(work.item.index, target.unusable(error))
        else:
            self._write(work, change)

    def _result(self, work: Work, there: Decoded, back: Decoded | None, contract: Contract) -> Change:
        """The files and the record of a translation."""
        files: list[NewFile] = []
        record = work.record.with_(seconds={"remote": there.seconds}, wire_bytes=there.wire_bytes)

        def add(part: Part, make: Callable[[], Any]) -> Translation:
            with self._node.decoding.work(self._job.owner, self._samples.output_memory(work.given)):
                made = make()
            files.append(NewFile(part, made.file, MEDIA_TYPES[self._samples.format]))
            return record.with_(**made.figures)

        given = work.given
        record = add(
            Part.TRANSLATION,
            lambda: self._samples.translation(
                there.samples, rule_of_side(contract.target), given, self._rotation
            ),
        )
        if given.model_size:
            record = add(Part.SOURCE, lambda: self._samples.source(given))
        if back is not None:
            record = add(Part.RETURNED, lambda: self._samples.returned(given, back))
            record = record.with_(seconds={"return": back.seconds})
            if given.is_fitted:
                record = record.with_(picture=self._at_own_size(work.item, back))
        index = work.item.index
        return Change(self._job.job_id, index, files, ItemState.DECODED, record.stored())

    def _at_own_size(self, item: Item, back: Decoded) -> Mapping[str, float]:
        """Figures of the round trip against the picture as it was sent."""
        job_id, owner = self._job.job_id, self._job.owner

        def load() -> bytes:
            return self._store.read_part(job_id, item.index, Part.INPUT)

        with self._node.decoding.file(owner, item.size_bytes, load, self._samples.memory) as content:
            return self._samples.returned_at_own_size(content, back)

    def _write(self, work: Work, change: Change) -> None:
        """Give a result to the store; few wait there, however fast the peer is."""
        if work.kept is not None:
            work.kept.result()  # its latent was sent, so it is there; the item's step may have failed
        size = sum(len(file.data) for file in change.files)
        self._wait_for_writes(size)
        index = work.item.index
        self._work.pop(index, None)
        future = self._store.keep(change)
        self._writing.append((future, size))
        future.add_done_callback(lambda done: None if done.exception() else self._progress.finished(index))

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
        self._failed[index] = error.kept()
        self._work.pop(index, None)
        self._store.fail_item(self._job.job_id, index, error_record(error))
        self._progress.failed(index, error.reason)


TRY_AGAIN_S = 0.1


class Outbound:
    """The latents of one try, and the receipts of its calls."""

    def __init__(self, node: NodeContext, job_id: str, peer: Peer, contract: Contract) -> None:
        self._node = node
        self._peer = peer
        self._job_id = job_id
        self._contract = contract

    def approve(self, latents: Sequence[ToDecode]) -> list[ApprovedLatent]:
        """Latents that are fit to leave, recorded as sent."""
        contract, peer = self._contract, self._contract.target.institution
        if not self._node.peers.get(peer).still_vouches_for(self._peer):
            raise ContractUnknown(
                f"the entry of {peer} was replaced meanwhile: a contract is agreed on over a new connection",
                retry_after_s=TRY_AGAIN_S,
            )
        approved = []
        for latent in latents:
            assert latent.statistics is not None  # the own model's gate measured them
            approved.append(approve(latent.latent, contract, latent.statistics, item=latent.number))
        head = self._node.audit.write_each(
            "latent_sent",
            [
                {
                    "job": self._job_id,
                    "item": latent.number,
                    "peer": peer,
                    "latent": latent.latent.sha256.hex(),
                    "contract": contract.digest.hex(),
                    "calibration": str(contract.calibration or ""),
                }
                for latent in latents
            ],
        )
        return [each.recorded(anchor_of(head)) for each in approved]

    def receipt(self, exchanged: Exchanged) -> None:
        """Record what a call exchanged, and the peer's anchor; its latents are recorded already."""
        if not exchanged.sent_items:
            return
        try:
            self._node.audit.write(
                RECEIPT,
                job=self._job_id,
                peer=self._contract.target.institution,
                contract=self._contract.digest.hex(),
                policy=self._node.policy_sha256,
                **exchanged.values(),
            )
        except OSError:
            log.exception("the receipt of job %s could not be written to the audit log", self._job_id)


STEPS_EVERY_S = 0.1
"""Steps of one stage are published at most this often, whichever item they are of: an event for every step of every
item in flight costs the node, and each client that watches, more than storing it."""


class JobProgress:
    """Publishes the events of one job; safe to use from any thread."""

    def __init__(
        self,
        events: EventHub,
        metrics: Metrics,
        job: Job,
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
        self._several = len(job.items) > 1
        self._ranges: dict[int, int] = {}
        self._stages: dict[tuple[int, str], int] = {}
        self._said: dict[str, float] = {}
        self._last: dict[tuple[int, str], int] = {}

    def begins(self, item: int, ranges: int) -> None:
        with self._lock:
            self._ranges[item] = ranges

    def step(self, number: int, stage: str, step: int, steps: int) -> None:
        """A range has gone so many steps of a stage: the item's steps are those of all its ranges."""
        item = self._numbers.item(number)
        now = time.monotonic()
        # Called on the engine's thread for every step: the steps of an item of one range need not be added up.
        if self._several and self._ranges.get(item) == 1 and self._just_said(stage, now):
            return
        with self._lock:
            ranges = self._ranges.get(item)
            if ranges is None:  # it has ended
                return
            so_far = self._stages.get((item, stage), 0) + step - self._last.get((number, stage), 0)
            self._stages[item, stage], self._last[number, stage] = so_far, step
            done, all_steps = min(so_far, ranges * steps), ranges * steps
            alone_at_its_end = done == all_steps and not self._several
            if self._just_said(stage, now) and not alone_at_its_end:
                return
            self._said[stage] = now
        self._events.publish(
            self._job.job_id, state=JobState.RUNNING, item=item, stage=stage, step=done, steps=all_steps
        )

    def _just_said(self, stage: str, now: float) -> bool:
        return now - self._said.get(stage, float("-inf")) < STEPS_EVERY_S

    def observe(self, stage: str, seconds: float, samples: int) -> None:
        """Some samples have gone through a stage of the own model."""
        self._metrics.seconds.labels(stage).observe(seconds)
        self._metrics.samples.labels(stage).inc(samples)
        with self._lock:
            self._observed[stage] += 1
            seen = self._observed[stage]
        if seen <= MOST_ITEMS:
            self._tracing.record(stage, seconds, parent=self._trace, samples=samples)

    def sent(self, size_bytes: int) -> None:
        self._metrics.latent_bytes.labels("out").inc(size_bytes)

    def finished(self, item: int) -> None:
        self._metrics.items.labels("decode", "ok").inc()
        self._end(item, "done")

    def failed(self, item: int, reason: str) -> None:
        self._metrics.items.labels("encode", "failed").inc()
        self._end(item, "failed", reason)

    def _end(self, item: int, stage: str, reason: str = "") -> None:
        with self._lock:
            self._done += 1
            self._ranges.pop(item, None)
            for key in [key for key in self._stages if key[0] == item]:
                del self._stages[key]
            for key in [key for key in self._last if self._numbers.item(key[0]) == item]:
                del self._last[key]
            self._events.publish(
                self._job.job_id,
                state=JobState.RUNNING,
                item=item,
                stage=stage,
                reason=reason,
                items_done=self._done,
                items=len(self._job.items),
            )
