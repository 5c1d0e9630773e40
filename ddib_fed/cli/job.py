"""`ddib doctor`, `ddib domains`, and `ddib job ...`: the single steps of a translation."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.cli.folder_report import report_run
from ddib_fed.cli.options import command, group
from ddib_fed.cli.progress import ConsoleProgress
from ddib_fed.cli.translate import load_credentials, refuse_points
from ddib_fed.client.client import Client, JobRequest
from ddib_fed.client.folder_run import FolderRun, RunOptions
from ddib_fed.client.profile import Profile
from ddib_fed.client.progress import RunProgress, explaining_interruption, open_client
from ddib_fed.client.results import JobFile, locked, records_of, write_results
from ddib_fed.client.views import Domains, Failure, JobView, TargetDomain, require_finished
from ddib_fed.errors import (
    ConfigError,
    DdibError,
    ItemNotFound,
    JobNotFound,
    StateConflict,
    Unauthenticated,
    UsageError,
)
from ddib_fed.names import nearest
from ddib_fed.protocol.details import TOLERATED_S, described
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.security.diagnosis import diagnose, own_validity
from ddib_fed.security.pki import load_identity, root_warning
from ddib_fed.terminal import (
    emit,
    is_aside,
    moment,
    plain,
    print_table,
    say,
    say_document,
    size,
)

STEPS = ("profile", "certificate", "connection", "service", "clock")
MOST_CLASSES = 12
"""Classes that are listed by name."""


@command()
@options.OUTCOME
@options.PROFILE
def doctor(profile_path: Path | None) -> None:
    """Check the client's profile, its connection to the source node, and both clocks.

    Step by step, with the cause at the first failure. Every other command names the same causes when it cannot reach
    the node.
    """
    findings: list[dict[str, object]] = []
    failure: DdibError | None = None
    found = _findings(profile_path)
    for what in STEPS:
        try:
            findings.append({"step": what, "ok": True, "finding": next(found)})
            say(f"ok    {what:<12} {findings[-1]['finding']}")
        except DdibError as error:
            findings.append({"step": what, "ok": False, "finding": error.detail})
            say(f"FAIL  {what}")
            failure = error
            break
    emit(findings)
    if failure is not None:
        raise failure


def _findings(profile_path: Path | None) -> Iterator[str]:
    """What each of `STEPS` has found; the first that is not well raises what it is."""
    profile = Profile.load(profile_path)
    yield str(profile.path)

    # The folder's certificate is the profile's, and valid now.
    own, expected = load_identity(profile.pki_folder), f"spiffe://{profile.institution}/client/{profile.name}"
    if own.identity.uri != expected:
        raise Unauthenticated(
            f"the certificate names {own.identity}, the profile {expected}",
            hop="client",
            hint=f"edit {profile.path}, or make a client anew: ddib init client --help",
        )
    if (invalid := own_validity(own)) is not None:
        raise invalid.as_error("client")
    warning = root_warning(own.identity.institution, own.root_not_after, datetime.now(UTC))
    yield f"{own.identity}, valid until {own.not_after:%Y-%m-%d %H:%M} UTC{warning and f'; {warning}'}"

    # Both sides accept the other's certificate over TLS 1.3.
    found = diagnose(
        profile.source_address,
        server_name=profile.source_identity,
        pki_folder=profile.pki_folder,
        proxy=profile.way,
    )
    if not found.ok:
        raise found.as_error(profile.hop)
    through = f" through the proxy {profile.way.address}" if profile.way is not None else ""
    yield f"{profile.source_address}{through}: {found.text}"

    try:
        with open_client(profile, patience_s=0) as client:
            served = client.domains()
            ahead_s = client.clock_s or 0.0
    except DdibError as error:
        error.hint = error.hint or "ask the operator of the node: its log says why"
        raise
    targets = ", ".join(f"{d.target} {d.status}" for d in served.targets) or "no targets yet"
    yield f"{served.institution}/{served.domain}; {targets}"

    if abs(ahead_s) >= TOLERATED_S:  # certificates and deadlines depend on both clocks
        raise ConfigError(
            f"the clock of the node is {described(ahead_s)}",
            hop=profile.hop,
            hint="compare both with a third: `timedatectl` shows whether this machine's is synchronised",
        )
    yield f"within {max(1.0, abs(ahead_s)):.0f} s of the node's"


@command()
@options.OUTCOME
@options.PROFILE
def domains(profile_path: Path | None) -> None:
    """List the available target domains, and whether each is ready."""
    with open_client(profile_path) as client:
        found = client.domains()
    targets = [{"target": each.target, **plain(each)} for each in found.targets]
    for values in targets:
        if values["calibration"] is not None:
            values["calibration"]["expires"] = moment(values["calibration"]["expires"])
    emit({**plain(found), "targets": targets}, lambda: _say_domains(found))


def _say_domains(found: Domains) -> None:
    say(f"from {found.institution}/{found.domain} ({_kind(found)}) to:")
    if not found.targets:
        say("none yet: the node's operator admits peers with `ddib peer add`")
        return
    columns = ["!--to", "!samples", "classes", "guidance", "calibration", "status", ">ms"]
    rows = []
    for each in found.targets:
        limits = (
            ("guidance", each.guidance.max_guidance),
            ("classifier-scale", each.guidance.max_classifier_scale),
        )
        names, terms = each.class_names, each.calibration
        numbers = f"0 to {each.classes - 1}" if each.classes else "-"
        until = (
            "-"
            if terms is None
            else f"{terms.kind} until {datetime.fromtimestamp(terms.expires, UTC):%Y-%m-%d}"
        )
        rows.append(
            [
                each.target if each.domain else f"{each.institution}/?",
                _kind(each) if each.sample_shape else "-",
                ", ".join(names) if 0 < len(names) <= MOST_CLASSES else numbers,
                ", ".join(f"--{name} {most:g}" for name, most in limits if most) or "-",
                until,
                each.status,
                str(each.latency_ms),
            ]
        )
    kept = [at for at in range(len(columns)) if at not in {2, 3, 4} or any(row[at] != "-" for row in rows)]
    print_table("", [columns[at] for at in kept], [[row[at] for at in kept] for row in rows])


def _kind(each: Domains | TargetDomain) -> str:
    return f"{each.sample_kind} {'x'.join(map(str, each.sample_shape))}"


@group()
def job() -> None:
    """Watch, fetch, cancel and delete jobs; `ddib translate --detach` submits them.

    A job runs at the source node: it continues if this machine is switched off, and its results are kept there until
    they are fetched or expire.
    """


@job.command("list")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most this many."
)
@options.OUTCOME
@options.PROFILE
def list_(limit: int, profile_path: Path | None) -> None:
    """List this client's jobs, newest first, and how many of their items are done.

    The first characters of a job's id are enough wherever a command takes a JOB.
    """
    with open_client(profile_path) as client:
        jobs = client.list(limit)

    def show() -> None:
        if not jobs:
            say("no jobs", err=True)
            return
        done = [f"{j.items_done}/{j.item_count}" if j.item_count else "-" for j in jobs]
        rows = [
            [j.job_id, j.state.lower(), count, j.target, when(j.created)]
            for j, count in zip(jobs, done, strict=True)
        ]
        print_table("", ["!job", "state", ">items", "to", "!created"], rows)

    emit([job_values(each) for each in jobs], show)


def job_values(view: JobView) -> dict[str, object]:
    """A job as JSON values, with its times in ISO 8601."""
    times = {name: moment(getattr(view, name)) for name in ("created", "finished", "expires")}
    return {**plain(view), **times}


@job.command()
@options.JOB_ID
@options.OUTCOME
@options.PROFILE
def show(job_id: str, profile_path: Path | None) -> None:
    """Show a job, its items, and why it failed, if it did."""
    with open_client(profile_path) as client:
        view = client.get(job_named(client, job_id))
    emit(job_values(view), lambda: _show_job(view))


def _show_job(view: JobView) -> None:
    settings = view.settings
    say(f"job      {view.job_id}  {view.state.lower()}")
    whose = f", class {view.target_class}" if view.target_class else ""
    scales = (("guidance", view.guidance.scale), ("classifier scale", view.guidance.classifier_scale))
    guided = "".join(f", {name} {scale:g}" for name, scale in scales if scale is not None)
    say(f"to       {view.target}{whose}{guided}{', clipped' if view.guidance.clip else ''}")
    asked = {
        f"encoder {settings.encoder}": settings.encoder != "ode",
        "cycle": view.cycle,
        "latent kept": view.keep_latent,
        "no calibration": view.no_calibration,
    }
    say(
        f"solver   {settings.solver}, order {settings.order or 'default'}, {settings.evaluations} evaluations, "
        f"grid {settings.grid}{''.join(f', {what}' for what, there in asked.items() if there)}"
    )
    say(f"created  {when(view.created)}   finished {when(view.finished)}   expires {when(view.expires)}")
    if view.failure is not None:
        what = "failed " if view.state.ended else "waits  "
        say(f"{what}  {_told(view.failure)}")
    rows = [
        [str(i.index), i.state.lower(), size(i.size_bytes), (i.failure and _told(i.failure)) or ""]
        for i in view.items
    ]
    print_table("", [">item", "state", ">size", "failure"], rows)


def _told(failure: Failure) -> str:
    return f"{failure.text} ({failure.reason}){f' at {failure.institution}' if failure.institution else ''}"


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
        open_client(profile_path, on_wait=progress.wait) as client,
        explaining_interruption(client, job_id := job_named(client, job_id)),
    ):
        progress.begin(job_id, [])
        on_event = progress.watching(client, job_id)
        for event in client.watch(job_id):
            if is_aside():
                say_document(json.dumps(plain(event)))
            on_event(event)
        view = client.get(job_id)
    say(f"job {job_id} is {view.state.lower()}")
    require_finished(view, client.hop)


@job.command()
@options.JOB_ID
@options.OUT_RESULTS
@options.FORCE
@options.CREDENTIALS
@options.OUTCOME
@options.PROFILE
def fetch(
    job_id: str,
    out: Path,
    force: bool,
    credentials: tuple[Path, Path] | None,
    profile_path: Path | None,
) -> None:
    """Fetch the results of a job that are ready.

    They are written, acknowledged, and then removed at the node, so that a result is fetched to one folder. Names come
    from the folder that the job was submitted for; otherwise items are named item-0000 and so on.
    """
    signer = load_credentials(credentials)
    with (
        open_client(profile_path) as client,
        explaining_interruption(client, job_id := job_named(client, job_id), out),
        locked(out),
    ):
        if signer is not None:
            refuse_points(client)
        view = client.get(job_id)
        names = JobFile.load(out, view.request_id)
        results = write_results(
            client,
            job_id,
            client.fetch(job_id),
            names.items if names else (),
            out,
            force=force,
            credentials=signer,
        )
        delivered = {str(each.record): each for each in results}
        view = client.get(job_id)
        open_items = [i for i in view.items if i.state not in {ItemState.DELIVERED, ItemState.FAILED}]
        if names is not None and view.state.ended and not open_items:
            names.remove(out)
    if not delivered and view.state is JobState.FINISHED:
        say(f"job {job_id}: nothing left to fetch at the node", err=True)
    what = RunOptions(client.profile, JobRequest(view.target), out, RunProgress())
    report_run(FolderRun(what, total=len(view.items), results=delivered, jobs=[view]))
    if not view.state.ended:
        raise StateConflict(
            f"job {job_id} is {view.state.lower()}: {len(open_items)} items are not ready yet",
            hint=f"ddib job watch {shlex.quote(job_id)}\n"
            f"ddib job fetch {shlex.quote(job_id)} --out {shlex.quote(str(out))}",
            hop=client.hop,
        )
    require_finished(view, client.hop)
    here, total = records_of(job_id, out), sum(i.state is ItemState.DELIVERED for i in view.items)
    if here < total:
        again = f"ddib translate FILES --to {shlex.quote(view.target)} --out {shlex.quote(str(out))}"
        raise ItemNotFound(
            f"{total - here} of {total} results of job {job_id} were fetched before, not to {out}, and the node then "
            "removed them",
            hint=f"grep -rl --include='*.json' {shlex.quote(job_id)} ~  # finds their records; or again: {again}",
            hop=client.hop,
        )


@job.command()
@options.JOB_ID
@options.OUTCOME
@options.PROFILE
def cancel(job_id: str, profile_path: Path | None) -> None:
    """Stop a job at its next step. Finished items can still be fetched."""
    with open_client(profile_path) as client:
        job_id = job_named(client, job_id)
        state = client.cancel(job_id)
    emit({"job_id": job_id, "state": state}, lambda: say(f"job {job_id} is {state.lower()}"))


@job.command()
@options.JOB_ID
@options.OUTCOME
@options.PROFILE
def delete(job_id: str, profile_path: Path | None) -> None:
    """Remove an ended job and all its data at the node."""
    with open_client(profile_path) as client:
        job_id = job_named(client, job_id)
        client.delete(job_id)
    emit({"job_id": job_id, "deleted": True}, lambda: say(f"job {job_id} is deleted"))


_WHOLE = re.compile(r"[0-9a-f]{32}")
LOOKED_AT = 1000
"""Newest jobs among which a beginning is looked for: as many as a node lists."""
NAMED = 10


def job_named(client: Client, text: str) -> str:
    """The id of the job whose id is `text` or begins with it; a whole id is not looked up."""
    if _WHOLE.fullmatch(text):
        return text
    known = [job.job_id for job in client.list(LOOKED_AT)]
    found = [text] if text in known else [each for each in known if text and each.startswith(text)]
    if not found:
        close = nearest(text, known)
        raise JobNotFound(
            f"no job of this client begins with {text[:64]!a}",
            hop=client.hop,
            hint=f"did you mean {close}? `ddib job list` lists the jobs" if close else "ddib job list",
        )
    if len(found) > 1:
        more = ", ..." if len(found) > NAMED else ""
        raise UsageError(
            f"{len(found)} jobs begin with {text[:64]!a}", hint=f"one of {', '.join(found[:NAMED])}{more}"
        )
    return found[0]


def when(unix_s: float) -> str:
    """A time for people, in the machine's own zone; `-` when there is none, or none that a calendar has."""
    try:
        return datetime.fromtimestamp(unix_s).astimezone().strftime("%Y-%m-%d %H:%M") if unix_s else "-"
    except (OverflowError, OSError, ValueError):  # the last hours of the year 9999, east of Greenwich
        return "-"
