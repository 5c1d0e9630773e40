"""A translation: items encoded by one party, decoded by another and, for a cycle, brought back by the first.

Every stage pulls from the one before it, so memory holds the items that the parties hold. A party that works beside its
caller (a remote one reads on its own thread) gets item n+1 encoded while item n is on the wire.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

from ddib_fed.bridge.party import (
    Array,
    Decoded,
    Encoded,
    Failed,
    Labels,
    Leg,
    Noise,
    Party,
    RowDraw,
    ToDecode,
    ToEncode,
)


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One picture or one set of points to translate."""

    number: int
    samples: Array
    source_class: Labels = None
    target_class: Labels = None
    noise: Noise | None = None
    there: RowDraw | None = None
    back: RowDraw | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Translated:
    """An item, translated."""

    item: Item
    encoded: Encoded
    decoded: Decoded
    back: Decoded | None = None


class _Way:
    """The items that are on their way, and those that failed."""

    def __init__(self, source: Party, target: Party, leg: Leg) -> None:
        self._source, self._target, self._leg = source, target, leg
        self._plain = replace(leg, calibration=None)
        self._items: dict[int, Item] = {}
        self._encoded: dict[int, Encoded] = {}
        self._decoded: dict[int, Decoded] = {}
        self._failed: list[Failed] = []

    def there(self, items: Iterable[Item]) -> Iterator[Decoded]:
        """What the target decodes."""
        for outcome in self._target.decode_each(self._latents(items), self._plain):
            if isinstance(outcome, Failed):
                self._fail(outcome)
            else:
                self._decoded[outcome.number] = outcome
                yield outcome

    def back(self, items: Iterable[Item]) -> Iterator[Decoded]:
        """What the source decodes of the translations' latents."""
        leg = replace(self._leg, round_trip=False, returning=True)
        for outcome in self._source.decode_each(self._returning(items), leg):
            if isinstance(outcome, Failed):
                self._fail(outcome)
            else:
                yield outcome

    def finished(self, number: int, back: Decoded | None = None) -> Translated:
        return Translated(self._items.pop(number), self._encoded.pop(number), self._decoded.pop(number), back)

    def failed(self) -> Iterator[Failed]:
        while self._failed:
            yield self._failed.pop(0)

    def _latents(self, items: Iterable[Item]) -> Iterator[ToDecode]:
        for outcome in self._source.encode_each(self._given(items), self._leg):
            if isinstance(outcome, Failed):
                self._fail(outcome)
                continue
            self._encoded[outcome.number] = outcome
            item = self._items[outcome.number]
            yield ToDecode(item.number, outcome.latent, item.target_class, item.there, outcome.statistics)

    def _given(self, items: Iterable[Item]) -> Iterator[ToEncode]:
        for item in items:
            self._items[item.number] = item
            yield ToEncode(item.number, item.samples, item.source_class, item.noise)

    def _returning(self, items: Iterable[Item]) -> Iterator[ToDecode]:
        for outcome in self.there(items):
            assert outcome.again is not None  # the leg asks for it
            item = self._items[outcome.number]
            yield ToDecode(item.number, outcome.again.latent, item.source_class, item.back)

    def _fail(self, outcome: Failed) -> None:
        for kept in (self._items, self._encoded, self._decoded):
            kept.pop(outcome.number, None)
        self._failed.append(outcome)


def translate(
    source: Party, target: Party, items: Iterable[Item], leg: Leg
) -> Generator[Translated | Failed, None, None]:
    """The translation of each item, or why there is none, as they are there; close it to end the work early."""
    way = _Way(source, target, leg)
    for outcome in way.back(items) if leg.round_trip else way.there(items):
        yield way.finished(outcome.number, outcome if leg.round_trip else None)
        yield from way.failed()
    yield from way.failed()
