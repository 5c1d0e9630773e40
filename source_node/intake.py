"""Reads the items of a job for translation: decoded samples, in ranges, with the latents that were made before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.engine.party import Array, Decoded, Encoded, ToTranslate, TranslatedItem
from ddib_fed.engine.record import Translation
from ddib_fed.errors import (
    ChunkCorrupt,
    DdibError,
    InputError,
    ItemNotFound,
    LatentNotGaussian,
    PointsTooMany,
)
from ddib_fed.evaluation.samples import Given, Samples
from ddib_fed.latent import Latent
from ddib_fed.node.role import NodeContext
from ddib_fed.protocol.contract import Contract
from ddib_fed.protocol.messages import ItemState
from ddib_fed.v1 import common_pb2
from source_node.records import NewFile, SpoolPart, StoredItem, StoredJob, classes_of
from source_node.store import JobStore
from source_node.submission import own_classes, recorded, target_classes

log = logging.getLogger(__name__)

RANGE_ROWS = 2_048
"""Points of a range. Not the engine's own measure: a restart, or another engine, must find the same ranges."""
MOST_POINTS = 10_000_000
"""Of an item, whatever node.toml says (`LimitsSection`)."""
ITEM_ERRORS = (InputError, LatentNotGaussian, ChunkCorrupt)
"""What is wrong with one item and no other."""
Made = tuple[Latent, LatentStatistics]
"""A latent that was made before."""


class Numbers:
    """Numbers of the ranges of a job's items."""

    def __init__(self, items: Sequence[StoredItem], sample_shape: Sequence[int]) -> None:
        self._stride = 1
        if len(sample_shape) == 1:  # a picture is one row
            # A number takes at least a byte.
            most = max((item.size_bytes // sample_shape[0] for item in items), default=1)
            self._stride = max(1, -(-min(most, MOST_POINTS) // RANGE_ROWS))

    def of(self, item: int, place: int) -> int:
        return item * self._stride + place

    def item(self, number: int) -> int:
        return number // self._stride

    def place(self, number: int) -> int:
        return number % self._stride


def rows_about(items: int, size_bytes: int, sample_shape: Sequence[int]) -> int:
    return items if len(sample_shape) > 1 else size_bytes // (4 * sample_shape[0])


def ranges_of(rows: int) -> list[slice]:
    count = -(-rows // RANGE_ROWS)
    return [slice(start, rows, count) for start in range(count)]


def woven(parts: Sequence[Array]) -> Array:
    """The rows of all ranges in the order of the item; the inverse of `ranges_of`."""
    if len(parts) == 1:
        return parts[0]
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for place, part in enumerate(parts):
        whole[place :: len(parts)] = part
    return whole


@dataclass(slots=True)
class ItemWork:
    """An item between its input and its result."""

    item: StoredItem
    given: Given
    record: Translation
    ranges: list[slice]
    made: Mapping[int, Made]
    encoded: dict[int, Encoded] = field(default_factory=dict)
    found: dict[int, TranslatedItem] = field(default_factory=dict)

    def samples(self, place: int) -> Array:
        return np.ascontiguousarray(self.given.samples[self.ranges[place]])

    @property
    def stored(self) -> bool:
        """Whether the item's whole latent was made before."""
        return bool(self.made) and self.item.state == ItemState.ENCODED

    @property
    def whole_latent(self) -> Made | None:
        """The item's latent and its statistics, once those of all ranges are there."""
        if len(self.encoded) < len(self.ranges):
            return None
        if len(self.ranges) == 1:
            return self.encoded[0].latent, self.encoded[0].statistics
        data = woven([self.encoded[place].latent.data for place in range(len(self.ranges))])
        return Latent.from_array(data), measured(data)

    @property
    def encode_seconds(self) -> float:
        return sum(encoded.seconds for encoded in self.encoded.values())

    @property
    def translated(self) -> tuple[Decoded, Decoded | None] | None:
        """What the target decoded and, for a cycle, what came back, once all ranges are there."""
        if len(self.found) < len(self.ranges):
            return None
        found = [self.found[place] for place in range(len(self.ranges))]
        back = [each.back for each in found if each.back is not None]
        there = _joined(self.item.index, [each.decoded for each in found])
        return there, _joined(self.item.index, back) if back else None


def measured(data: Array) -> LatentStatistics:
    return gaussianity.measure(torch.from_numpy(np.array(data)))


def _joined(number: int, parts: Sequence[Decoded]) -> Decoded:
    """Ranges, decoded, as one item; what only a single range has (its latent again) is left out."""
    if len(parts) == 1:
        return parts[0]
    normalised = [part.normalised for part in parts if part.normalised is not None]
    return Decoded(
        number,
        woven([part.samples for part in parts]),
        woven(normalised) if normalised else None,
        sum(part.seconds for part in parts),
        None,
        sum(part.wire_bytes for part in parts),
    )


class Intake:
    """Reads the items of one job under one contract."""

    def __init__(
        self,
        node: NodeContext,
        store: JobStore,
        job: StoredJob,
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
        self._own_classes = own_classes(node, job.request)
        self._target_classes = target_classes(contract.target, contract.limits.guidance, job.request)

    def each(
        self,
        items: Sequence[StoredItem],
        begins: Callable[[ItemWork], None],
        fails: Callable[[int, DdibError], None],
    ) -> Iterator[ToTranslate]:
        """The ranges of the items, as they are needed; those of one class of the target behind one another."""
        peer = self._contract.target.institution

        def noise(picture: Array) -> Array:
            return self._node.softener.for_picture(picture, peer)

        for item, own, to in self._by_target(items):
            try:
                work = self._begin(item)
            except ITEM_ERRORS as error:
                fails(item.index, error)
                continue
            begins(work)
            for place in range(len(work.ranges)):
                yield ToTranslate(
                    self._numbers.of(item.index, place),
                    work.samples(place),
                    own,
                    to,
                    noise,
                )

    def _by_target(self, items: Sequence[StoredItem]) -> list[tuple[StoredItem, int | None, int | None]]:
        """The items with the indices of their classes, sorted by the target's: a call has one class."""
        groups: dict[int | None, list[tuple[StoredItem, int | None, int | None]]] = {}
        for item in items:
            own, to = classes_of(self._job.request, item.index)
            label = self._target_classes[to]
            groups.setdefault(label, []).append((item, self._own_classes[own], label))
        return [each for group in groups.values() for each in group]

    def _begin(self, item: StoredItem) -> ItemWork:
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
        return ItemWork(
            item, given, record.with_(**self._terms(), picture=given.picture), ranges_of(rows), made
        )

    def _made(self, item: StoredItem, record: Translation | None) -> Mapping[int, Made]:
        """The latents of ranges that were made before, to be sent as they are; all of them of an encoded item."""
        if record is None:
            return {}
        job_id, made, lost = self._job.job_id, dict[int, Made](), ""
        before = record.source_model_sha256, record.calibration_sha256
        if before != (
            self._contract.source.model_sha256.hex(),
            recorded(self._contract)["calibration_sha256"],
        ):
            lost = "the model or the calibration was replaced"
        else:
            for part, place in self._store.parts(job_id, item.index):
                if part != SpoolPart.ENCODED:
                    continue
                try:
                    data = self._store.read_part(job_id, item.index, part, place)
                    latent = Latent.from_bytes(data, self._node.running_engine.model.sample_shape)
                except (ChunkCorrupt, ItemNotFound) as error:
                    lost = error.detail
                    continue
                made[place] = latent, measured(latent.data)
        if lost and (item.state == ItemState.ENCODED or not made):
            made = {}
            self._store.keep(job_id, item.index, state=ItemState.RECEIVED).result()
        if lost:
            log.info("item %d of job %s is encoded again: %s", item.index, job_id, lost)
        return made

    def _input(self, item: StoredItem, size_rule: str) -> Given:
        """The item's samples: as they were decoded when the job was submitted, by any model of the same rule."""
        job_id, given = self._job.job_id, None
        try:
            decoded = self._store.read_part(job_id, item.index, SpoolPart.DECODED)
            given = self._samples.again(decoded, size_rule)
        except (ChunkCorrupt, ItemNotFound) as error:
            log.info("item %d of job %s is decoded again: %s", item.index, job_id, error.detail)
        if given is None:
            with self.file(item) as content:
                given = self._samples.read(content, size_rule)
            data = given.to_bytes(self._samples.rule)
            file = NewFile(SpoolPart.DECODED, data, common_pb2.MEDIA_TYPE_UNSPECIFIED)
            self._store.keep(job_id, item.index, file).result()
        return given.at_model_size() if self._job.request.model_size else given

    def file(self, item: StoredItem) -> AbstractContextManager[bytes]:
        """What the client sent, while the memory that it takes when it is decoded is reserved."""
        return self._node.decoding.file(
            self._job.owner,
            item.size_bytes,
            lambda: self._store.read_part(self._job.job_id, item.index, SpoolPart.INPUT),
            self._samples.memory,
        )

    def _terms(self) -> dict[str, Any]:
        """Of whom and under what contract, for the record."""
        contract, offered = self._contract, self._contract.limits.guidance
        guided = self._job.request.guidance.HasField("classifier_scale") and offered is not None
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
