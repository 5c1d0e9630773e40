"""Translations of this run: each in a thread, with what the page shows of it; results lie in the chosen folder.

How files are submitted and results written is the desk's (`ddib_fed.cli.client.web`), which is `ddib translate`.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from ddib_fed.bridge.records.translation_record import Part, Translation
from ddib_fed.client.views import Domains
from ddib_fed.errors import Cancelled, DdibError, ItemNotFound, JobNotFound, UsageError
from ddib_fed.unexpected import explained
from ddib_fed.web.pages import explained as shown_error
from ddib_fed.web.researcher.tray import Dropped, Tray, renamed
from ddib_fed.web.researcher.words import doubts_in_words, figures_in_words, severity
from ddib_fed.wire.jobs import Event

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the person chose.

    Attributes:
        target: `INSTITUTION/DOMAIN`.
        quality: One of `ddib_fed.wire.jobs.QUALITIES`.
        cycle: Whether each translation is translated back too, to judge it.
        target_class: Class of the target; empty for none.
    """

    target: str
    quality: str = "standard"
    cycle: bool = True
    target_class: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """A file of a job: where it lies, what its results are called, and the name that the person knows."""

    path: Path
    name: str
    label: str


@dataclass(frozen=True, slots=True)
class Written:
    """One result on the disk: its item, its files, its record's file and the record."""

    item: int
    files: Mapping[Part, Path]
    record: Path
    provenance: Translation


class Watcher(Protocol):
    """Told how a translation goes, from the thread in which it runs."""

    def submitted(self, job_id: str) -> None:
        """The node has it on its disk."""

    def event(self, event: Event) -> None:
        """It moved."""

    def waiting(self, text: str) -> None:
        """The node is away or busy."""

    def written(self, result: Written) -> None:
        """A result is on the disk."""


class Desk(Protocol):
    """What the page needs of the client; every error has a hint."""

    def domains(self) -> Domains:
        """See `Client.domains`."""

    def translate(self, files: Sequence[Given], asked: Asked, out: Path, watcher: Watcher) -> None:
        """Submit a job and write its results as they come; raises as `ddib translate` does."""

    def cancel(self, job_id: str) -> None:
        """See `Client.cancel`."""

    def close(self) -> None:
        """End what runs; jobs go on at the node."""


@dataclass(slots=True)
class Job:
    """One translation; written by its thread, read by the server's. A `Watcher`.

    Attributes:
        number: In this run.
        files: Its files.
        asked: What was chosen.
        out: Folder of its results.
        job_id: At the node; empty before it accepted the job.
        done: Items that are translated or failed.
        now: What happens at the moment, in words.
        results: What is on the disk, by item.
        error: Why it ended early; None if it did not.
        ended: Whether it has ended.
        version: Counts changes.
        started: Seconds since the epoch.
    """

    number: int
    files: tuple[Given, ...]
    asked: Asked
    out: Path
    job_id: str = ""
    done: int = 0
    now: str = "sending the pictures to your institution's node"
    results: dict[int, Written] = field(default_factory=dict)
    error: dict[str, str] | None = None
    ended: bool = False
    version: int = 0
    started: float = field(default_factory=time.time)

    def submitted(self, job_id: str) -> None:
        """See `Watcher`."""
        self.job_id, self.now = job_id, "waiting for its turn"
        self.version += 1

    def event(self, event: Event) -> None:
        """See `Watcher`."""
        self.done = event.items_done
        if event.stage:
            self.now = _now(event, self.files)
        self.version += 1

    def waiting(self, text: str) -> None:
        """See `Watcher`."""
        self.now = text
        self.version += 1

    def written(self, result: Written) -> None:
        """See `Watcher`."""
        self.results[result.item] = result
        self.version += 1

    def end(self, error: DdibError | None) -> None:
        """It has ended, well or with an error."""
        if error is not None:
            labels = {str(each.path): each.label for each in self.files}
            self.error = shown_error(renamed(error, labels))
        self.now, self.ended = "", True
        self.version += 1

    def file(self, item: int, part: Part) -> Path:
        """A file of an item: what was given, or a part of its result.

        Raises:
            ItemNotFound: There is none (yet).
        """
        if part is Part.SOURCE and 0 <= item < len(self.files):
            return self.files[item].path
        found = self.results.get(item)
        if found is None or part not in found.files:
            raise ItemNotFound(f"item {item} has no {part} yet")
        return found.files[part]

    def progress(self) -> dict[str, object]:
        """What the page shows of its progress."""
        return {
            "done": self.done,
            "items": len(self.files),
            "written": len(self.results),
            "now": self.now,
            "ended": self.ended,
            "error": self.error,
            "job_id": self.job_id,
        }

    def result(self, item: int) -> dict[str, object]:
        """What the page shows of a result."""
        found = self.results[item]
        record = found.provenance
        return {
            "item": item,
            "label": self.files[item].label if item < len(self.files) else record.input,
            "doubtful": bool(record.doubtful),
            "doubts": doubts_in_words(record),
            "severity": severity(record),
            "figures": figures_in_words(record),
            "parts": sorted(part.value for part in found.files),
        }


class Jobs:
    """All translations of this run.

    Args:
        desk: Does the work.
        tray: Gives the files.
        out: Folder in which each job gets one.
    """

    def __init__(self, desk: Desk, tray: Tray, out: Path) -> None:
        self._desk = desk
        self._tray = tray
        self._out = out
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def start(self, asked: Asked) -> Job:
        """Translate all files of the tray; those of a job that is refused before it began come back to it.

        Raises:
            UsageError: There is no file.
        """
        files = self._tray.take()
        if not files:
            raise UsageError("there are no pictures to translate", hint="drop some first")
        with self._lock:
            number = next(self._numbers)
            out = _folder(self._out, asked.target)
            job = Job(number, given(files), asked, out)
            self._jobs[number] = job
        thread = threading.Thread(target=self._run, args=(job, files), name=f"job-{number}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return job

    def wait(self, timeout_s: float) -> None:
        """Wait until all have ended, at most so long."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, job: Job, files: Sequence[Dropped]) -> None:
        error: DdibError | None = None
        try:
            self._desk.translate(job.files, job.asked, job.out, job)
        except Exception as raised:  # noqa: BLE001 - this is the edge of the thread: anything becomes a message
            error = explained(raised)
        if not job.job_id:
            self._tray.put_back(files)
        job.end(error)

    def get(self, number: int) -> Job:
        """A job.

        Raises:
            JobNotFound: There is none of this number.
        """
        found = self._jobs.get(number)
        if found is None:
            raise JobNotFound(
                f"there is no translation {number} in this run", hint="go back to the start page"
            )
        return found

    def list(self) -> tuple[Job, ...]:
        """All, the newest first."""
        return tuple(sorted(self._jobs.values(), key=lambda job: -job.number))

    def cancel(self, job: Job) -> None:
        """Stop a job at the node.

        Raises:
            Cancelled: It is not at the node yet.
            DdibError: The node refuses or cannot be reached.
        """
        if not job.job_id:
            raise Cancelled("the pictures are still being sent", hint="try again in a moment")
        self._desk.cancel(job.job_id)


def given(files: Sequence[Dropped]) -> tuple[Given, ...]:
    """The files with a name for the results of each, all different: folders become a part of the name."""
    taken: set[str] = set()
    found = []
    for each in files:
        stem = Path(each.label.replace("/", "_")).stem
        plain = _UNSAFE.sub("_", stem).strip("._") or "picture"
        name = next(each for each in _numbered(plain) if each.casefold() not in taken)
        taken.add(name.casefold())
        found.append(Given(each.path, name, each.label))
    return tuple(found)


def _numbered(name: str) -> Iterator[str]:
    """The name, then NAME-2, NAME-3, ..."""
    return itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))


def _folder(out: Path, target: str) -> Path:
    """A new folder for the results of one job, called by time and domain; not made yet."""
    domain = _UNSAFE.sub("_", target.rpartition("/")[2]).strip("._") or "translated"
    first = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{domain}"
    return next(path for name in _numbered(first) if not (path := out / name).exists())


def _now(event: Event, files: Sequence[Given]) -> str:
    """An event in words."""
    what = {
        "encode": "encoding here, at your institution",
        "send": "sending the latent",
        "decode": "decoding at the other institution",
        "return": "checking by translating back",
        "done": "done",
        "failed": "failed",
        "wait": "waiting for the other institution",
    }.get(event.stage, event.stage)
    label = files[event.item].label if event.item < len(files) else f"item {event.item}"
    step = f", step {event.step} of {event.steps}" if event.steps else ""
    return f"{label}: {what}{step}"
