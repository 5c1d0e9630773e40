"""The one JSON document of a command that translates series, volumes and maps, and plain files beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ddib_fed.cli.output import print_json


@dataclass(frozen=True, slots=True)
class Document:
    """What a command has to say as JSON, in parts."""

    is_wanted: bool
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, part: Mapping[str, Any]) -> None:
        """Take another part; lists that both have are one list."""
        if not self.is_wanted:
            return
        for name, value in part.items():
            before = self.values.get(name)
            self.values[name] = [*before, *value] if isinstance(before, list) else value


@contextmanager
def one_document(output_format: str) -> Iterator[Document]:
    """A document that is printed at the end, also by an error: what was translated before it is on the disk."""
    document = Document(output_format == "json")
    try:
        yield document
    finally:
        if document.values:
            print_json(document.values)
