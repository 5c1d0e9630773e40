"""What the page asks of the client, and what the client tells the page: the values that go between them.

The client's side is `ddib_fed.cli.client.browser`, which is `ddib translate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ddib_fed.bridge.records.translation_record import Part, Translation
from ddib_fed.client.views import Domains
from ddib_fed.formats.intensity import AUTO
from ddib_fed.wire.jobs import Event


@dataclass(frozen=True, slots=True)
class Asked:
    """What the person chose."""

    target: str
    quality: str = "standard"
    cycle: bool = True
    target_class: str = ""
    slices: str = AUTO
    intensity: str = AUTO


@dataclass(frozen=True, slots=True)
class Given:
    """Something to translate: a file, or a folder of DICOM files."""

    path: Path
    name: str
    label: str
    is_study: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """A series, a volume, a map or a picture of a further format, before it is translated."""

    label: str
    kind: str
    planes: int
    items: int
    plane_word: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """A picture that is compared on the page."""

    label: str
    files: Mapping[Part, Path]
    provenance: Translation
    outputs: tuple[Path, ...] = ()
    study: int | None = None
    plane: int = 0


@dataclass(frozen=True, slots=True)
class PutTogether:
    """The output of a study on the disk."""

    outputs: tuple[Path, ...]
    record: Path
    said: tuple[str, ...]
    provenance: Translation


class Watcher(Protocol):
    """Told how a translation goes, from the thread in which it runs."""

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be submitted."""

    def opened(self, studies: Sequence[Study], items: int, files: int) -> None:
        """All files are read: the studies among them, how many items are translated, and of how many files."""

    def submitted(self, job_id: str, out: Path) -> None:
        """The node has a job on its disk, whose results go to this folder."""

    def event(self, event: Event, label: str) -> None:
        """The running job moved; `label` is what the event's item is called."""

    def waiting(self, text: str) -> None:
        """Something that takes time, such as a node that is away or busy."""

    def written(self, result: Result | None) -> None:
        """The result of an item is on the disk; None for one that is not shown by itself."""

    def job_ended(self, job_id: str, items: int) -> None:
        """A job of so many items has ended, and its results are written."""

    def put_together(self, study: int, done: PutTogether, whole: Result | None) -> None:
        """The output of a study is on the disk; `whole` shows it, where its items are not shown by themselves."""

    def left_out(self, label: str, why: str) -> None:
        """A file, a slice or a study was not translated."""


class Desk(Protocol):
    """What the page needs of the client; every error has a hint."""

    def domains(self) -> Domains: ...

    def translate(
        self, given: Sequence[Given], asked: Asked, out: Path, views: Path, watcher: Watcher
    ) -> None:
        """Translate files as `ddib translate` does, in as many jobs as the node's limits ask for."""

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Stop jobs; see `Client.cancel`."""

    def close(self) -> None:
        """End what runs; jobs go on at the node."""
