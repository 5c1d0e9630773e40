"""What a study is made from, and what its results are called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddib_fed.errors import DdibError

Bad = list[tuple[Path, DdibError]]
"""What cannot be read, and why."""


def alone(error: DdibError) -> DdibError:
    """The error without the frames that it came through: they hold what was read."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a study is made from: the same origin makes the same items.

    Attributes:
        given: The file or the folder, for messages.
        name: What results are called; below a folder with the path.
        outputs: Names of the files or folders that `Study.assemble` makes.
        inputs: Every file that is read.
        settings: Options that decide, as JSON values.
        label: What messages call it, where `given` holds several studies; empty elsewhere.
        also: Other names under which an earlier run may have written the results of the same input.
        series_sha256: Digest of the UID of a DICOM series, hex, which stays when its files change; empty elsewhere.
    """

    given: Path
    name: str
    outputs: tuple[str, ...]
    inputs: tuple[Path, ...]
    settings: Mapping[str, Any]
    label: str = ""
    also: tuple[str, ...] = ()
    series_sha256: str = ""

    @classmethod
    def of_file(
        cls,
        path: Path,
        settings: Mapping[str, Any],
        *,
        suffix: str,
        within: str = "",
        others: Sequence[str] = (),
    ) -> Origin:
        """Of a file that becomes a file of the same kind.

        Args:
            path: The file.
            settings: As the attribute.
            suffix: Of the file and of its result.
            within: In front of the name of the results: the folders below which they go, ending in a slash.
            others: Further suffixes that the result may have.
        """
        called = within + safe_name(path.name[: len(path.name) - len(suffix)])
        return cls(path, called, tuple(f"{called}{each}" for each in (suffix, *others)), (path,), settings)

    @property
    def called(self) -> str:
        return self.label or str(self.given)

    def sha256(self) -> str:
        """Digest of all that is read, hex: of a file its own, of several that of their sorted digests.

        Raises:
            OSError: A file cannot be read.
        """
        digests = []
        for path in self.inputs:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return (
            digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
        )


def safe_name(text: str) -> str:
    """A name for files: letters, digits, dots, dashes and underscores of the text."""
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-.")
    return kept or "study"
