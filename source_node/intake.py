"""Reads the items of a job for translation: decoded samples, in ranges, with the latents that were made before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
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
from source_node.group_commit import Change
from source_node.records import Item, Job, Part, classes_of
from source_node.store import JobStore
from source_node.submission import own_classes, recorded, target_classes

RANGE_ROWS = 2_048
"""Points of a range. Not the engine's own measure: a restart, or another engine, must find the same ranges."""
MOST_POINTS = 10_000_000
"""Of an item, whatever node.toml says (`LimitsSection`)."""

Made = tuple[Latent, LatentStatistics]
"""A latent that was made before."""


class Numbers:
    """Numbers of the ranges of a job's items."""

    def __init__(self, items: Sequence[Item], sample_shape: Sequence[int]) -> None:
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
class Work:
    """An item between its input and its result."""

    item: Item
    given: Given
    record: Translation
    ranges: list[slice]
    made: Mapping[int, Made]
    stored: bool
    encoded: dict[int, Encoded] = field(default_factory=dict)
    found: dict[int, TranslatedItem] = field(default_factory=dict)
    kept: Future[None] | None = None

    def samples(self, place: int) -> Array:
        return np.ascontiguousarray(self.given.samples[self.ranges[place]])

    @property
    def whole_latent(self) -> Made | None:
        """The item's latent and its statistics, once those of all ranges are there."""
        if len(self.encoded) < len(self.ranges):
            return None
        if len(self.ranges) == 1:
            return self.encoded[0].latent, self.encoded[0].statistics
        parts = [self.encoded[place].latent for place in range(len(self.ranges))]
        data = woven([part.data for part in parts])
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


def split(latent: Latent) -> dict[int, Made]:
    """The ranges of a whole latent, as they were before they were joined."""
    made = {}
    for place, rows in enumerate(ranges_of(len(latent.data))):
        part = Latent.from_array(np.ascontiguousarray(latent.data[rows]))
        made[place] = part, measured(part.data)
    return made


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
        self._own_classes = own_classes(node, job.request)
        self._target_classes = target_classes(contract.target, contract.limits.guidance, job.request)

    def each(
        self,
        items: Sequence[Item],
        begins: Callable[[Work], None],
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

    def _by_target(self, items: Sequence[Item]) -> list[tuple[Item, int | None, int | None]]:
        """The items with the indices of their classes, sorted by the target's: a call has one class."""
        groups: dict[int | None, list[tuple[Item, int | None, int | None]]] = {}
        for item in items:
            own, to = classes_of(self._job.request, item.index)
            label = self._target_classes[to]
            groups.setdefault(label, []).append((item, self._own_classes[own], label))
        return [each for group in groups.values() for each in group]

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
                data = self._store.read_part(self._job.job_id, item.index, kept)
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
        return given.at_model_size() if self._job.request.model_size else given

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
            owner = self._job.owner
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
