"""The slices of a volume as items, and what is said of their translations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ImageUnreadable
from ddib_fed.formats.intensity import Rule, is_empty, item_bytes
from ddib_fed.formats.measures import measure_flicker
from ddib_fed.formats.study import Translated
from ddib_fed.samples.formats.decoded import Pixels


@dataclass(frozen=True, slots=True)
class Slices:
    """A volume in the numbers that a model takes."""

    numbers: Pixels
    sent: tuple[int, ...]
    intensity: dict[str, Any]
    rule: str

    @classmethod
    def of(cls, values: NDArray[Any], rule: Rule) -> Slices:
        """The slices of a volume."""
        intensity = rule.on(values)
        # What is sent as it is has one type for the whole volume; all else is made slice by slice, to save memory.
        whole = intensity.as_it_is
        numbers = intensity.numbers(values) if whole else np.stack([intensity.numbers(v) for v in values])
        least, most = float(numbers.min()), float(numbers.max())
        sent = tuple(
            at for at, plane in enumerate(numbers) if not is_empty(plane, least, max(most - least, 1e-9))
        )
        if not sent:
            raise ImageUnreadable("none of its slices shows anything but background")
        return cls(numbers, sent, intensity.record(values), rule.text)

    @property
    def size(self) -> tuple[int, int]:
        return int(self.numbers.shape[1]), int(self.numbers.shape[2])

    def items(self) -> Iterator[bytes]:
        for at in self.sent:
            yield item_bytes(self.numbers[at])

    def stack(self, translated: Translated) -> Pixels:
        return translated.stack(self.sent, len(self.numbers), self.size)

    def missing(self, translated: Translated) -> list[int]:
        return [at for at, plane in zip(self.sent, translated.planes, strict=True) if plane is None]

    def report(self, translated: Translated, stack: Pixels) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Sections of the provenance, and lines for the person."""
        empty = sorted(set(range(len(self.numbers))) - set(self.sent))
        first, last = self.sent[0], self.sent[-1] + 1
        flicker = measure_flicker(self.numbers[first:last], stack[first:last])
        report = {
            "intensity": self.intensity,
            "output": translated.record(),
            "slices": {
                "count": len(self.numbers),
                "sent": len(self.sent),
                "empty": empty,
                "refused": self.missing(translated),
            },
            "flicker": None if flicker is None else flicker.record(),
        }
        said = [] if flicker is None else [flicker.say()]
        if empty:
            said.append(f"{len(empty)} of {len(self.numbers)} slices are background and were not sent")
        return report, tuple(said)
