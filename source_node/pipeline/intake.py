"""The items of a job as the bridge takes them: decoded samples, in ranges, with the latents that were made before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddib_fed.bridge.party import Array
from ddib_fed.bridge.records.translation_record import Translation
from ddib_fed.bridge.translate import Item as Sample
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.errors import (
    ChunkCorrupt,
    DdibError,
    InputError,
    ItemNotFound,
    LatentNotGaussian,
    PointsTooMany,
)
from ddib_fed.latent import Latent
from ddib_fed.node.role import NodeContext
from ddib_fed.runs.samples import Given, Samples
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.contracts.contract import Contract
from ddib_fed.wire.jobs import ItemState
from source_node.calibrations import recorded
from source_node.classes import own_classes, target_classes
from source_node.jobs.records import JobSpec, Part
from source_node.jobs.store import Change, Item, Job, JobStore
from source_node.pipeline.items import Made, Numbers, Work, measured, ranges_of, split

log = logging.getLogger(__name__)
# What is wrong with one item and no other.
ITEM_ERRORS = (InputError, LatentNotGaussian, ChunkCorrupt)


class Intake:
    """Reads the items of one job under one contract."""

    def __init__(
        self,
        node: NodeContext,
        store: JobStore,
        job: Job,
        samples: Samples,
        contract: Contract,
        numbers: Numbers,
        policy_sha256: str,
    ) -> None:
        self._node = node
        self._store = store
        self._job = job
        self._samples = samples
        self._contract = contract
        self._numbers = numbers
        self._policy_sha256 = policy_sha256
        self._labels = Labels(
            job.spec,
            own_classes(node, job.spec),
            target_classes(contract.target, contract.limits.guidance, job.spec),
        )

    def each(
        self,
        items: Sequence[Item],
        begins: Callable[[Work], None],
        fails: Callable[[int, DdibError], None],
    ) -> Iterator[Sample]:
        """The ranges of the items, as they are needed; those of one class of the target behind one another."""
        peer = self._contract.target.institution

        def noise(picture: Array) -> Array:
            return self._node.softener.for_picture(picture, peer)

        for item in self._labels.by_target(items):
            try:
                work = self._begin(item)
            except ITEM_ERRORS as error:
                fails(item.index, error)
                continue
            begins(work)
            for place in range(len(work.ranges)):
                yield Sample(
                    self._numbers.of(item.index, place),
                    work.samples(place),
                    self._labels.own(item),
                    self._labels.target(item),
                    noise,
                )

    def _begin(self, item: Item) -> Work:
        record = Translation.parse(item.provenance) if item.provenance else None
        made = self._made(item, record)
        if record is None or not made:
            given = self._input(item, self._contract.size_rule)
            record = Translation(input_sha256=item.sha256.hex(), samples=len(given.samples))
        else:
            # By the rule with which it was encoded, whatever the policy says by now.
            given = self._input(item, record.picture.size_rule if record.picture is not None else "none")
        if (rows := len(given.samples)) > (most := self._contract.limits.max_samples_per_item):
            raise PointsTooMany(
                f"{rows} samples, and the peer takes {most} in one item",
                facts={"points": rows, "limit_points": most},
            )
        record = record.with_(**self._terms(), picture=given.picture)
        stored = item.state == ItemState.ENCODED and bool(made)
        return Work(item, given, record, ranges_of(rows), made, stored)

    def _made(self, item: Item, record: Translation | None) -> Mapping[int, Made]:
        """The latents that were made before, to be sent as they are."""
        if record is None:
            return {}
        before = record.source_model_sha256, record.calibration_sha256
        now = (
            self._contract.source.model_sha256.hex(),
            recorded(self._contract)["calibration_sha256"],
        )
        if before != now:
            log.info(
                "item %d of job %s is encoded again: the model or the calibration was replaced",
                item.index,
                self._job.job_id,
            )
        elif item.state != ItemState.ENCODED:
            return self._made_ranges(item)
        elif (made := self._made_whole(item, record)) is not None:
            return made
        if item.state == ItemState.ENCODED:
            self._store.advance(self._job.job_id, item.index, ItemState.RECEIVED)
        else:
            self._store.keep(Change(self._job.job_id, item.index, forget_ranges=True)).result()
        return {}

    def _made_whole(self, item: Item, record: Translation) -> Mapping[int, Made] | None:
        """The ranges of the stored latent; None when the disk lost it."""
        try:
            data = self._store.read_part(self._job.job_id, item.index, Part.ENCODED)
            latent = self._latent(data)
        except (ChunkCorrupt, ItemNotFound) as error:
            log.warning("item %d of job %s is encoded again: %s", item.index, self._job.job_id, error.detail)
            return None
        if len(ranges_of(len(latent.data))) == 1:
            return {0: (latent, LatentStatistics(**record.latent.model_dump()))}
        return split(latent)

    def _made_ranges(self, item: Item) -> Mapping[int, Made]:
        """The ranges whose latents are stored although the item's is not yet."""
        made = {}
        for place, kept in self._store.ranges(self._job.job_id, item.index).items():
            try:
                data = self._store.read_range(self._job.job_id, item.index, kept)
                latent = self._latent(data)
            except (ChunkCorrupt, ItemNotFound) as error:
                log.warning("a range of job %s is encoded again: %s", self._job.job_id, error.detail)
                continue
            made[place] = latent, measured(latent.data)
        return made

    def _latent(self, data: bytes) -> Latent:
        return Latent.from_bytes(data, self._node.running_engine.model.sample_shape)

    def _input(self, item: Item, size_rule: str) -> Given:
        given = self._decoded(item, size_rule)
        return given.at_model_size() if self._job.spec.model_size else given

    def _decoded(self, item: Item, size_rule: str) -> Given:
        """The item's samples: as they were decoded when the job was submitted, by any model of the same rule."""
        job_id = self._job.job_id

        def load() -> bytes:
            return self._store.read_part(job_id, item.index, Part.INPUT)

        try:
            given = self._samples.again(self._store.read_part(job_id, item.index, Part.DECODED), size_rule)
        except (ChunkCorrupt, ItemNotFound) as error:
            log.info("item %d of job %s is decoded again: %s", item.index, job_id, error.detail)
            given = None
        if given is None:
            owner = self._job.spec.owner
            with self._node.decoding.file(owner, item.size_bytes, load, self._samples.memory) as content:
                given = self._samples.read(content, size_rule)
                data = given.to_bytes(self._samples.rule)
                self._store.put_part(
                    job_id, item.index, Part.DECODED, data, common_pb2.MEDIA_TYPE_UNSPECIFIED
                )
        return given

    def _terms(self) -> dict[str, Any]:
        """Of whom and under what contract, for the record."""
        contract, offered = self._contract, self._contract.limits.guidance
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
            "policy_sha256": self._policy_sha256,
            **recorded(contract),
        }


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes of a job's items, as indices by what was asked for."""

    spec: JobSpec
    own_by_name: Mapping[str, int | None]
    target_by_name: Mapping[str, int | None]

    def own(self, item: Item) -> int | None:
        return self.own_by_name[self.spec.classes_of(item.index)[0]]

    def target(self, item: Item) -> int | None:
        return self.target_by_name[self.spec.classes_of(item.index)[1]]

    def by_target(self, items: Sequence[Item]) -> list[Item]:
        """The items, those of one class of the target behind one another: a call has one class."""
        groups: dict[int | None, list[Item]] = {}
        for item in items:
            groups.setdefault(self.target(item), []).append(item)
        return [item for group in groups.values() for item in group]
