"""`ddib web`: serves the researcher's page until Ctrl-C."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.cli import options
from ddib_fed.cli.options import command
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import STATE_PREFIX
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.web.job import PageJob


@command(epilog="\b\nExample:\n  ddib web --out translated")
@options.option(
    "--out DIR", "Folder for the results; each translation gets a folder in it.", default=Path("ddib-web")
)
@options.PORT
@options.PROFILE
def web(out: Path, port: int, profile_path: Path | None) -> None:
    """Translate in the browser: drop pictures, watch, compare, download.

    A DICOM series, a NIfTI volume or a GeoTIFF becomes one of its own kind, and volumes are scrolled slice by slice.

    The page is served on this machine's loopback only, to the browser that opens the printed link, which works once.
    Dropped files stay in a private temporary folder that is removed at the end; results go to DIR. Towards the node it
    is `ddib translate`: the same profile, certificate and checks.
    """
    from ddib_fed.web.guard import serve
    from ddib_fed.web.researcher import Researcher

    profile = Profile.load(profile_path)
    with tempfile.TemporaryDirectory(prefix="ddib-web-") as name:
        folder = Path(name)
        page = Researcher(profile, folder, out)
        say(f"results go to {out.resolve()}")
        serve(page.app(), port=port, command="ddib web", folder=folder, on_stop=page.close)
    for each in page.jobs.values():
        _say_unfetched(each, f"--profile {shlex.quote(str(profile.path))}")


def _say_unfetched(job: PageJob, profile: str) -> None:
    waiting = {path.parent for path in job.out.rglob(f"{STATE_PREFIX}*")}
    known = {job_id: job.jobs[job_id] for job_id in job.running if job.jobs[job_id] in waiting}
    for job_id, where in known.items():
        say(f"not fetched yet: {job_id}; it continues at the node", err=True)
        say(f"  ddib job fetch {shlex.quote(job_id)} --out {shlex.quote(str(where))} {profile}", err=True)
    for where in sorted(waiting - set(known.values())):
        say(f"the node may have accepted a job for {where}, whose answer was lost", err=True)
        say(f"  ddib job list {profile}", err=True)
