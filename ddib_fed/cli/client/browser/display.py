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
from ddib_fed.web.researcher.desk import Result, Watcher
from ddib_fed.wire.jobs import Event

Shown = Callable[[Input, Delivered], Result | None]
"""What the page shows of a result; None for one that is not shown by itself."""


class PageDisplay:
    """Shows the jobs of one folder of results on the page.

    Args:
        clients: Opens the client.
        watcher: The translation on the page.
        out: The folder.
        shown: What is shown of a result.
        label: What the page calls an item, by the name under which it is sent.
    """

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
        """See `Display`."""
        yield lambda done, total: self.watcher.waiting(f"{what}: {done:,} of {total:,}")

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[tuple[Client, Progress]]:
        """See `Display`; the profile is that of the clients."""
        del profile

        def wait(error: DdibError, delay_s: float) -> None:
            self.watcher.waiting(waiting_line(error, delay_s))

        with self._clients.opened(wait) as client:
            yield client, PageProgress(self, client)


class PageProgress:
    """Tells the page of the jobs of one run. A `Progress`.

    Args:
        display: Where it is shown.
        client: Cancels a job that was on its way when the person stopped the translation.
    """

    def __init__(self, display: PageDisplay, client: Client) -> None:
        self._display, self._client = display, client
        self._watcher = display.watcher
        self._names: Sequence[str] = ()
        self._items: dict[str, int] = {}
        self._done = 0

    @property
    def done(self) -> int:
        """How many results are on the disk."""
        return self._done

    @property
    def stopped(self) -> bool:
        """Whether the person stopped the translation."""
        return self._watcher.stopped

    def say(self, line: str) -> None:
        """See `Progress`."""
        self._watcher.waiting(line)

    def whole(self, total: int, done: int) -> None:
        """Nothing: the page counts the items of all its jobs."""
        del total
        self._done = done

    def submitted(self, job_id: str, items: int) -> None:
        """See `Progress`; what was stopped meanwhile is cancelled at once.

        Raises:
            DdibError: It was stopped, and the node refuses that or cannot be reached.
        """
        self._items[job_id] = items
        self._watcher.submitted(job_id, self._display.out)
        if self._watcher.stopped:
            self._client.cancel(job_id)

    def begin(self, job_id: str, names: Sequence[str]) -> None:
        """See `Progress`."""
        self._names = names
        self._items[job_id] = len(names)

    def watching(self, client: Client, job_id: str) -> Callable[[Event], None]:
        """See `Progress`; a job that waits for a quota says once until when."""
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
        """See `Progress`."""
        self._done += 1
        self._watcher.written(self._display.shown(given, result))

    def ended(self, job_id: str, state: str) -> None:
        """See `Progress`."""
        del state
        self._watcher.job_ended(job_id, self._items[job_id])
