"""Classes on the command line: numbers or names, and pairs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddib_fed.datasets.imagenet import class_pairs
from ddib_fed.errors import UsageError


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a model: its name, their number, and their names if they have any."""

    owner: str
    count: int
    names: Sequence[str] = ()

    def number(self, text: str) -> int:
        """The number of a class given by name or number."""
        asked = text.strip()
        if not self.count:
            raise UsageError(f"{self.owner} has no classes", hint="omit the class")
        if asked in self.names:
            return self.names.index(asked)
        if not asked.isdecimal() or int(asked) >= self.count:
            known = ", ".join(self.names[:8]) or f"0 to {self.count - 1}"
            raise UsageError(f"{self.owner} has no class {asked[:40]!r}", hint=f"its classes: {known}")
        return int(asked)


def parse_pairs(text: str, before: Classes, after: Classes) -> tuple[tuple[int, int], ...]:
    """The pairs of `--pairs`, by numbers or by class names."""
    numbers = []
    for part in text.split(","):
        source, mark, target = part.partition(":")
        if not mark:
            raise UsageError(f"{part!r} is no pair of classes", hint="write 260:261, or cat:dog")
        numbers.append(f"{before.number(source)}:{after.number(target)}")
    return class_pairs(",".join(numbers), max(before.count, after.count))
