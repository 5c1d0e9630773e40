"""What a study is made from, and what its results are called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddib_fed.errors import DdibError

Bad = list[tuple[Path, DdibError]]
"""What cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a study is made from: the same origin makes the same items."""

    given: Path
    name: str
    outputs: tuple[str, ...]
    inputs: tuple[Path, ...]
    settings: Mapping[str, Any]
    label: str = ""
    also: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    suffix: str = ""
    series_sha256: str = ""

    @classmethod
    def of_file(
        cls,
        path: Path,
        settings: Mapping[str, Any],
        *,
        suffix: str,
        within: str = "",
        results: Sequence[str] = (),
        beside: Sequence[str] = (),
    ) -> Origin:
        """Of a file that becomes a file of the same kind."""
        called = within + safe_name(path.name[: len(path.name) - len(suffix)])
        outputs, others = (
            tuple(f"{called}{each}" for each in names) for names in (results or (suffix,), beside)
        )
        return cls(path, called, outputs, (path,), settings, beside=others, suffix=suffix)

    def renamed(self, name: str) -> Origin:
        """The same, whose results are called otherwise."""
        outputs, beside = (
            tuple(name + each.removeprefix(self.name) for each in names)
            for names in (self.outputs, self.beside)
        )
        return replace(self, name=name, outputs=outputs, beside=beside)

    @property
    def called(self) -> str:
        return self.label or str(self.given)

    def sha256(self) -> str:
        """Digest of all that is read, hex: of a file its own, of several that of their sorted digests."""
        digests = []
        for path in self.inputs:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return (
            digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
        )


def safe_name(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-.")
    return kept or "study"
