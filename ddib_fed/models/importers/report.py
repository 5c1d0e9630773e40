"""The report of an import: each setting and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ddib_fed.models.bundle import Bundle, make_bundle
from ddib_fed.models.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Fact:
    """One setting of an imported model."""

    key: str
    value: str
    basis: str


def import_note(where: str, warnings: tuple[str, ...] = ()) -> str:
    said = f"imported weights: {where} does not say what they were trained on"
    return "; ".join((said, *warnings))[:4000]


@dataclass(frozen=True, slots=True)
class Imported:
    """A model read from other code's files, not yet a bundle."""

    manifest: Manifest
    state: Mapping[str, Tensor] = field(repr=False)
    facts: tuple[Fact, ...]
    ignored: Mapping[str, str]
    remarks: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def of_files(self) -> bool:
        return any(fact.basis == "scheduler_config.json" for fact in self.facts)

    @property
    def bundle(self) -> Bundle:
        return make_bundle(self.manifest, self.state, source=self.manifest.name)
