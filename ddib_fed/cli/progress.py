"""Shows on the terminal how the jobs of a run go: bars, or without a terminal a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ddib_fed.client.client import Client
from ddib_fed.client.files import FileItem
from ddib_fed.client.profile import Profile
from ddib_fed.client.progress import RunProgress, open_client, waiting_line
from ddib_fed.client.results import Delivered
from ddib_fed.errors import DdibError, ExhaustedError
from ddib_fed.protocol.messages import Event
from ddib_fed.terminal import drawing, say

if TYPE_CHECKING:
    from ddib_fed.formats.study import Origin, Study

STAGES = {
    "encode": "encoding",
    "send": "sending",
    "decode": "decoding at the target",
    "return": "returning",
    "done": "done",
    "failed": "failed",
    "wait": "waiting for the target",
}
SAID_EVERY_S = 30.0
"""How often a line is written without a terminal: a log of a day has 3,000."""


class ConsoleProgress(RunProgress):
    """Two bars: items of the job, and steps of the item that moved last; or lines. A context manager."""

    def __init__(
        self,
        client: Client | None = None,
        *,
        show: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(client)
        self._draws = show and sys.stderr.isatty()
        self._says = show and not self._draws
        self._clock = clock

    def __enter__(self) -> Self:
        self._waits = self._total = 0
        self._said = self._clock()
        self._job_id = self._counts = ""
        self._names: Sequence[str] = ()
        self._progress = drawing("{task.description:<32}", transient=True, disable=not self._draws)
        self._progress.start()
        self._items = self._progress.add_task("items", total=None)
        self._steps = self._progress.add_task("waiting for the node", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[Client]:
        with self, open_client(profile, on_wait=self.wait, client=self.client) as client:
            yield client

    def say(self, line: str) -> None:
        self._progress.console.print(line)

    def study(self, number: int, origin: Origin, study: Study | None) -> None:
        del number, origin
        for warning in study.warnings if study is not None else ():
            say(f"warning: {warning}", err=True)

    def whole(self, total: int, done: int) -> None:
        self._total = total
        self._progress.update(self._items, total=total, completed=done)

    def begin(self, job_id: str, names: Sequence[str]) -> None:
        self._job_id, self._names = job_id, names

    def written(self, item: FileItem, result: Delivered) -> None:
        del item, result
        self._progress.update(self._items, completed=self.done)

    def submitted(self, job_id: str, items: int) -> None:
        if self._says:
            say(f"job {job_id}: submitted, {items:,} item{'s' * (items != 1)}", err=True)

    def job_ended(self, job_id: str, state: str) -> None:
        if self._says:
            say(f"job {job_id}: {state}; {self.done:,} of {self._total:,} files written", err=True)

    def event(self, event: Event) -> None:
        self._waits = 0
        if self._says:
            self._say_event(event)
        if not self._total:
            self._progress.update(self._items, completed=event.items_done, total=event.items or None)
        if event.stage:
            name = self._names[event.item] if event.item < len(self._names) else f"item {event.item}"
            what = f"{name}: {STAGES.get(event.stage, event.stage)}"[:60]
            steps = event.steps or None
            self._progress.update(self._steps, description=what, completed=event.step, total=steps)

    def _say_event(self, event: Event) -> None:
        now = self._clock()
        if not (event.state.ended and not self._total) and now - self._said < SAID_EVERY_S:
            return
        self._said = now
        counts = f"{event.items_done:,} of {event.items:,} items done" if event.items else "begins"
        if self._total:
            counts += f"; {self.done:,} of {self._total:,} files written"
        state = event.state.lower()
        line = f"job {self._job_id}: {state}, {counts}" if self._job_id else f"{state}, {counts}"
        if line != self._counts:
            self._counts = line
            say(line, err=True)

    def wait(self, error: DdibError, delay_s: float) -> None:
        """Report once per outage that the node is away, from the second try on, or that it is busy, at once."""
        self._waits += 1
        busy = isinstance(error, ExhaustedError)
        if self._waits == (1 if busy else 2):
            self.say(waiting_line(error, delay_s))
        what = "node is busy" if busy else "node is away"
        self._progress.update(self._steps, description=f"{what}, again in {delay_s:.0f} s", total=None)
