"""`ddib web`: the client as a page in the browser, for people who do not work in a terminal."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.client.choosing import Chosen
from ddib_fed.cli.client.delivery import STATE_PREFIX, Input, JobFile, check_free, check_names, deliver
from ddib_fed.cli.client.progress import waiting_line
from ddib_fed.cli.client.translation.one_job import submit
from ddib_fed.cli.client.translation.order import Order
from ddib_fed.cli.help import command
from ddib_fed.cli.output import next_step
from ddib_fed.client.client import Client
from ddib_fed.client.payload import payloads
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import Domains, require_finished
from ddib_fed.errors import DdibError
from ddib_fed.extras import extra
from ddib_fed.terminal import say
from ddib_fed.wire.jobs import Settings

if TYPE_CHECKING:
    from ddib_fed.web.researcher.jobs import Asked, Given, Watcher

LIST_PATIENCE_S = 5.0
"""How long a page waits for a node that is away, before it says so."""


@command(epilog="\b\nExample:\n  ddib web --out translated")
@click.option(
    "--out",
    "out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("ddib-web"),
    show_default=True,
    metavar="DIR",
    help="Folder for the results; each translation gets a folder in it.",
)
@options.PORT
@options.BROWSER
@options.PROFILE
def web(out: Path, port: int, browser: bool, profile_path: Path | None) -> None:
    """Translate in the browser: drop pictures, watch, compare, download.

    The page is served on this machine's loopback only, to the browser that opens the printed link, which works once.
    Dropped files stay in a private temporary folder that is removed at the end; results go to DIR. Towards the node it
    is `ddib translate`: the same profile, certificate and checks.
    """
    with extra("web", "starlette", "the page in the browser needs starlette, uvicorn and Jinja2"):
        from ddib_fed.web.researcher.app import Researcher
        from ddib_fed.web.serving import serve, temporary_folder

    profile = Profile.load(profile_path)
    with temporary_folder() as folder:
        page = Researcher(ClientDesk(profile), profile, folder, out)
        say(f"results go to {out.resolve()}")
        serve(page.app(), port=port, command="ddib web", folder=folder, browser=browser, on_stop=page.close)
    for job in page.jobs.list():
        if any(job.out.glob(f"{STATE_PREFIX}*")):
            words = ("ddib job fetch", job.job_id or "JOB", f"--out {shlex.quote(str(job.out))}")
            say(f"not fetched yet: {job.job_id}; it goes on at the node", err=True)
            say(f"  {' '.join(words)} --profile {shlex.quote(str(profile.path))}", err=True)


class ClientDesk:
    """The client, as the page uses it; see `ddib_fed.web.researcher.jobs.Desk`.

    Args:
        profile: Who the client is.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._running: set[Client] = set()
        self._lock = threading.Lock()

    def domains(self) -> Domains:
        """See `Desk`."""
        with _hinted(), Client(self._profile, patience_s=LIST_PATIENCE_S) as client:
            return client.domains()

    def translate(self, files: Sequence[Given], asked: Asked, out: Path, watcher: Watcher) -> None:
        """See `Desk`."""
        from ddib_fed.web.researcher.jobs import Written

        chosen = Chosen(
            tuple(each.path for each in files),
            tuple(Input(each.name, each.label) for each in files),
        )
        order = Order(
            asked.target,
            Settings().of_quality(asked.quality),
            asked.cycle,
            keep_latent=False,
            deadline_s=None,
            target_class=asked.target_class,
        )
        with _hinted(), self._client(watcher) as client:
            check_names(chosen.paths, chosen.inputs, out)
            check_free(chosen.paths, chosen.inputs, out, force=False)
            submitted, inputs = submit(client, chosen, payloads(chosen.paths), order, out)
            watcher.submitted(submitted.job_id)
            results = client.results(submitted.job_id, on_event=watcher.event)
            for each in deliver(client, submitted.job_id, results, out, inputs, force=False):
                watcher.written(Written(each.item, each.files, each.record, each.provenance))
            job = client.get(submitted.job_id)
            JobFile(job.request_id, job.target, inputs).remove(out)
            require_finished(job, client.hop)

    def cancel(self, job_id: str) -> None:
        """See `Desk`."""
        with _hinted(), Client(self._profile, patience_s=LIST_PATIENCE_S) as client:
            client.cancel(job_id)

    def close(self) -> None:
        """See `Desk`."""
        with self._lock:
            running = tuple(self._running)
        for client in running:
            client.abort()

    @contextmanager
    def _client(self, watcher: Watcher) -> Iterator[Client]:
        """A client that `close` ends, and that tells the watcher when it waits."""

        def on_wait(error: DdibError, delay_s: float) -> None:
            watcher.waiting(waiting_line(error, delay_s))

        with Client(self._profile, on_wait=on_wait) as client:
            with self._lock:
                self._running.add(client)
            try:
                yield client
            finally:
                with self._lock:
                    self._running.discard(client)


@contextmanager
def _hinted() -> Iterator[None]:
    """Every error that leaves has the next step that the command line would show."""
    try:
        yield
    except DdibError as error:
        error.hint = next_step(error)
        raise
