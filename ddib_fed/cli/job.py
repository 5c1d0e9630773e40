"""`ddib doctor`, `ddib domains`, `ddib job ...`: the single steps of a translation; and `ddib web`, its page."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import ddib_fed
from ddib_fed.cli import options
from ddib_fed.cli.folder_report import ConsoleProgress, report_run
from ddib_fed.cli.options import group
from ddib_fed.errors import DdibError
from ddib_fed.extensions import extension, extensions
from ddib_fed.terminal import emit, is_aside, moment, plain, print_table, say, say_document, size, when

STEPS = ("profile", "certificate", "connection", "service", "clock", "dicom")
"""The last is of each DICOM peer of the profile."""
MOST_CLASSES = 12  # classes that are listed by name
_TIMES = ("created", "finished", "expires")


def _job_values(job: ddib_fed.Job) -> dict[str, Any]:
    """Return a job as JSON values, its times in ISO 8601."""
    values: dict[str, Any] = plain(asdict(job))
    return values | {name: moment(values[name]) for name in _TIMES}


@click.command()
@options.OUTCOME
@options.PROFILE
def doctor(profile_path: Path | None) -> None:
    """Check the client's profile, its connection to the source node, both clocks, and the profile's DICOM peers.

    Step by step, with the cause at the first failure. Every other command names the same causes when it cannot reach
    the node.
    """
    findings: list[dict[str, object]] = []

    def keep(finding: str, *, ok: bool) -> str:
        what = STEPS[min(len(findings), len(STEPS) - 1)]
        findings.append({"step": what, "ok": ok, "finding": finding})
        return what

    try:
        for finding in _findings(profile_path):
            say(f"ok    {keep(finding, ok=True):<12} {finding}")
    except DdibError as error:
        say(f"FAIL  {keep(error.detail, ok=False)}")
        raise
    finally:
        emit(findings)


def _findings(profile_path: Path | None) -> Iterator[str]:
    """Yield what each of `STEPS` has found; raise what the first is that is not well."""
    profile = ddib_fed.Profile.load(profile_path)
    yield str(profile.path)
    for _, finding in ddib_fed.Client.diagnose(profile):
        yield finding
    for name in extensions("ddib_fed.archives") if profile.dicom else ():
        yield from extension("ddib_fed.archives", name).diagnose(profile)


@click.command()
@options.for_client
def domains(client: ddib_fed.Client) -> None:
    """List the available target domains, and whether each is ready."""
    listed = client.domains()
    values = plain(asdict(listed))
    for each in values["domains"]:
        if each["calibration"] is not None:
            each["calibration"]["expires"] = moment(each["calibration"]["expires"])
    emit(values, lambda: _say_domains(listed))


def _say_domains(found: ddib_fed.Domains) -> None:
    say(f"from {found.institution}/{found.domain} ({_kind(found)}) to:")
    if not found.domains:
        say("none yet: the node's operator admits peers with `ddib peer add`")
        return
    columns = ["!--to", "!samples", "classes", "guidance", "calibration", "status", ">ms"]
    rows = []
    for each in found.domains:
        guidance, terms, names = each.guidance, each.calibration, each.class_names
        scales = {"guidance": guidance.max_guidance, "classifier-scale": guidance.max_classifier_scale}
        numbers = f"0 to {each.classes - 1}" if each.classes else "-"
        rows.append(
            [
                f"{each.institution}/{each.domain or '?'}",
                _kind(each) if each.sample_shape else "-",
                ", ".join(names) if 0 < len(names) <= MOST_CLASSES else numbers,
                ", ".join(f"{name}={most:g}" for name, most in scales.items() if most) or "-",
                f"{terms.kind} until {(moment(terms.expires) or '')[:10]}" if terms else "-",
                each.status,
                str(each.latency_ms),
            ]
        )
    kept = [at for at in range(len(columns)) if at not in {2, 3, 4} or any(row[at] != "-" for row in rows)]
    print_table("", [columns[at] for at in kept], [[row[at] for at in kept] for row in rows])


def _kind(each: Any) -> str:
    return f"{each.sample_kind or 'unknown'} {'x'.join(map(str, each.sample_shape))}"


@click.command(epilog="\b\nExample:\n  ddib web --out translated")
@options.option(
    "--out DIR", "Folder for the results; each translation gets a folder in it.", default=Path("ddib-web")
)
@options.option(
    "--port PORT",
    "Port of 127.0.0.1 that the page is served on; default: a free one.",
    click.IntRange(0, 65_535),
    default=0,
    show_default=False,
)
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

    profile = ddib_fed.Profile.load(profile_path)
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


@group()
def job() -> None:
    """Watch, fetch, cancel and delete jobs; `ddib translate --detach` submits them.

    A job runs at the source node: it continues if this machine is switched off, and its results are kept there until
    they are fetched or expire.
    """


@job.command("list")
@options.option("--limit N", "At most this many.", click.IntRange(1, 1000), default=20)
@options.for_client
def list_(client: ddib_fed.Client, limit: int) -> None:
    """List this client's jobs, newest first, and how many of their items are done."""
    jobs = client.list(limit)

    def show() -> None:
        rows = []
        for each in jobs:
            done = f"{each.items_done}/{each.item_count}" if each.item_count else "-"
            rows.append([each.job_id, each.state.lower(), done, each.target, when(each.created)])
        if rows:
            print_table("", ["!job", "state", ">items", "to", "!created"], rows)
        else:
            say("no jobs", err=True)

    emit([_job_values(each) for each in jobs], show)


@job.command()
@options.JOB_ID
@options.for_client
def show(client: ddib_fed.Client, job_id: str) -> None:
    """Show a job, its items, and why it failed, if it did."""
    view = client.get(job_id)
    emit(_job_values(view), lambda: _show_job(view))


def _show_job(view: ddib_fed.Job) -> None:
    request = view.request
    solver, guidance = request.settings, request.guidance
    asked = {
        f"class {request.target_class}": bool(request.target_class),
        f"guidance {guidance.guidance or 0:g}": guidance.guidance is not None,
        f"classifier scale {guidance.classifier_scale or 0:g}": guidance.classifier_scale is not None,
        "clipped": guidance.clip,
        f"share {solver.share:g}": "share" not in request.left and solver.share < 1.0,
        f"temperature {solver.temperature:g}": 0.0 < solver.temperature < 1.0,
        f"blend {solver.blend:g}": solver.blend > 0.0,
        "cycle": request.cycle,
        "latent kept": request.keep_latents,
        "no calibration": request.without_calibration,
    }
    say(f"job      {view.job_id}  {view.state.lower()}")
    say(f"to       {view.target}{''.join(f', {what}' for what, there in asked.items() if there)}")
    order, evaluations = solver.order or "default", solver.evaluations
    say(f"solver   {solver.solver}, order {order}, {evaluations} evaluations, grid {solver.grid}")
    say(f"created  {when(view.created)}   finished {when(view.finished)}   expires {when(view.expires)}")
    if view.error is not None:
        say(f"{'failed ' if view.state.ended else 'waits  '}  {view.error}")
    rows = [
        [str(each.index), each.state.lower(), size(each.size_bytes), str(each.error or "")]
        for each in view.items
    ]
    print_table("", [">item", "state", ">size", "failure"], rows)


@job.command()
@options.JOB_ID
@options.OUTCOME
@options.PROFILE
def watch(job_id: str, profile_path: Path | None) -> None:
    """Watch a job until it has ended; ends non-zero when the job failed.

    With --format json each event is one line.
    """
    with (
        ConsoleProgress(show=not is_aside()) as progress,
        ddib_fed.Client.for_command(profile_path, on_wait=progress.wait) as client,
        client.interruptible(job_id),
    ):
        progress.begin(job_id, [])
        for event in client.watch(job_id):
            if is_aside():
                say_document(json.dumps(plain(event)))
            progress.event(event)
        view = client.get(job_id)
    say(f"job {job_id} is {view.state.lower()}")
    view.require_finished(client.hop)


@job.command()
@options.JOB_ID
@options.OUT_RESULTS
@options.FORCE
@options.OUTCOME
@options.PROFILE
def fetch(job_id: str, out: Path, force: bool, profile_path: Path | None) -> None:
    """Fetch the results of a job that are ready.

    They are written, acknowledged, and then removed at the node, so that a result is fetched to one folder. Names come
    from the folder that the job was submitted for; otherwise items are named item-0000 and so on.
    """
    run = ddib_fed.Run(ddib_fed.Profile.load(profile_path), "", out, force=force)
    run.fetch(job_id)
    if not run.results and run.jobs[0].state == "FINISHED":
        say(f"job {job_id}: nothing left to fetch at the node", err=True)
    report_run(run)
    run.conclude()


@job.command()
@options.JOB_ID
@options.for_client
def cancel(client: ddib_fed.Client, job_id: str) -> None:
    """Stop a job at its next step. Finished items can still be fetched."""
    state = client.cancel(job_id)
    emit({"job_id": job_id, "state": state}, lambda: say(f"job {job_id} is {state.lower()}"))


@job.command()
@options.JOB_ID
@options.for_client
def delete(client: ddib_fed.Client, job_id: str) -> None:
    """Remove an ended job and all its data at the node."""
    client.delete(job_id)
    emit({"job_id": job_id, "deleted": True}, lambda: say(f"job {job_id} is deleted"))
