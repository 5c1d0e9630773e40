"""Translations of this run: each in a thread; results lie in the chosen folder.

How files are submitted and results written is the desk's (`ddib_fed.cli.client.browser`), which is `ddib translate`.
"""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from ddib_fed.errors import DdibError, JobNotFound, UsageError
from ddib_fed.unexpected import explained
from ddib_fed.web.researcher.desk import Asked, Desk
from ddib_fed.web.researcher.job import Job
from ddib_fed.web.researcher.laying import laid_out, numbered, plain_word
from ddib_fed.web.researcher.tray import Dropped, Tray


class Jobs:
    """All translations of this run."""

    def __init__(self, desk: Desk, tray: Tray, out: Path) -> None:
        self._desk = desk
        self._tray = tray
        self._out = out
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def start(self, asked: Asked) -> Job:
        """Translate all files of the tray; those of a job that is refused before it began come back to it."""
        files = self._tray.take()
        if not files:
            raise UsageError("there are no pictures to translate", hint="drop some first")
        with self._lock:
            number = next(self._numbers)
            taken = {each.out for each in self._jobs.values()}
            job = Job(number, len(files), asked, _folder(self._out, asked.target, taken))
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
        folder = self._tray.folder / f"job-{job.number}"
        job.labels = {str(each.path): each.label for each in files}
        try:
            given = laid_out(files, folder)
            job.labels |= {str(each.path): each.label for each in given}
            self._desk.translate(given, job.asked, job.out, folder / "views", job)
        except Exception as raised:  # noqa: BLE001 - this is the edge of the thread: anything becomes a message
            error = explained(raised)
        if not job.jobs:
            self._tray.put_back(files)
            shutil.rmtree(folder, ignore_errors=True)
        job.end(error)

    def get(self, number: int) -> Job:
        """A job."""
        found = self._jobs.get(number)
        if found is None:
            raise JobNotFound(
                f"there is no translation {number} in this run", hint="go back to the start page"
            )
        return found

    def list(self) -> tuple[Job, ...]:
        return tuple(sorted(self._jobs.values(), key=lambda job: -job.number))

    def cancel(self, job: Job) -> None:
        self._desk.cancel(job.stop())


def _folder(out: Path, target: str, taken: Collection[Path]) -> Path:
    domain = plain_word(target.rpartition("/")[2], "translated")
    first = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{domain}"
    paths = (out / name for name in numbered(first))
    return next(path for path in paths if path not in taken and not path.exists())
