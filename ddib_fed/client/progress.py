"""Callbacks of a run of files: they open its client and receive its progress. The command and page override them."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ddib_fed.client.client import Client
from ddib_fed.client.connection import PATIENCE_S, OnWait
from ddib_fed.client.profile import Profile
from ddib_fed.errors import Cancelled, DdibError, ExhaustedError, QuotaSpent
from ddib_fed.protocol.messages import Event
from ddib_fed.terminal import bar, say

if TYPE_CHECKING:
    from ddib_fed.client.files import FileItem
    from ddib_fed.client.results import Delivered
    from ddib_fed.formats.parts import WrittenStudy
    from ddib_fed.formats.study import Origin, Study

Counted = Callable[[int, int], None]


class RunProgress:
    """Opens the client of a run, and receives its progress in the thread of the run. This base class shows nothing."""

    done = 0
    """Results that are on the disk."""

    def __init__(self, client: Client | None = None) -> None:
        self.client = client

    @property
    def stopped(self) -> bool:
        """Whether no further job is to be submitted."""
        return False

    @contextmanager
    def opened(self, profile: Profile) -> Iterator[Client]:
        with open_client(profile, client=self.client) as client:
            yield client

    @contextmanager
    def counted(self, what: str) -> Iterator[Counted]:
        """A function that is called with (done, total) while files are read."""
        with bar(what) as show:
            yield lambda done, total: show(done, total, "")

    def say(self, line: str) -> None:
        """Show a sentence."""

    def study(self, number: int, origin: Origin, study: Study | None) -> None:
        """A study can be translated; None for one that an earlier run has finished."""

    def parts(self, number: int, paths: Sequence[Path]) -> None:
        """From now on jobs are of these items of a study."""

    def study_written(self, number: int, written: WrittenStudy, study: Study | None) -> None:
        """The output of a study is on the disk; None for one that an earlier run has finished."""

    def whole(self, total: int, done: int) -> None:
        """So many files are translated, and so many of them are on the disk already."""

    def submitted(self, job_id: str, items: int) -> None:
        """The node has accepted a job."""

    def begin(self, job_id: str, names: Sequence[str]) -> None:
        """From now on events are of this job, whose items have these names."""

    def event(self, event: Event) -> None:
        """Something happened in the job."""

    def written(self, item: FileItem, result: Delivered) -> None:
        """A result is on the disk."""

    def job_ended(self, job_id: str, state: str) -> None:
        """A job has ended, and its results are written."""

    def watching(self, client: Client, job_id: str) -> Callable[[Event], None]:
        """`event`, which says once what is left of a quota that the job waits for, and until when."""
        said = False

        def on_event(event: Event) -> None:
            nonlocal said
            self.event(event)
            if event.stage == "wait" and event.reason == QuotaSpent.reason and not said:
                said = True
                job = client.get(job_id)
                facts = job.failure.facts if job.failure is not None else {}
                names = ("quota", "limit", "left", "asked", "renews")
                told = ", ".join(f"{name} {facts[name]}" for name in names if name in facts)
                self.say(f"target {job.target}: {QuotaSpent.sentence} ({told}); the job waits there for more")

        return on_event


def waiting_line(error: DdibError, delay_s: float) -> str:
    again = f"trying again in {delay_s:.1f} s" if isinstance(error, ExhaustedError) else "trying again"
    return f"{error.hop or 'the node'}: {error.detail}; {again}"


def _say_once() -> OnWait:
    said = False

    def on_wait(error: DdibError, delay_s: float) -> None:
        nonlocal said
        if not said:
            say(waiting_line(error, delay_s), err=True)
        said = True

    return on_wait


@contextmanager
def open_client(
    profile: Profile | Path | None,
    *,
    on_wait: OnWait | None = None,
    patience_s: float = PATIENCE_S,
    client: Client | None = None,
) -> Iterator[Client]:
    """A client for one command; or the given one."""
    if client is None:
        found = profile if isinstance(profile, Profile) else Profile.load(profile)
        client = Client(found, patience_s=patience_s, on_wait=on_wait or _say_once())
    with client, _interruptible(client):
        yield client


@contextmanager
def _interruptible(client: Client) -> Iterator[None]:
    """Within this context the first Ctrl-C, or SIGTERM of a batch system, ends the client's calls."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, before[signal.Signals(number)])
        threading.Thread(target=client.abort, daemon=True).start()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except DdibError as error:
        if client.aborted and not error.hint:
            hint = "ddib job list" if client.keeps_jobs else ""
            raise Cancelled("interrupted", hop=client.hop, hint=hint) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def explaining_interruption(client: Client, job_id: str, out: Path | None = None) -> Iterator[None]:
    """Turn Ctrl-C into an error that says the job continues, with the commands to watch, fetch or cancel it."""
    try:
        yield
    except DdibError as error:
        if not (client.aborted and client.keeps_jobs):
            raise
        # The id comes from the node, and these lines are meant to be pasted.
        job, more = shlex.quote(job_id), f" --profile {shlex.quote(str(client.profile.path))}"
        raise Cancelled(
            f"interrupted; job {job_id} continues at the source node",
            hint=f"ddib job watch {job}{more}\n"
            f"ddib job fetch {job} --out {shlex.quote(str(out or 'DIR'))}{more}\n"
            f"to stop it:\nddib job cancel {job}{more}",
            hop=client.hop,
        ) from error
