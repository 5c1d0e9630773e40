"""One translation as the page shows it: written by the thread that runs it, read by the server's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddib_fed.bridge.records.translation_record import Part
from ddib_fed.errors import DdibError, ItemNotFound
from ddib_fed.web.pages import explained as shown_error
from ddib_fed.web.researcher.desk import Asked, PutTogether, Result, Study
from ddib_fed.web.researcher.tray import renamed
from ddib_fed.web.researcher.words import doubts_in_words, event_in_words, figures_in_words, severity
from ddib_fed.wire.jobs import Event


@dataclass(slots=True)
class Job:
    """One translation, in as many jobs of the node as its limits ask for. A `Watcher`."""

    number: int
    count: int
    asked: Asked
    out: Path
    labels: dict[str, str] = field(default_factory=dict)
    items: int = 0
    files: int = 0
    studies: tuple[Study, ...] = ()
    done_together: dict[int, PutTogether] = field(default_factory=dict)
    jobs: dict[str, Path] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    now: str = "reading the files"
    results: list[Result] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    error: dict[str, str] | None = None
    stopped: bool = False
    ended: bool = False
    version: int = 0
    started: float = field(default_factory=time.time)
    _before: int = 0
    _moved: int = 0
    _written: int = 0

    def opened(self, studies: Sequence[Study], items: int, files: int) -> None:
        self.studies, self.items, self.files = tuple(studies), items, files
        self.now = "sending the pictures to your institution's node"
        self.version += 1

    def submitted(self, job_id: str, out: Path) -> None:
        self.jobs[job_id] = out
        self.running.append(job_id)
        if len(self.running) == 1:
            self.now = "waiting for its turn"
        self.version += 1

    def event(self, event: Event, label: str) -> None:
        self._moved = event.items_done
        if event.stage:
            self.now = event_in_words(event, label)
        self.version += 1

    def waiting(self, text: str) -> None:
        self.now = text
        self.version += 1

    def written(self, result: Result | None) -> None:
        self._written += 1
        if result is not None:
            self.results.append(result)
        self.version += 1

    def job_ended(self, job_id: str, items: int) -> None:
        if job_id in self.running:
            self.running.remove(job_id)
        self._before, self._moved = self._before + items, 0
        self.version += 1

    def put_together(self, study: int, done: PutTogether, whole: Result | None) -> None:
        if whole is not None:
            self.results.append(whole)
        self.done_together[study] = done
        self.version += 1

    def left_out(self, label: str, why: str) -> None:
        self.missing.append((label, self._renamed(why).removeprefix(f"{label}: ")))
        self.version += 1

    def stop(self) -> tuple[str, ...]:
        """Have nothing more submitted; the jobs that are at the node now, for being cancelled there."""
        self.stopped = True
        self.now = "stopping"
        self.version += 1
        return tuple(self.running)

    def end(self, error: DdibError | None) -> None:
        """It has ended, well or with an error."""
        if error is not None:
            self.error = shown_error(renamed(error, self.labels))
        self.now, self.ended = "", True
        self.version += 1

    def file(self, item: int, part: Part) -> Path:
        """A picture of a result, as it is shown."""
        found = self.results[item] if 0 <= item < len(self.results) else None
        if found is None or part not in found.files:
            raise ItemNotFound(f"item {item} has no {part} yet")
        return found.files[part]

    def download(self, item: int, part: Part) -> Path:
        """A file of an item as it lies in the folder of the results, or as it was given."""
        path = self.file(item, part)
        if self.results[item].study is not None:
            raise ItemNotFound(f"item {item} is a part of a volume or map", hint="download the whole")
        return path

    def together(self, study: int) -> PutTogether:
        """The output of a study."""
        found = self.done_together.get(study)
        if found is None:
            raise ItemNotFound(f"volume or map {study} is not put together yet")
        return found

    def outputs(self) -> list[Path]:
        """Every file in the folder of the results so far."""
        own = [path for result in list(self.results) for path in result.outputs]
        whole = [
            path for _, done in sorted(self.done_together.items()) for path in (*done.outputs, done.record)
        ]
        return [*own, *whole]

    def progress(self) -> dict[str, object]:
        """What the page shows of its progress: one count over all jobs."""
        return {
            "done": self._before + self._moved,
            "items": self.items,
            "files": self.files or self.count,
            "here": len(self.done_together) + sum(result.study is None for result in self.results),
            "written": self._written,
            "now": self.now,
            "ended": self.ended,
            "stopped": self.stopped,
            "error": self.error,
            "job_id": next(iter(self.jobs), ""),
            "missing": [f"{label}: {why}" for label, why in self.missing],
            "studies": [self._study(number) for number in range(len(self.studies))],
        }

    def _study(self, number: int) -> dict[str, object]:
        """What the page shows of a series, volume or map."""
        study, done = self.studies[number], self.done_together.get(number)
        return {
            "label": study.label,
            "kind": study.kind,
            "planes": study.planes,
            "items": study.items,
            "plane_word": study.plane_word,
            "warnings": [self._renamed(each) for each in study.warnings],
            "said": list(done.said) if done is not None else [],
            "files": len(done.outputs) if done is not None else 0,
        }

    def _renamed(self, text: str) -> str:
        return renamed(DdibError(text), self.labels).detail

    def result(self, item: int) -> dict[str, object]:
        """What the page shows of a result."""
        found = self.results[item]
        record = found.provenance
        return {
            "item": item,
            "label": found.label,
            "study": found.study,
            "plane": found.plane,
            "doubtful": bool(record.doubtful),
            "doubts": doubts_in_words(record),
            "severity": severity(record),
            "figures": figures_in_words(record),
            "parts": sorted(part.value for part in found.files),
        }
