"""Prints what was submitted and what was written: tables for people, one JSON document for scripts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddib_fed.bridge.records.translation_record import (
    DOUBTFUL_BELOW,
    Part,
    Translation,
    fitted_line,
    tiles_in,
)
from ddib_fed.cli.client.delivery import Delivered
from ddib_fed.cli.client.translation.document import Document
from ddib_fed.cli.client.translation.outcome import Outcome
from ddib_fed.cli.output import number, print_json, print_table
from ddib_fed.client.views import JobView, Submitted
from ddib_fed.terminal import say
from ddib_fed.wire.jobs import JobState

MOST_ROWS = 40
"""Results that are listed one by one; of more the page has the table."""


def print_submitted(
    jobs: Sequence[Submitted], target: str, out: Path | None, output_format: str, profile: Path | None = None
) -> None:
    """Print jobs and the commands to follow them."""
    if output_format == "json":
        listed = [
            {"job_id": j.job_id, "request_id": j.request_id, "state": j.state, "target": target} for j in jobs
        ]
        print_json(listed[0] if len(listed) == 1 else {"target": target, "jobs": listed})
        return
    where = shlex.quote(str(out)) if out is not None else "DIR"
    more = f" --profile {shlex.quote(str(profile))}" if profile is not None else ""
    for job in jobs:
        pasted = shlex.quote(job.job_id)
        say(f"job {job.job_id} is {job.state.lower()} (to {target})")
        say(f"  watch: ddib job watch {pasted}{more}")
        say(f"  fetch: ddib job fetch {pasted} --out {where}{more}")


def report(
    job: JobView,
    delivered: Sequence[Delivered],
    out: Path,
    output_format: str,
    *,
    doubtful_below: float = DOUBTFUL_BELOW,
) -> None:
    """Print the written results of one job: a table, or one JSON document."""
    if output_format == "json":
        items = [_as_json(item) for item in delivered]
        print_json(
            {"job_id": job.job_id, "state": job.state, "target": job.target, "out": out, "items": items}
        )
        return
    if not delivered:
        if job.state is JobState.FINISHED:
            say(f"job {job.job_id}: nothing left to fetch at the node", err=True)
        return
    _say_fitted(delivered)
    _say_table(delivered, cycle=job.cycle)
    say(f"{len(delivered)} of {len(job.items)} items of job {job.job_id} are in {out}")
    _say_marks(delivered, doubtful_below)


def report_outcome(
    outcome: Outcome, target: str, out: Path, document: Document, *, doubtful_below: float, page: Path | None
) -> None:
    """Print what a whole command translated as a table, or add it to the JSON document."""
    if document.is_wanted:
        document.add(_outcome_as_json(outcome, target, out, page))
        return
    delivered = outcome.delivered
    if not delivered:
        return
    _say_fitted(delivered)
    if len(delivered) <= MOST_ROWS:
        _say_table(delivered, cycle=any(d.provenance.cycle or _has_psnr(d.provenance) for d in delivered))
    elif said := _calibrated(delivered):
        say(said)
    say(_where(outcome, out))
    _say_marks(delivered, doubtful_below)
    if page is not None:
        say(f"page: {page}")


def _where(outcome: Outcome, out: Path) -> str:
    """How many results are where, and which were there before."""
    done, jobs = len(outcome.delivered), outcome.jobs
    if len(jobs) == 1 and not outcome.earlier and outcome.total == len(jobs[0].items):
        return f"{done} of {len(jobs[0].items)} items of job {jobs[0].job_id} are in {out}"
    before = f"; {outcome.earlier:,} of them were there before" if outcome.earlier else ""
    of = f" of {len(jobs)} jobs" if len(jobs) > 1 else f" of job {jobs[0].job_id}" if jobs else ""
    return f"{done:,} of {outcome.total:,} files{of} are in {out}{before}"


def _outcome_as_json(outcome: Outcome, target: str, out: Path, page: Path | None) -> dict[str, Any]:
    jobs = [{"job_id": job.job_id, "state": job.state} for job in outcome.jobs]
    return {
        **(jobs[0] if len(jobs) == 1 else {}),
        "target": target,
        "out": out,
        "files": outcome.total,
        "earlier": outcome.earlier,
        "jobs": jobs,
        "page": page,
        "left_out": [each.as_json() for each in outcome.left_out],
        "failed": [each.as_json() for each in outcome.failed],
        "not_submitted": list(outcome.not_submitted),
        "items": [_as_json(item) for item in outcome.delivered],
    }


def _has_psnr(provenance: Translation) -> bool:
    return provenance.picture is not None and provenance.picture.cycle_psnr is not None


def _say_table(delivered: Sequence[Delivered], *, cycle: bool) -> None:
    pictures = any(item.provenance.picture for item in delivered)
    columns, rows = (_picture_table if pictures else _point_table)(delivered, cycle=cycle)
    print_table("", columns, rows)
    if said := _calibrated(delivered):
        say(said)


def _say_fitted(delivered: Sequence[Delivered]) -> None:
    """Say first which pictures were not translated at their own size, and how they would be."""
    if not (line := fitted_line([(item.file, item.provenance) for item in delivered])):
        return
    say(line)
    sides = {
        (p.fitted_height, p.fitted_width) for item in delivered if (p := item.provenance.picture) and p.lost
    }
    tiles = [
        sum(
            tiles_in(p.height, p.width, (side, side))
            for item in delivered
            if (p := item.provenance.picture) and p.lost
        )
        for side, across in sides
        if side is not None and side == across
    ]
    if len(sides) == 1 and tiles and tiles[0]:
        ((side, _),) = sides
        say(f"  at their own size, in {tiles[0]:,} tiles: --tile {side}")


def _say_marks(delivered: Sequence[Delivered], doubtful_below: float) -> None:
    """Which results are doubtful, and which pictures were clipped."""
    _say_doubtful(delivered, doubtful_below)
    if clipped := [item.file for item in delivered if (p := item.provenance.picture) and p.clipped]:
        say(
            f"{len(clipped)} clipped: values outside the source model's range; the figures refer to the "
            f"original pictures ({_some(clipped)})",
            err=True,
        )


def _calibrated(delivered: Sequence[Delivered]) -> str:
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
    return ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")


def _as_json(item: Delivered) -> dict[str, object]:
    provenance = item.provenance
    return {
        "item": item.item,
        "job_id": provenance.job_id,
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
            at = f" at {picture.fitted_width}x{picture.fitted_height}" if picture.lost else ""
            row = [item.file, f"{picture.width}x{picture.height}{at}", _optional(picture.edge_correlation)]
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
