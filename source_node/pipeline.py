"""One job's items through `bridge.translate`: the node's own model, the peer, and what is kept of each item.

`JobSource` is the node's model as a party that stores a latent before it leaves and sends a stored one again;
`RemoteParty` is the peer. Memory holds a handful of items, whatever the job's size.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from ddib_fed.bridge.calibration.applied import leg_map
from ddib_fed.bridge.control import Control
from ddib_fed.bridge.party import Array, Decoded, Description, Encoded, Failed, Leg, ToDecode, ToEncode
from ddib_fed.bridge.translate import Item as Sample
from ddib_fed.bridge.translate import Translated, translate
from ddib_fed.bridge.translation_record import LatentFigures, Translation
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.errors import ChunkCorrupt, DdibError, InputError, ItemNotFound, LatentNotGaussian
from ddib_fed.latent import Latent
from ddib_fed.latent_types import FLOAT32
from ddib_fed.models.channel_map import ChannelMap
from ddib_fed.node.role import NodeContext
from ddib_fed.rpc.settings import solver_settings
from ddib_fed.samples.points import to_npy
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.contract import Contract
from ddib_fed.wire.jobs import ItemState, JobState
from ddib_fed.wire.latent import ApprovedLatent, approve
from source_node.calibrations import calibration_of, recorded
from source_node.classes import own_classes, target_classes
from source_node.jobs.events import EventHub
from source_node.jobs.records import PENDING_ITEMS, JobSpec, Part, error_record
from source_node.jobs.store import Item, Job, JobStore
from source_node.remote import Remotes
from source_node.remote_party import RemoteParty, description_of
from source_node.samples import Given, samples_of
from source_node.specs import check_versions, latent_types

log = logging.getLogger(__name__)
# What is wrong with one item and no other.
ITEM_ERRORS = (InputError, LatentNotGaussian, ChunkCorrupt)


@dataclass(slots=True)
class _Work:
    """An item between its input and its result."""

    item: Item
    given: Given
    stored: tuple[Latent, LatentStatistics] | None
    record: Translation


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
        self._samples = samples_of(self._engine, node.config.limits)
        self._work: dict[int, _Work] = {}
        self._rotation: ChannelMap | None = None
        self._lock = threading.Lock()
        self._done = sum(item.state not in PENDING_ITEMS for item in job.items)

    def run(self, items: Sequence[Item]) -> None:
        """Take the items as far as they go.

        Raises:
            DdibError: The job cannot go on now (UnavailableError and the like: try again) or at all.
        """
        spec = self._job.spec
        remote = self._remotes.get(spec.target_institution)
        calibration = calibration_of(self._node, spec)
        contract = remote.negotiate(
            self._node.side(),
            spec.target_domain,
            self._control,
            None if calibration is None else calibration.terms,
            latent_types(spec, self._node.config.policy),
        )
        check_versions(spec, contract.version, remote.hop)
        labels = _Labels(
            spec,
            own_classes(self._node, spec),
            target_classes(contract.target, contract.limits.guidance, spec),
        )
        target = RemoteParty(
            remote,
            contract,
            request_id=self._job.job_id,
            read=lambda file, count: self._samples.answer(file, contract.target, count),
            release=lambda latent: self._release(latent, contract),
        )
        self._rotation = leg_map(calibration, self._engine.model.bundle.manifest)
        leg = Leg(
            solver_settings(spec.solver),
            spec.guidance,
            round_trip=spec.cycle,
            control=self._control,
            on_step=self._step,
            calibration=self._rotation,
            flow=self._job.job_id,
            latent_type=contract.wire_type,
        )
        source = JobSource(self, contract)
        given = self._given(labels.by_target(items), contract, labels)
        with closing(translate(source, target, given, leg)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Failed):
                    self._fail_item(outcome.number, outcome.error)
                else:
                    self._finish(outcome, contract, target)

    # What goes in

    def _given(self, items: Sequence[Item], contract: Contract, labels: _Labels) -> Iterator[Sample]:
        """The items as they are needed; one that cannot be read fails, and the others go on."""
        peer = contract.target.institution

        def noise(picture: Array) -> Array:
            return self._node.softener.for_picture(picture, peer)

        for item in items:
            try:
                work = self._begin(item, contract)
            except ITEM_ERRORS as error:
                self._fail_item(item.index, error)
                continue
            self._work[item.index] = work
            yield Sample(item.index, work.given.samples, labels.own(item), labels.target(item), noise)

    def _begin(self, item: Item, contract: Contract) -> _Work:
        record = Translation.parse(item.provenance) if item.state == ItemState.ENCODED else None
        stored = None if record is None else self._stored(item, record, contract)
        if record is None or stored is None:
            given = self._input(item, contract.size_rule)
            record = Translation(input_sha256=item.sha256.hex(), samples=len(given.samples))
        else:
            # By the rule with which it was encoded, whatever the policy says by now.
            given = self._input(item, record.picture.size_rule if record.picture is not None else "none")
        return _Work(item, given, stored, record.with_(**self._terms(contract), picture=given.picture))

    def _stored(
        self, item: Item, record: Translation, contract: Contract
    ) -> tuple[Latent, LatentStatistics] | None:
        """The latent that was made before, to be sent as it is; none of another model or calibration, or damaged.

        Then the item is one that was only received, and is encoded again.
        """
        job_id = self._job.job_id
        try:
            before = record.source_model_sha256, record.calibration_sha256, record.latent_type or FLOAT32
            now = (
                contract.source.model_sha256.hex(),
                recorded(contract)["calibration_sha256"],
                contract.wire_type,
            )
            if before == now:
                data = self._store.read_part(job_id, item.index, Part.ENCODED)
                latent = Latent.from_bytes(data, self._engine.model.sample_shape, contract.wire_type)
                return latent, LatentStatistics(**record.latent.model_dump())
            log.info(
                "item %d of job %s is encoded again: the model, the calibration or the latent type was replaced",
                item.index,
                job_id,
            )
        except (ChunkCorrupt, ItemNotFound) as error:
            log.warning("item %d of job %s is encoded again: %s", item.index, job_id, error.detail)
        self._store.advance(job_id, item.index, ItemState.RECEIVED)
        return None

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
            "latent_type": contract.latent_type,
            **recorded(contract),
        }

    # What the own model does

    def encode_each(self, items: Iterable[ToEncode], leg: Leg) -> Iterator[Encoded | Failed]:
        """The items' latents: the stored one after an interruption, else a new one, stored before it is handed on.

        Raises:
            DdibError: As the leg's control says, or the store.
        """
        for outcome in self._engine.encode_each(items, leg, known=self._known):
            if isinstance(outcome, Encoded) and self._work[outcome.number].stored is None:
                self._keep_latent(outcome)
            yield outcome

    def _known(self, item: ToEncode) -> Encoded | None:
        """The latent that was stored before."""
        stored = self._work[item.number].stored
        return None if stored is None else Encoded(item.number, *stored, 0.0)

    def _keep_latent(self, encoded: Encoded) -> None:
        """Store a latent, before it can leave."""
        work, job_id = self._work[encoded.number], self._job.job_id
        work.record = work.record.with_(
            latent_sha256=encoded.latent.sha256.hex(),
            latent=LatentFigures(**asdict(encoded.statistics)),
            seconds={"encode": encoded.seconds},
        )
        self._store.put_part(job_id, encoded.number, Part.ENCODED, encoded.latent.to_bytes())
        if self._job.spec.keep_latent:
            self._store.put_part(job_id, encoded.number, Part.LATENT, to_npy(encoded.latent.data))
        self._store.advance(job_id, encoded.number, ItemState.ENCODED, work.record.stored())
        self._observe("encode", encoded.seconds, len(encoded.latent.data))

    def decode_each(self, latents: Iterable[ToDecode], leg: Leg) -> Iterator[Decoded | Failed]:
        """Decode the latents that a cycle returns; progress is reported as the stage "return"."""

        def on_step(number: int, _: str, step: int, steps: int) -> None:
            self._step(number, "return", step, steps)

        for outcome in self._engine.decode_each(latents, replace(leg, on_step=on_step)):
            if isinstance(outcome, Decoded):
                self._observe("return", outcome.seconds, len(outcome.samples))
            yield outcome

    # What leaves

    def _release(self, latent: ToDecode, contract: Contract) -> ApprovedLatent:
        """A latent that is fit to leave, and recorded as sent; the store has it already."""
        peer = contract.target.institution
        self._node.peers.get(peer)  # it may have been removed while this was encoded
        assert latent.statistics is not None  # the own model's gate measured them
        approved = approve(latent.latent, contract, latent.statistics, item=latent.number)
        self._node.audit.write(
            "latent_sent",
            job=self._job.job_id,
            item=latent.number,
            peer=peer,
            latent=latent.latent.sha256.hex(),
            contract=contract.digest.hex(),
            calibration=str(contract.calibration or ""),
        )
        self._node.metrics.latent_bytes.labels("out").inc(approved.size_bytes)
        return approved

    # What comes back

    def _finish(self, found: Translated, contract: Contract, target: RemoteParty) -> None:
        """Store a translation; one that cannot be written ends this item and no other."""
        try:
            self._keep(found, contract)
        except (InputError, LatentNotGaussian) as error:
            self._fail_item(found.item.number, target.unusable(error))

    def _keep(self, found: Translated, contract: Contract) -> None:
        work, decoded = self._work[found.item.number], found.decoded
        translation = self._write(
            work,
            Part.TRANSLATION,
            lambda: self._samples.translation(decoded.samples, contract.target, work.given, self._rotation),
        )
        if work.given.model_size:
            self._write(work, Part.SOURCE, lambda: self._samples.source(work.given))
        record = work.record.with_(
            **translation, seconds={"remote": decoded.seconds}, wire_bytes=decoded.wire_bytes
        )
        if (back := found.back) is not None:
            returned = self._write(
                work, Part.RETURNED, lambda: self._samples.returned(self._engine, work.given, back)
            )
            record = record.with_(**returned, seconds={"return": back.seconds})
        self._store.advance(self._job.job_id, work.item.index, ItemState.DECODED, record.stored())
        del self._work[work.item.index]
        self._node.metrics.items.labels("decode", "ok").inc()
        self._publish_end(work.item.index, "done")

    def _write(self, work: _Work, part: Part, make: Callable[[], Any]) -> dict[str, Any]:
        """Make a file and store it, within the node's memory for that; fields of the item's record."""
        with self._node.decoding.work(self._samples.output_memory(work.given)):
            made = make()
            self._store.put_part(self._job.job_id, work.item.index, part, made.file, self._samples.media_type)
        return dict(made.figures)

    # Telling

    def _fail_item(self, index: int, error: DdibError) -> None:
        self._work.pop(index, None)
        self._store.fail_item(self._job.job_id, index, error_record(error))
        self._node.metrics.items.labels("encode", "failed").inc()
        self._publish_end(index, "failed", reason=error.reason)

    def _observe(self, stage: str, seconds: float, samples: int) -> None:
        self._node.metrics.seconds.labels(stage).observe(seconds)
        self._node.metrics.samples.labels(stage).inc(samples)

    def _step(self, index: int, stage: str, step: int, steps: int) -> None:
        self._events.publish(
            self._job.job_id, state=JobState.RUNNING, item=index, stage=stage, step=step, steps=steps
        )

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


class JobSource:
    """The node's own model as the source of one job, a `Party`."""

    def __init__(self, pipeline: Pipeline, contract: Contract) -> None:
        self._pipeline = pipeline
        self._side = contract.source

    def describe(self) -> Description:
        """See `Party`."""
        return description_of(self._side)

    def encode_each(self, items: Iterable[ToEncode], leg: Leg) -> Iterator[Encoded | Failed]:
        """See `Party`."""
        return self._pipeline.encode_each(items, leg)

    def decode_each(self, latents: Iterable[ToDecode], leg: Leg) -> Iterator[Decoded | Failed]:
        """See `Party`."""
        return self._pipeline.decode_each(latents, leg)


@dataclass(frozen=True, slots=True)
class _Labels:
    """The classes of a job's items, as indices by what was asked for."""

    spec: JobSpec
    own_by_name: Mapping[str, int | None]
    target_by_name: Mapping[str, int | None]

    def own(self, item: Item) -> int | None:
        """The class with which the own model encodes the item."""
        return self.own_by_name[self.spec.classes_of(item.index)[0]]

    def target(self, item: Item) -> int | None:
        """The class that the target decodes to."""
        return self.target_by_name[self.spec.classes_of(item.index)[1]]

    def by_target(self, items: Sequence[Item]) -> list[Item]:
        """The items, those of one class of the target behind one another: a call has one class."""
        groups: dict[int | None, list[Item]] = {}
        for item in items:
            groups.setdefault(self.target(item), []).append(item)
        return [item for group in groups.values() for item in group]
