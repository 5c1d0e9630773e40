"""A `Display` that shows a translation on the page; its jobs are parts of one translation there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ddib_fed.cli.client.browser.clients import Clients
from ddib_fed.cli.client.delivery import Delivered, Input
from ddib_fed.cli.client.progress import quota_line, waiting_line
from ddib_fed.cli.client.translation.display import Progress
from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.errors import DdibError, QuotaSpent
from ddib_fed.web.backend import Result, Watcher
from ddib_fed.wire.jobs import Event

Shown = Callable[[Input, Delivered], Result | None]
"""What the page shows of a result; None for one that is not shown by itself."""


class PageDisplay:
    """Shows the jobs of one folder of results on the page."""

    def __init__(
        self,
        clients: Clients,
        watcher: Watcher,
        out: Path,
        shown: Shown,
        label: Callable[[str], str] = str,
    ) -> None:
        self._clients, self.watcher, self.out = clients, watcher, out
        self.shown, self.label = shown, label

    @contextmanager
    def counted(self, what: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: self.watcher.waiting(f"{what}: {done:,} of {total:,}")

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[tuple[Client, Progress]]:
        del profile

        def wait(error: DdibError, delay_s: float) -> None:
            self.watcher.waiting(waiting_line(error, delay_s))

        with self._clients.opened(wait) as client:
            yield client, PageProgress(self, client)


class PageProgress:
    """Tells the page of the jobs of one run. A `Progress`."""

    def __init__(self, display: PageDisplay, client: Client) -> None:
        self._display, self._client = display, client
        self._watcher = display.watcher
        self._names: Sequence[str] = ()
        self._items: dict[str, int] = {}
        self._done = 0

    @property
    def done(self) -> int:
        return self._done

    @property
    def stopped(self) -> bool:
        return self._watcher.stopped

    def say(self, line: str) -> None:
        self._watcher.waiting(line)

    def whole(self, total: int, done: int) -> None:
        del total
        self._done = done

    def submitted(self, job_id: str, items: int) -> None:
        self._items[job_id] = items
        self._watcher.submitted(job_id, self._display.out)
        if self._watcher.stopped:
            self._client.cancel(job_id)

    def begin(self, job_id: str, names: Sequence[str]) -> None:
        self._names = names
        self._items[job_id] = len(names)

    def watching(self, client: Client, job_id: str) -> Callable[[Event], None]:
        said = False

        def on_event(event: Event) -> None:
            nonlocal said
            name = self._names[event.item] if event.item < len(self._names) else f"item {event.item}"
            self._watcher.event(event, self._display.label(name))
            if event.stage == "wait" and event.reason == QuotaSpent.reason and not said:
                said = True
                self._watcher.waiting(quota_line(client.get(job_id)))

        return on_event

    def written(self, given: Input, result: Delivered) -> None:
        self._done += 1
        self._watcher.written(self._display.shown(given, result))

    def ended(self, job_id: str, state: str) -> None:
        del state
        self._watcher.job_ended(job_id, self._items[job_id])
