"""An item on its way, in row ranges where it is large.

A range is what the bridge and the wire know as an item: it is encoded, stored, sent and decoded by itself, so that the
stages of one large item overlap. Its number follows from the job alone: it is the same after a restart, ascends with
the items and the rows, and is the item's own number in a job without large items. What is recorded and delivered is of
the whole item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from ddib_fed.bridge.party import Array, Decoded, Encoded, ToDecode
from ddib_fed.bridge.records.translation_record import Translation
from ddib_fed.bridge.translate import Translated
from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.latent import Latent
from ddib_fed.runs.samples import Given
from ddib_fed.wire.contracts.contract import Contract
from ddib_fed.wire.latent import ApprovedLatent, approve
from source_node.jobs.records import Item

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
    found: dict[int, Translated] = field(default_factory=dict)
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


def approved_latent(latent: ToDecode, contract: Contract) -> ApprovedLatent:
    assert latent.statistics is not None  # the own model's gate measured them
    return approve(latent.latent, contract, latent.statistics, item=latent.number)
