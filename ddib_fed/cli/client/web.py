"""`ddib web`: the client as a page in the browser, for people who do not work in a terminal."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.cli.client.delivery import STATE_PREFIX
from ddib_fed.cli.help import command
from ddib_fed.client.profile import Profile
from ddib_fed.extras import extra
from ddib_fed.terminal import say


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
        from ddib_fed.cli.client.browser.desk import ClientDesk
        from ddib_fed.web.researcher.app import Researcher
        from ddib_fed.web.serving import serve, temporary_folder

    profile = Profile.load(profile_path)
    with temporary_folder() as folder:
        page = Researcher(ClientDesk(profile), profile, folder, out)
        say(f"results go to {out.resolve()}")
        serve(page.app(), port=port, command="ddib web", folder=folder, browser=browser, on_stop=page.close)
    for job in page.jobs.list():
        for job_id in job.running:
            where = job.jobs[job_id]
            if any(where.glob(f"{STATE_PREFIX}*")):
                words = ("ddib job fetch", shlex.quote(job_id), "--out", shlex.quote(str(where)))
                say(f"not fetched yet: {job_id}; it goes on at the node", err=True)
                say(f"  {' '.join(words)} --profile {shlex.quote(str(profile.path))}", err=True)
