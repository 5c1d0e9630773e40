"""Items that are integrated as one trajectory: their rows, what became of them, and what is wrong with some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ddib_fed.bridge.party import Array, Decoded, Encoded, Failed, Labels, RowDraw
from ddib_fed.errors import InputError, LatentNotGaussian

# What is wrong with one item and no other.
ITEM_ERRORS = (InputError, LatentNotGaussian)

_Found = TypeVar("_Found", Encoded, Decoded)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One item's rows, in the model's units and the leg's basis, on its device; as given too, to be encoded."""

    number: int
    x: Tensor
    label: Labels
    draw: RowDraw | None = None
    given: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Integrated:
    """What became of the rows of some parts, one under the other."""

    x: Tensor
    seconds: float
    evaluations: int = 0

    def split(self, parts: Sequence[Part]) -> tuple[Tensor, ...]:
        return torch.split(self.x, [len(part.x) for part in parts]) if parts else ()


@dataclass(slots=True, eq=False)
class Work:
    """Items that are integrated together: those that are fit for it, and what is wrong with the others."""

    numbers: Sequence[int]
    parts: list[Part] = field(default_factory=list)
    failed: dict[int, Failed] = field(default_factory=dict)

    @contextmanager
    def refusing(self, number: int) -> Iterator[None]:
        """What is wrong with one item does not end the others."""
        try:
            yield
        except ITEM_ERRORS as error:
            self.failed[number] = Failed(number, error)

    def outcomes(self, found: dict[int, _Found]) -> list[_Found | Failed]:
        return [found[number] if number in found else self.failed[number] for number in self.numbers]


def draw_of(parts: Sequence[Part]) -> RowDraw:
    """The noise of a step for rows of all parts, one under the other."""

    def draw(step: int, rows: slice) -> Array:
        drawn, start = [], 0
        for part in parts:
            stop = start + len(part.x)
            within = slice(max(rows.start, start) - start, min(rows.stop, stop) - start)
            if within.start < within.stop and part.draw is not None:
                drawn.append(part.draw(step, within))
            start = stop
        return np.concatenate(drawn)

    return draw
