"""Runs one job's items through encode, the peer and (for a cycle) back, stage beside stage.

The encoder fills a queue of two latents, gRPC empties it, the caller's thread reads what comes back, and a worker
decodes returned latents: memory holds a handful of items whatever the job's size.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.party import Array, Encoded, Leg, ToDecode, ToEncode
from ddib_fed.bridge.translation_record import LatentFigures, Translation
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.errors import (
    ChunkCorrupt,
    DdibError,
    InputError,
    ItemNotFound,
    LatentNotGaussian,
    MessageInvalid,
)
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.latent import Latent
from ddib_fed.node.role import NodeContext
from ddib_fed.rpc.settings import solver_settings
from ddib_fed.samples.points import to_npy
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.contract import Contract
from ddib_fed.wire.guidance import check_version
from ddib_fed.wire.jobs import ItemState, JobState
from ddib_fed.wire.latent import ApprovedLatent, approve
from ddib_fed.wire.version import SPOKEN
from source_node.classes import own_classes, target_classes
from source_node.jobs.events import EventHub
from source_node.jobs.records import PENDING_ITEMS, Part, error_record
from source_node.jobs.store import Item, Job, JobStore
from source_node.remote import DecodeCall, Decoded, Progress, Remotes
from source_node.samples import Given, samples_of

# Latents that wait for the wire; the one being encoded and the one being sent come on top.
QUEUED_LATENTS = 2
# How often a blocked stage looks whether it should still wait.
POLL_S = 0.2
# Answers that are being brought home, or wait for it; then the peer waits.
RETURNING = 2

log = logging.getLogger(__name__)


class Pipeline:
    """One job's way; `run` may be called again for what an interruption left."""

    def __init__(
        self,
        node: NodeContext,
        store: JobStore,
        events: EventHub,
        remotes: Remotes,
        job: Job,
        control: Control,
    ) -> None:
        self._node = node
        self._engine = node.running_engine
        self._store = store
        self._events = events
        self._remotes = remotes
        self._job = job
        self._control = control
        self._settings = solver_settings(job.spec.solver)
        self._samples = samples_of(self._engine, node.config.limits)
        self._own_labels: Mapping[str, int | None] = {}
        self._target_labels: Mapping[str, int | None] = {}
        self._sent: dict[int, _Sent] = {}
        self._lock = threading.Lock()
        self._done = sum(item.state not in PENDING_ITEMS for item in job.items)

    def run(self, items: Sequence[Item]) -> None:
        """Take the items as far as they go.

        Raises:
            DdibError: The job cannot go on now (UnavailableError and the like: try again) or at all.
        """
        spec = self._job.spec
        remote = self._remotes.get(spec.target_institution)
        contract = remote.negotiate(self._node.side(), spec.target_domain, self._control)
        self._check_request(contract, remote.hop)
        batch = contract.limits.max_items_per_stream
        for group in self._by_target_class(items):
            for start in range(0, len(group), batch):
                self._stream(contract, {item.index for item in group[start : start + batch]})

    def _check_request(self, contract: Contract, hop: str) -> None:
        """Before anything is encoded: the classes and the guidance that were asked for, on either side.

        Raises:
            ContractMismatch: The peer's version has no guidance, and some is asked for.
            SettingsInvalid: There is no class of a name or index, the own model cannot do without one, or a side
                does not offer the guidance.
            PolicyDenied: A side's policy does not allow as much guidance.
        """
        spec = self._job.spec
        check_version(spec.guidance, contract.version, hop, SPOKEN)
        self._own_labels = own_classes(self._node, spec)
        self._target_labels = target_classes(contract.target, contract.limits.guidance, spec)

    def _by_target_class(self, items: Sequence[Item]) -> list[list[Item]]:
        """Items that one call can decode: a call has one class of the target."""
        groups: dict[int | None, list[Item]] = {}
        for item in items:
            groups.setdefault(self._target_label(item), []).append(item)
        return list(groups.values())

    def _own_label(self, item: Item) -> int | None:
        """The class that the own model is told."""
        return self._own_labels[self._job.spec.classes_of(item.index)[0]]

    def _target_label(self, item: Item) -> int | None:
        """The class that the target decodes to."""
        return self._target_labels[self._job.spec.classes_of(item.index)[1]]

    def _stream(self, contract: Contract, numbers: Collection[int]) -> None:
        """One Decode call; an item that the peer refuses is failed, and the rest goes on in another call."""
        while left := self._left(numbers):
            try:
                self._one_call(contract, left)
            except (InputError, LatentNotGaussian) as error:
                named = error.facts.get("item")
                refused = [item for item in self._left(numbers) if str(item.index) == named]
                if not refused:
                    raise
                self._fail_item(refused[0].index, error)
            else:
                if self._left(numbers):
                    raise MessageInvalid("the peer ended in order, and items are left")
                return

    def _left(self, numbers: Collection[int]) -> list[Item]:
        """Which of these items are still to do, as they are now: a call that broke off left some of them encoded."""
        items = self._store.get(self._job.job_id).items
        return [item for item in items if item.index in numbers and item.state in PENDING_ITEMS]

    def _one_call(self, contract: Contract, items: Sequence[Item]) -> None:
        spec = self._job.spec
        outgoing = _Outgoing(self._control)
        call = self._remotes.get(spec.target_institution).decode(
            contract,
            request_id=self._job.job_id,
            solver=self._settings,
            round_trip=spec.cycle,
            target_class=self._target_label(items[0]),
            guidance=spec.guidance,
            items=len(items),
            latents=iter(outgoing),
            control=self._control,
        )
        encoder = _Encoder(
            lambda: self._encode_all(items, contract, outgoing), outgoing, on_error=call.cancel
        )
        with call, encoder:
            try:
                self._take_answers(call, contract)
            except DdibError:
                # What the encoder met is the cause; the call's own error only follows from it.
                encoder.reraise()
                self._control.check()
                raise
        encoder.reraise()

    def _take_answers(self, call: DecodeCall, contract: Contract) -> None:
        """Read what comes back while a worker brings the answers before it home; a slow worker slows the peer."""
        returning: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="return") as worker:
            for answer in call:
                if isinstance(answer, Progress):
                    self._step(answer.item, answer.stage)(answer.step, answer.steps)
                    continue
                while len(returning) >= RETURNING or (returning and returning[0].done()):
                    returning.popleft().result()
                returning.append(worker.submit(self._receive, answer, contract))
            for future in returning:
                future.result()

    # Encode

    def _encode_all(self, items: Sequence[Item], contract: Contract, outgoing: _Outgoing) -> None:
        for item in items:
            outgoing.check()
            try:
                approved = self._encode(item, contract)
            except (InputError, LatentNotGaussian, ChunkCorrupt) as error:
                self._fail_item(item.index, error)
                continue
            outgoing.put(approved)
        outgoing.put(None)

    def _encode(self, item: Item, contract: Contract) -> ApprovedLatent:
        """The item's latent, fit to leave: the stored one after an interruption, else a new one."""
        stored = self._stored(item, contract) if item.state == ItemState.ENCODED else None
        latent, statistics, record = stored or self._encode_anew(item, contract)
        self._sent[item.index] = _Sent(item, record)
        self._node.peers.get(contract.target.institution)  # it may have been removed while this was encoded
        approved = approve(latent, contract, statistics, item=item.index)
        self._node.audit.write(
            "latent_sent",
            job=self._job.job_id,
            item=item.index,
            peer=contract.target.institution,
            latent=latent.sha256.hex(),
            contract=contract.digest.hex(),
        )
        self._node.metrics.latent_bytes.labels("out").inc(approved.size_bytes)
        return approved

    def _stored(self, item: Item, contract: Contract) -> tuple[Latent, LatentStatistics, Translation] | None:
        """The latent that was made before, to be sent as it is; none when it is another model's, or damaged.

        Then the item is one that was only received, and is encoded again.
        """
        job_id, record = self._job.job_id, Translation.parse(item.provenance)
        try:
            if record is not None and record.source_model_sha256 == contract.source.model_sha256.hex():
                data = self._store.read_part(job_id, item.index, Part.ENCODED)
                latent = Latent.from_bytes(data, self._engine.model.sample_shape)
                statistics = LatentStatistics(**record.latent.model_dump())
                return latent, statistics, record.with_(**self._terms(contract))
            log.info("item %d of job %s is encoded again: the model was replaced", item.index, job_id)
        except (ChunkCorrupt, ItemNotFound) as error:
            log.warning("item %d of job %s is encoded again: %s", item.index, job_id, error.detail)
        self._store.advance(job_id, item.index, ItemState.RECEIVED)
        return None

    def _encode_anew(self, item: Item, contract: Contract) -> tuple[Latent, LatentStatistics, Translation]:
        """A new latent, stored before it is sent."""
        job_id, peer = self._job.job_id, contract.target.institution

        def noise(picture: Array) -> Array:
            return self._node.softener.for_picture(picture, peer)

        given = self._input(item, contract.size_rule)
        encoded = self._engine.encode(
            ToEncode(item.index, given.samples, self._own_label(item), noise), self._leg("encode")
        )
        record = self._record(item, encoded, contract).with_(picture=given.picture)
        self._store.put_part(job_id, item.index, Part.ENCODED, encoded.latent.to_bytes())
        if self._job.spec.keep_latent:
            self._store.put_part(job_id, item.index, Part.LATENT, to_npy(encoded.latent.data))
        self._store.advance(job_id, item.index, ItemState.ENCODED, record.stored())
        self._observe("encode", encoded.seconds, len(given.samples))
        return encoded.latent, encoded.statistics, record

    def _input(self, item: Item, size_rule: str) -> Given:
        """The item's samples, and whether results keep the models' size."""
        return replace(self._decoded(item, size_rule), model_size=self._job.spec.model_size)

    def _decoded(self, item: Item, size_rule: str) -> Given:
        """The item's samples: as they were decoded when the job was submitted, by any model of the same rule.

        Items of an older release, of a model of another rule, or whose samples were damaged are decoded again.
        """
        job_id = self._job.job_id

        def load() -> bytes:
            return self._store.read_part(job_id, item.index, Part.INPUT)

        try:
            given = self._samples.again(self._store.read_part(job_id, item.index, Part.DECODED), size_rule)
        except (ChunkCorrupt, ItemNotFound) as error:
            log.info("item %d of job %s is decoded again: %s", item.index, job_id, error.detail)
            given = None
        if given is None:
            with self._node.decoding.file(item.size_bytes, load, self._samples.memory) as content:
                given = self._samples.read(content, size_rule)
                data = given.to_bytes(self._samples.rule)
                self._store.put_part(
                    job_id, item.index, Part.DECODED, data, common_pb2.MEDIA_TYPE_UNSPECIFIED
                )
        return given

    def _terms(self, contract: Contract) -> dict[str, Any]:
        """Of whom and under what contract, for the record."""
        offered = contract.limits.guidance
        guided = self._job.spec.guidance.classifier_scale is not None and offered is not None
        return {
            "source_institution": contract.source.institution,
            "source_domain": contract.source.domain,
            "target_institution": contract.target.institution,
            "target_domain": contract.target.domain,
            "contract_sha256": contract.digest.hex(),
            "source_model_sha256": contract.source.model_sha256.hex(),
            "target_model_sha256": contract.target.model_sha256.hex(),
            "classifier_sha256": offered.classifier_sha256.hex() if guided and offered else "",
            "soften_sigma": contract.source.soften_sigma,
        }

    def _record(self, item: Item, encoded: Encoded, contract: Contract) -> Translation:
        """What is known once the item is encoded."""
        return Translation(
            **self._terms(contract),
            input_sha256=item.sha256.hex(),
            latent_sha256=encoded.latent.sha256.hex(),
            latent=LatentFigures(**asdict(encoded.statistics)),
            samples=int(encoded.latent.data.shape[0]),
            seconds={"encode": encoded.seconds},
        )

    # What comes back

    def _receive(self, answer: Decoded, contract: Contract) -> None:
        """Bring one answer home; what is wrong with it ends this item and no other."""
        sent = self._sent[answer.item]
        picture = sent.record.picture
        try:
            # By the rule with which it was encoded, whatever the policy says by now.
            given = self._input(sent.item, picture.size_rule if picture is not None else "none")
        except InputError as error:
            self._fail_item(answer.item, error)
            return
        try:
            self._keep(answer, sent, given, contract)
        except (InputError, LatentNotGaussian) as error:
            log.warning(
                "item %d of job %s: the answer is refused: %s", answer.item, self._job.job_id, error.detail
            )
            refusal = MessageInvalid(
                f"{contract.target.institution} answered with what cannot be used: {error.detail}",
                hop=f"target {contract.target.institution}",
                facts={"peer": contract.target.institution, "answer": error.reason},
            )
            self._fail_item(answer.item, refusal)

    def _keep(self, answer: Decoded, sent: _Sent, given: Given, contract: Contract) -> None:
        """Store a translation, and close the cycle where one was asked for."""
        job_id, record = self._job.job_id, sent.record
        with self._node.decoding.work(self._samples.output_memory(given)):
            translation = self._samples.translation(answer.file, contract.target, given)
            self._store.put_part(
                job_id, answer.item, Part.TRANSLATION, translation.file, self._samples.media_type
            )
            if given.model_size:
                source = self._samples.source(given)
                self._store.put_part(job_id, answer.item, Part.SOURCE, source, self._samples.media_type)
        record = record.with_(picture=given.picture).with_(
            **translation.figures, seconds={"remote": answer.seconds}
        )
        crossed = answer.sent_bytes + len(answer.file)
        if answer.round_trip is not None:
            crossed += len(answer.round_trip)
            latent = Latent.from_bytes(answer.round_trip, contract.sample_shape)
            record = record.with_(**self._close_cycle(sent, given, latent))
        record = record.with_(wire_bytes=crossed)
        self._store.advance(job_id, answer.item, ItemState.DECODED, record.stored())
        self._node.metrics.items.labels("decode", "ok").inc()
        self._publish_end(answer.item, "done")

    def _close_cycle(self, sent: _Sent, given: Given, latent: Latent) -> dict[str, Any]:
        """Decode the translation's latent with the own model, keep it, and measure how far it is from the input.

        Returns:
            Fields of the item's record.
        """
        index = sent.item.index
        decoded = self._engine.decode(
            ToDecode(index, latent, self._own_label(sent.item)), self._leg("return", self._job.spec.guidance)
        )
        with self._node.decoding.work(self._samples.output_memory(given)):
            file = self._samples.returned(decoded.samples, given)
            self._store.put_part(self._job.job_id, index, Part.RETURNED, file, self._samples.media_type)
        self._observe("return", decoded.seconds, len(decoded.samples))
        measured = self._samples.cycle(self._engine, given, decoded)
        return {**measured, "seconds": {"return": decoded.seconds}}

    # Telling

    def _fail_item(self, index: int, error: DdibError) -> None:
        self._store.fail_item(self._job.job_id, index, error_record(error))
        self._node.metrics.items.labels("encode", "failed").inc()
        self._publish_end(index, "failed", reason=error.reason)

    def _observe(self, stage: str, seconds: float, samples: int) -> None:
        self._node.metrics.seconds.labels(stage).observe(seconds)
        self._node.metrics.samples.labels(stage).inc(samples)

    def _leg(self, stage: str, guidance: Guidance = UNGUIDED) -> Leg:
        """What the own model is asked; progress is told under the name of the stage."""

        def on_step(number: int, _: str, step: int, steps: int) -> None:
            self._step(number, stage)(step, steps)

        return Leg(self._settings, guidance, control=self._control, on_step=on_step)

    def _step(self, index: int, stage: str) -> Callable[[int, int], None]:
        def on_step(step: int, steps: int) -> None:
            self._events.publish(
                self._job.job_id, state=JobState.RUNNING, item=index, stage=stage, step=step, steps=steps
            )

        return on_step

    def _publish_end(self, index: int, stage: str, *, reason: str = "") -> None:
        with self._lock:
            self._done += 1
            self._events.publish(
                self._job.job_id,
                state=JobState.RUNNING,
                item=index,
                stage=stage,
                reason=reason,
                items_done=self._done,
                items=len(self._job.items),
            )


@dataclass(frozen=True, slots=True)
class _Sent:
    """An item that went to the peer, and what is recorded of it."""

    item: Item
    record: Translation


class _Encoder:
    """The encoding stage on a thread of its own; its error is kept for whoever runs the pipeline."""

    def __init__(
        self, work: Callable[[], None], outgoing: _Outgoing, *, on_error: Callable[[], None]
    ) -> None:
        self._work = work
        self._outgoing = outgoing
        self._on_error = on_error
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """No more latents are wanted; the item in hand is finished and stored first."""
        self._outgoing.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by `reraise` on the pipeline's thread
            self._error = error
            self._on_error()

    def reraise(self) -> None:
        if self._error is not None:
            raise self._error


class _Stopped(Exception):  # noqa: N818 - a signal between two threads of this module
    """The call ended before the encoder did."""


class _Outgoing:
    """Latents between the encoder and gRPC: bounded, and left by both when the call is over."""

    def __init__(self, control: Control) -> None:
        self._queue: queue.Queue[ApprovedLatent | None] = queue.Queue(QUEUED_LATENTS)
        self._control = control
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def check(self) -> None:
        self._control.check()
        if self._stopped.is_set():
            raise _Stopped

    def put(self, latent: ApprovedLatent | None) -> None:
        while True:
            self.check()
            try:
                self._queue.put(latent, timeout=POLL_S)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[ApprovedLatent | None]:
        """The latents, and None after the last; it ends without it when the call is over."""
        while not (self._control.cancelled or self._stopped.is_set()):
            try:
                latent = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                continue
            yield latent
