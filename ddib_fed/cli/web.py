"""`ddib web`: serves the researcher's page until Ctrl-C."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from ddib_fed.cli import options
from ddib_fed.cli.options import command
from ddib_fed.client.profile import Profile
from ddib_fed.terminal import say


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
        serve(page.app(), port=port, folder=folder, on_stop=page.close)
    more = f"--profile {shlex.quote(str(profile.path))}"
    for each in page.jobs.values():
        for job_id in each.running:
            job, place = shlex.quote(job_id), shlex.quote(str(each.jobs[job_id]))
            say(f"not fetched yet: {job_id}; it continues at the node", err=True)
            say(f"  ddib job fetch {job} --out {place} {more}", err=True)
