"""Shows a translation while it runs, in a terminal or on a page of the browser.

A display opens the client too, because it knows what ends its calls: Ctrl-C in a terminal, the server of a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from ddib_fed.cli.client.delivery import Delivered, Input
from ddib_fed.cli.client.progress import JobProgress, counted
from ddib_fed.cli.client.session import open_client
from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.wire.jobs import Event


class Progress(Protocol):
    """Told how the jobs of one translation go, in the thread that runs it."""

    @property
    def done(self) -> int:
        """How many results are on the disk."""

    @property
    def stopped(self) -> bool:
        """Whether no further job is to be submitted."""

    def say(self, line: str) -> None:
        """Show a sentence."""

    def whole(self, total: int, done: int) -> None:
        """So many files are translated, and so many of them are on the disk already."""

    def submitted(self, job_id: str, items: int) -> None:
        """The node has accepted a job."""

    def begin(self, job_id: str, names: Sequence[str]) -> None:
        """From now on events are of this job, whose items have these names."""

    def watching(self, client: Client, job_id: str) -> Callable[[Event], None]:
        """The function that receives the events of a job."""

    def written(self, given: Input, result: Delivered) -> None:
        """A result is on the disk."""

    def ended(self, job_id: str, state: str) -> None:
        """A job has ended, and its results are written."""


class Display(Protocol):
    """Opens what a translation needs, and shows it."""

    def counted(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """What is called with (done, total) while files are read."""

    def opened(self, profile: Profile) -> AbstractContextManager[tuple[Client, Progress]]:
        """A client of the source node, and the display of its jobs' progress."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """Bars, or lines now and then; Ctrl-C ends the client's calls. A `Display`; by default of the profile's client."""

    client: Client | None = None

    def counted(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        return counted(what)

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[tuple[Client, Progress]]:
        with (
            JobProgress() as progress,
            open_client(profile, on_wait=progress.wait, client=self.client) as client,
        ):
            yield client, progress


TERMINAL: Final = Terminal()
