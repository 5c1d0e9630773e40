"""Opens a client whose calls Ctrl-C ends in order.

An interruption must not be raised inside gRPC, which holds locks and can hang forever if an exception
occurs between taking and releasing one. The signal only ends the connection; the running call then fails like any
other call does. A second Ctrl-C interrupts at once.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from ddib_fed.cli.client.naming import suggest_target
from ddib_fed.cli.client.progress import SayOnce
from ddib_fed.client.client import Client
from ddib_fed.client.connection import PATIENCE_S, OnWait
from ddib_fed.client.profile import Profile
from ddib_fed.errors import Cancelled, DdibError, DomainNotFound, PeerNotFound


@contextlib.contextmanager
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
        client = Client(found, patience_s=patience_s, on_wait=on_wait or SayOnce())
    with client, _interruptible(client):
        try:
            yield client
        except (DomainNotFound, PeerNotFound) as error:
            context = click.get_current_context(silent=True)
            if context is not None and context.params.get("target"):
                suggest_target(error, client, str(context.params["target"]))
            raise


@contextlib.contextmanager
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
            raise Cancelled(
                "interrupted", hop=client.hop, hint="ddib job list" if client.keeps_jobs else ""
            ) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
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
