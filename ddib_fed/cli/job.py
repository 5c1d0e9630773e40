"""`ddib doctor`, `ddib domains`, `ddib job ...`: the single steps of a translation; and `ddib web`, its page."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from google.protobuf.message import Message

from ddib_fed.cli import options
from ddib_fed.cli.folder_report import ConsoleProgress, report_run
from ddib_fed.cli.options import group
from ddib_fed.client.client import (
    ENDED,
    explaining_interruption,
    failure_text,
    job_header,
    open_client,
    require_finished,
    state_of,
    target_of,
)
from ddib_fed.client.exchange import ask_peer
from ddib_fed.client.folder_run import FolderRun, RunOptions, RunProgress
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import JobFile, keep_calibration, locked, records_of, write_results
from ddib_fed.errors import ConfigError, DdibError, ItemNotFound, StateConflict, Unauthenticated
from ddib_fed.protocol.calls import TOLERATED_S, described
from ddib_fed.security.diagnosis import own_validity
from ddib_fed.security.pki import load_identity, root_warning
from ddib_fed.terminal import emit, is_aside, moment, print_table, say, say_document, size
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb

STEPS = ("profile", "certificate", "connection", "service", "clock", "dicom")
"""The last is of each DICOM peer of the profile."""
MOST_CLASSES = 12
"""Classes that are listed by name."""
_TIMES = frozenset({"created", "finished", "failed", "expires", "certificate_expires", "root_expires"})


def values_of(message: Message) -> dict[str, Any]:
    """A message as JSON values: enums by their own part of the name, bytes in hex, times in ISO 8601."""

    def value_of(field: Any, value: Any) -> Any:
        if field.enum_type is not None:
            return field.enum_type.values_by_number[value].name.split("_", 2)[2]
        if field.name in _TIMES:
            return moment(value)
        if isinstance(value, Message):
            return values_of(value)
        return value.hex() if isinstance(value, bytes) else value

    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = dict(value)
        elif field.is_repeated:
            found[field.name] = [value_of(field, each) for each in value]
        else:
            absent = field.has_presence and not message.HasField(field.name)
            found[field.name] = None if absent else value_of(field, value)
    return found


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
    found = profile.diagnosis()
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
    targets = [f"{each.institution}/{each.domain or '?'} {each.status}" for each in served.domains]
    yield f"{served.institution}/{served.domain}; {', '.join(targets) or 'no targets yet'}"

    if abs(ahead_s) >= TOLERATED_S:  # certificates and deadlines depend on both clocks
        raise ConfigError(
            f"the clock of the node is {described(ahead_s)}",
            hop=profile.hop,
            hint="compare both with a third: `timedatectl` shows whether this machine's is synchronised",
        )
    yield f"within {max(1.0, abs(ahead_s)):.0f} s of the node's"

    for peer in profile.dicom.peers:
        yield f"{peer}: {ask_peer(profile, peer)}"


@click.command()
@options.OUTCOME
@options.PROFILE
def domains(profile_path: Path | None) -> None:
    """List the available target domains, and whether each is ready."""
    with open_client(profile_path) as client:
        found = client.domains()
    emit(values_of(found), lambda: _say_domains(found))


def _say_domains(found: pb.ListDomainsResponse) -> None:
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
                ", ".join(f"--{name} {most:g}" for name, most in scales.items() if most) or "-",
                f"{terms.kind} until {(moment(terms.expires) or '')[:10]}" if terms.kind else "-",
                each.status,
                str(each.latency_ms),
            ]
        )
    kept = [at for at in range(len(columns)) if at not in {2, 3, 4} or any(row[at] != "-" for row in rows)]
    print_table("", [columns[at] for at in kept], [[row[at] for at in kept] for row in rows])


def _kind(each: pb.ListDomainsResponse | pb.Domain) -> str:
    return f"{each.sample_kind or 'unknown'} {'x'.join(map(str, each.sample_shape))}"


@click.command(epilog="\b\nExample:\n  ddib web --out translated")
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


@group()
def job() -> None:
    """Watch, fetch, cancel and delete jobs; `ddib translate --detach` submits them.

    A job runs at the source node: it continues if this machine is switched off, and its results are kept there until
    they are fetched or expire.
    """


@job.command("list")
@options.option("--limit N", "At most this many.", click.IntRange(1, 1000), default=20)
@options.OUTCOME
@options.PROFILE
def list_(limit: int, profile_path: Path | None) -> None:
    """List this client's jobs, newest first, and how many of their items are done."""
    with open_client(profile_path) as client:
        jobs = client.list(limit)

    def show() -> None:
        rows = []
        for each in jobs:
            done = f"{each.items_done}/{each.item_count}" if each.item_count else "-"
            rows.append(
                [each.job_id, state_of(each).lower(), done, target_of(each.request), when(each.created)]
            )
        if rows:
            print_table("", ["!job", "state", ">items", "to", "!created"], rows)
        else:
            say("no jobs", err=True)

    emit([values_of(each) for each in jobs], show)


@job.command()
@options.JOB_ID
@options.OUTCOME
@options.PROFILE
def show(job_id: str, profile_path: Path | None) -> None:
    """Show a job, its items, and why it failed, if it did."""
    with open_client(profile_path) as client:
        view = client.get(job_id)
    emit(values_of(view), lambda: _show_job(view))


def _show_job(view: pb.Job) -> None:
    request, solver, guidance = view.request, view.request.solver, view.request.guidance
    asked = {
        f"class {request.target_class}": bool(request.target_class),
        f"guidance {guidance.guidance:g}": guidance.HasField("guidance"),
        f"classifier scale {guidance.classifier_scale:g}": guidance.HasField("classifier_scale"),
        "clipped": guidance.clip,
        f"share {solver.share:g}": solver.HasField("share") and solver.share < 1.0,
        f"temperature {solver.temperature:g}": 0.0 < solver.temperature < 1.0,
        f"blend {solver.blend:g}": solver.blend > 0.0,
        "cycle": request.cycle,
        "latent kept": request.keep_latent,
        "no calibration": request.no_calibration,
    }
    say(f"job      {view.job_id}  {state_of(view).lower()}")
    say(f"to       {target_of(view.request)}{''.join(f', {what}' for what, there in asked.items() if there)}")
    order, evaluations = solver.order or "default", solver.evaluations
    say(f"solver   {solver.solver}, order {order}, {evaluations} evaluations, grid {solver.grid}")
    say(f"created  {when(view.created)}   finished {when(view.finished)}   expires {when(view.expires)}")
    if view.HasField("error"):
        say(f"{'failed ' if view.state in ENDED else 'waits  '}  {_told(view.error)}")
    rows = [
        [str(each.index), state_of(each).lower(), size(each.size_bytes), _told(each.error)]
        for each in view.items
    ]
    print_table("", [">item", "state", ">size", "failure"], rows)


def _told(failure: common_pb2.ErrorDetail) -> str:
    if not failure.reason:
        return ""
    at = f" at {failure.institution}" if failure.institution else ""
    return f"{failure_text(failure)} ({failure.reason}){at}"


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
        explaining_interruption(client, job_id),
    ):
        progress.begin(job_id, [])
        for event in client.watch(job_id):
            if is_aside():
                say_document(json.dumps(values_of(event)))
            progress.event(event)
        view = client.get(job_id)
    say(f"job {job_id} is {state_of(view).lower()}")
    require_finished(view, client.hop)


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
    with open_client(profile_path) as client, explaining_interruption(client, job_id, out), locked(out):
        view = client.get(job_id)
        path = JobFile(view.request.request_id, ()).path(out)
        names = JobFile.read(path) if path.exists() else None
        items = names.items if names is not None else ()
        results = write_results(client, job_id, client.fetch(job_id), items, out, force=force)
        delivered = {str(each.record): each for each in results}
        view = client.get(job_id)
        keep_calibration(out, view)
    counted = {state: sum(each.state == state for each in view.items) for state in pb.ItemState.values()}
    here, total = records_of(job_id, out), counted[pb.ITEM_STATE_DELIVERED]
    missing = len(view.items) - total - counted[pb.ITEM_STATE_FAILED]
    if view.state in ENDED and not missing:
        path.unlink(missing_ok=True)
    if not delivered and view.state == pb.JOB_STATE_FINISHED:
        say(f"job {job_id}: nothing left to fetch at the node", err=True)
    what = RunOptions(client.profile, job_header(target_of(view.request)), out, RunProgress())
    report_run(FolderRun(what, total=len(view.items), results=delivered, jobs=[view]))
    job, place = shlex.quote(job_id), shlex.quote(str(out))
    if view.state not in ENDED:
        raise StateConflict(
            f"job {job_id} is {state_of(view).lower()}: {missing} items are not ready yet",
            hint=f"ddib job watch {job}\nddib job fetch {job} --out {place}",
            hop=client.hop,
        )
    require_finished(view, client.hop)
    if here < total:
        again = f"ddib translate FILES --to {shlex.quote(target_of(view.request))} --out {place}"
        raise ItemNotFound(
            f"{total - here} of {total} results of job {job_id} were fetched before, not to {out}, and the node then "
            "removed them",
            hint=f"grep -rl --include='*.json' {job} ~  # finds their records; or again: {again}",
            hop=client.hop,
        )


@job.command()
@options.JOB_ID
@options.OUTCOME
@options.PROFILE
def cancel(job_id: str, profile_path: Path | None) -> None:
    """Stop a job at its next step. Finished items can still be fetched."""
    with open_client(profile_path) as client:
        state = state_of(client.cancel(job_id))
    emit({"job_id": job_id, "state": state}, lambda: say(f"job {job_id} is {state.lower()}"))


@job.command()
@options.JOB_ID
@options.OUTCOME
@options.PROFILE
def delete(job_id: str, profile_path: Path | None) -> None:
    """Remove an ended job and all its data at the node."""
    with open_client(profile_path) as client:
        client.delete(job_id)
    emit({"job_id": job_id, "deleted": True}, lambda: say(f"job {job_id} is deleted"))


def when(unix_s: float) -> str:
    """A time for people, in the machine's own zone; `-` when there is none, or none that a calendar has."""
    try:
        return datetime.fromtimestamp(unix_s).astimezone().strftime("%Y-%m-%d %H:%M") if unix_s else "-"
    except (OverflowError, OSError, ValueError):  # the last hours of the year 9999, east of Greenwich
        return "-"
