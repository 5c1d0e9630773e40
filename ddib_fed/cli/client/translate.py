"""`ddib translate`: translates files and writes results with provenance; file names never leave this machine."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from ddib_fed.bridge.records.translation_record import DOUBTFUL_BELOW, Part, Translation
from ddib_fed.cli import options
from ddib_fed.cli.client.choosing import Chosen, choose
from ddib_fed.cli.client.delivery import (
    Delivered,
    Input,
    JobFile,
    check_names,
    deliver,
    named,
)
from ddib_fed.cli.client.marking import load_credentials, mark_delivered
from ddib_fed.cli.client.progress import JobProgress
from ddib_fed.cli.client.session import explaining_interruption, open_client
from ddib_fed.cli.client.studies import Manner, translate_studies
from ddib_fed.cli.output import number, print_json, print_table
from ddib_fed.client.client import Client
from ddib_fed.client.payload import Payload, payloads, split_target
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import JobView, Submitted, require_finished
from ddib_fed.errors import Cancelled, DdibError
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.terminal import say
from ddib_fed.wire.jobs import JobState, Settings

JOB_ITEMS = 500
"""Slices or tiles of one job: half of what a node takes by default."""


@click.command(
    epilog="\b\nExamples:\n"
    "  ddib translate scans/*.png --to south.example/relief --out out --cycle\n"
    "  ddib translate points.npy --to south.example/checkerboards --out out\n"
    "  ddib translate SERIES_FOLDER --to south.example/brain-t2 --out out"
)
@options.FILES
@options.TARGET
@options.OUT_RESULTS
@options.TARGET_CLASS
@options.SOURCE_CLASS
@options.with_options(options.GUIDING)
@options.with_options(options.PAIRING)
@options.CYCLE
@options.DOUBTFUL
@options.with_options(options.SOLVING)
@options.KEEP_LATENTS
@options.NO_CALIBRATION
@options.LATENT_TYPE
@options.DEADLINE
@options.FORCE
@options.with_options(options.STUDIES)
@options.CREDENTIALS
@click.option("--detach", is_flag=True, help="Only submit; print the job and how to watch and fetch it.")
@options.FORMAT
@options.PROFILE
def translate(
    files: tuple[Path, ...],
    target: str,
    out: Path,
    pairs: str | None,
    labels: Path | None,
    limit: int | None,
    doubtful_below: float,
    force: bool,
    credentials: tuple[Path, Path] | None,
    detach: bool,
    output_format: str,
    profile_path: Path | None,
    **asked: Any,
) -> None:
    """Translate files to another institution's domain.

    A picture (PNG, JPEG, TIFF, .npy) becomes DIR/NAME.png at its own size, points DIR/NAME.npy; DIR/NAME.json beside it
    is its provenance. With --cycle there is DIR/NAME.returned.png too, with --keep-latents DIR/NAME.latent.npy. The
    source node of this institution encodes; only latents go to the other institution. File names and metadata stay
    here.

    A folder of DICOM files, a DICOMDIR, a NIfTI volume, a georeferenced TIFF, JPEG 2000, WebP or BMP becomes one of its
    own kind; only pixels leave, slice by slice or tile by tile (docs/formats.md).

    With --pairs FILES is one folder: of sub-folders called by class names, numbers or WordNet ids, or ImageNet's
    validation part with --labels. Results have the public code's names and the models' size: 260_1.PNG,
    260_1_translated_261.PNG.
    """
    order = order_of(target, asked)
    if not order.cycle:
        options.refuse_idle(("doubtful_below",), "is a bound on round trips", hint="add --cycle")
    if detach:
        options.refuse_idle(
            ("doubtful_below",), "applies only to fetched results", hint="give it to `ddib job fetch`"
        )
    profile, signer = Profile.load(profile_path), load_credentials(credentials)
    if pairs is None:
        send = partial(translate_files, profile, order, force=force, doubtful_below=doubtful_below)
        manner = Manner(out, output_format, force=force, detach=detach, keep_parts=order.keep_latent)
        files = translate_studies(files, profile, asked, send, manner)
        if not files:
            return
    chosen = choose(files, profile, target, pairs=pairs, labels=labels, limit=limit)
    check_names(chosen.paths, chosen.inputs, out, force=force)
    items = payloads(chosen.paths)
    with (
        JobProgress([path.name for path in chosen.paths]) as progress,
        open_client(profile, on_wait=progress.wait) as client,
    ):
        submitted, inputs = submit(client, chosen, items, order, out)
        if not detach:
            job, delivered = receive(
                client, submitted, inputs, progress, out, force=force, doubtful_below=doubtful_below
            )
            delivered = mark_delivered(delivered, signer)
    if detach:
        print_submitted(submitted, target, out, output_format)
        return
    report(job, delivered, out, output_format, doubtful_below=doubtful_below)
    require_finished(job, f"source {profile.institution}")


def translate_files(
    profile: Profile,
    order: Order,
    paths: Sequence[Path],
    out: Path,
    *,
    force: bool,
    doubtful_below: float = DOUBTFUL_BELOW,
) -> None:
    """Translate plain files into a folder; what was refused has no result there."""
    for start in range(0, len(paths), JOB_ITEMS):
        chosen = Chosen.files(paths[start : start + JOB_ITEMS])
        check_names(chosen.paths, chosen.inputs, out, force=force)
        items = payloads(chosen.paths)
        with (
            JobProgress([path.name for path in chosen.paths]) as progress,
            open_client(profile, on_wait=progress.wait) as client,
        ):
            submitted, inputs = submit(client, chosen, items, order, out)
            receive(client, submitted, inputs, progress, out, force=force, doubtful_below=doubtful_below)


@dataclass(frozen=True, slots=True)
class Order:
    """The request, apart from the files."""

    target: str
    settings: Settings
    cycle: bool
    keep_latent: bool
    deadline_s: float | None
    source_class: str = ""
    target_class: str = ""
    guidance: Guidance = UNGUIDED
    no_calibration: bool = False
    latent_type: str = ""


def order_of(target: str, asked: Mapping[str, Any]) -> Order:
    """The request from the options of a command.

    Raises:
        SettingsInvalid: Both kinds of guidance, or a quality beside what it chooses.
    """
    return Order(
        target,
        Settings(
            asked["solver"],
            asked["order"],
            asked["evaluations"],
            asked["grid"],
            asked["depth"],
            asked["encoder"],
        ).of_quality(asked["quality"]),
        asked["cycle"],
        asked["keep_latent"],
        asked["deadline"],
        asked["source_class"],
        asked["target_class"],
        Guidance(asked["guidance"], asked["classifier_scale"], clip=asked["clip"]),
        asked["no_calibration"],
        asked["latent_type"] or "",
    )


def submit(
    client: Client, chosen: Chosen, items: Sequence[Payload], order: Order, out: Path | None
) -> tuple[Submitted, tuple[Input, ...]]:
    """Submit the job, after writing the names of its items to disk."""
    split_target(order.target)
    request_id = str(uuid.uuid4())
    pairs = zip(chosen.inputs, items, strict=True)
    inputs = tuple(replace(given, sha256=item.sha256.hex()) for given, item in pairs)

    def send() -> Submitted:
        return client.submit(
            items,
            order.target,
            order.settings,
            cycle=order.cycle,
            keep_latent=order.keep_latent,
            request_id=request_id,
            deadline_s=order.deadline_s,
            source_class=order.source_class,
            target_class=order.target_class,
            guidance=order.guidance,
            classes=chosen.classes,
            model_size=chosen.by_class,
            no_calibration=order.no_calibration,
            latent_type=order.latent_type,
        )

    try:
        if out is None:
            return send(), inputs
        with named(out, JobFile(request_id, order.target, inputs)):
            return send(), inputs
    except DdibError as error:
        if not client.aborted:
            raise
        raise Cancelled(
            "interrupted while submitting: the node may have accepted the job", hint="ddib job list"
        ) from error


def receive(
    client: Client,
    submitted: Submitted,
    inputs: tuple[Input, ...],
    progress: JobProgress,
    out: Path,
    *,
    force: bool,
    doubtful_below: float = DOUBTFUL_BELOW,
) -> tuple[JobView, list[Delivered]]:
    """Watch a job to its end and write its results as they come, also if a part of it failed; in their order."""
    with explaining_interruption(client, submitted.job_id, out):
        results = client.results(submitted.job_id, on_event=progress.watching(client, submitted.job_id))
        delivered = sorted(
            deliver(
                client, submitted.job_id, results, out, inputs, force=force, doubtful_below=doubtful_below
            ),
            key=lambda result: result.item,
        )
        job = client.get(submitted.job_id)
    JobFile(job.request_id, job.target, inputs).remove(out)
    return job, delivered


def print_submitted(job: Submitted, target: str, out: Path | None, output_format: str) -> None:
    """Print the job and the commands to follow it."""
    if output_format == "json":
        print_json({"job_id": job.job_id, "request_id": job.request_id, "state": job.state, "target": target})
        return
    pasted, where = shlex.quote(job.job_id), shlex.quote(str(out)) if out is not None else "DIR"
    say(f"job {job.job_id} is {job.state.lower()} (to {target})")
    say(f"  watch: ddib job watch {pasted}")
    say(f"  fetch: ddib job fetch {pasted} --out {where}")


def report(
    job: JobView,
    delivered: Sequence[Delivered],
    out: Path,
    output_format: str,
    *,
    doubtful_below: float = DOUBTFUL_BELOW,
) -> None:
    """Print the written results: a table, or one JSON document."""
    if output_format == "json":
        items = [_as_json(item) for item in delivered]
        print_json(
            {"job_id": job.job_id, "state": job.state, "target": job.target, "out": out, "items": items}
        )
        return
    if not delivered:
        if job.state is JobState.FINISHED:
            say(f"job {job.job_id}: nothing left to fetch", err=True)
        return
    pictures = any(item.provenance.picture for item in delivered)
    if pictures:
        columns, rows = _picture_table(delivered, cycle=job.cycle)
    else:
        columns, rows = _point_table(delivered, cycle=job.cycle)
    print_table("", columns, rows)
    if said := _calibrated(delivered):
        say(said)
    say(f"{len(delivered)} of {len(job.items)} items of job {job.job_id} are in {out}")
    _say_doubtful(delivered, doubtful_below)
    if clipped := [item.file for item in delivered if (p := item.provenance.picture) and p.clipped]:
        say(
            f"{len(clipped)} clipped: values outside the source model's range; the figures refer to the "
            f"original pictures ({_some(clipped)})",
            err=True,
        )


def _calibrated(delivered: Sequence[Delivered]) -> str:
    """Under which calibration the items were encoded; empty for none."""
    found = {(p.calibration_kind, p.calibration_sha256[:12]) for p in (d.provenance for d in delivered)}
    return ", ".join(f"calibration: {kind} {sha256}" for kind, sha256 in sorted(found) if sha256)


def _say_doubtful(delivered: Sequence[Delivered], below: float) -> None:
    """Name the doubtful results of each kind, on stderr."""
    reasons = {
        "cycle_psnr": f"the round trip is below {below:g} dB",
        "structure": "edges or values agree with those of the source no better than those of unrelated pictures",
    }
    for kind, reason in reasons.items():
        if found := [item.file for item in delivered if kind in (item.provenance.doubts or ())]:
            say(f"{len(found)} of {len(delivered)} doubtful: {reason} ({_some(found)})", err=True)


def _some(files: Sequence[str]) -> str:
    """The first names of many."""
    return ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")


def _as_json(item: Delivered) -> dict[str, object]:
    provenance = item.provenance
    return {
        "item": item.item,
        "file": item.file,
        **{part.value: item.files.get(part) for part in Part},
        "provenance": item.record,
        "samples": provenance.samples,
        "cycle": provenance.cycle,
        "picture": provenance.picture,
        "doubtful": provenance.doubtful,
        "doubts": provenance.doubts,
        "seconds": sum(provenance.seconds.values()),
    }


def _point_table(delivered: Sequence[Delivered], *, cycle: bool) -> tuple[list[str], list[list[str]]]:
    columns = [
        "file",
        ">samples",
        *([">cycle median", ">cycle p99", ">cycle max"] if cycle else []),
        ">seconds",
    ]
    rows = []
    for item in delivered:
        error = item.provenance.cycle
        figures = [number(error.median), number(error.p99), number(error.max)] if error else ["-"] * 3
        rows.append(
            [
                item.file,
                f"{item.provenance.samples:,}",
                *(figures if cycle else []),
                _seconds(item.provenance),
            ]
        )
    return columns, rows


def _picture_table(delivered: Sequence[Delivered], *, cycle: bool) -> tuple[list[str], list[list[str]]]:
    marked = any(item.provenance.doubts is not None for item in delivered)
    columns = [
        "file",
        ">pixels",
        ">edges",
        *([">cycle dB"] if cycle else []),
        *([""] if marked else []),
        ">seconds",
    ]
    rows = []
    for item in delivered:
        picture = item.provenance.picture
        row = [item.file, "-", "-"]
        if picture is not None:
            row = [item.file, f"{picture.width}x{picture.height}", _optional(picture.edge_correlation)]
        if cycle:
            psnr = picture.cycle_psnr if picture is not None else None
            row.append("-" if psnr is None else f"{psnr:.1f}")
        if marked:
            row.append("doubtful" if item.provenance.doubtful else "")
        rows.append([*row, _seconds(item.provenance)])
    return columns, rows


def _optional(value: float | None) -> str:
    return "-" if value is None else number(value)


def _seconds(provenance: Translation) -> str:
    return f"{sum(provenance.seconds.values()):.1f}"
