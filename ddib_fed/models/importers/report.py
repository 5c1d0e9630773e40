"""The report of an import: each setting and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ddib_fed.models.bundle import Bundle, make_bundle
from ddib_fed.models.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Fact:
    """One setting of an imported model.

    Attributes:
        key: Its name in the code that it comes from.
        value: As that code's flags or files write it.
        basis: Its origin: "shapes", "--flags", "public default", or a text.
    """

    key: str
    value: str
    basis: str


def import_note(where: str, warnings: tuple[str, ...] = ()) -> str:
    """The note of a manifest on imported weights.

    Args:
        where: What they were read from, "the file" or "the folder".
        warnings: As in `Imported`.
    """
    said = f"imported weights: {where} does not say what they were trained on"
    return "; ".join((said, *warnings))[:4000]


@dataclass(frozen=True, slots=True)
class Imported:
    """A model read from other code's files, not yet a bundle.

    Attributes:
        manifest: Its description.
        state: Its weights, float32; they may be views of the mapped file.
        facts: Every setting, with its origin.
        ignored: Given settings that are not used, with the reason.
        remarks: Remarks about the weights.
        warnings: Unverified assumptions, a sentence each; also in the manifest's note.
    """

    manifest: Manifest
    state: Mapping[str, Tensor] = field(repr=False)
    facts: tuple[Fact, ...]
    ignored: Mapping[str, str]
    remarks: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def of_files(self) -> bool:
        """Whether `ignored` has keys of files, not flags of a command line."""
        return any(fact.basis == "scheduler_config.json" for fact in self.facts)

    @property
    def bundle(self) -> Bundle:
        """The bundle in memory; `save_bundle` writes one without a copy in memory.

        Raises:
            BundleInvalid: The weights hold NaN or infinity.
        """
        return make_bundle(self.manifest, self.state, source=self.manifest.name)
