"""Prints what was submitted and what was written: tables for people, one JSON document for scripts."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed.cli.delivery import Delivered
from ddib_fed.cli.folder_state import Outcome
from ddib_fed.cli.output import number, print_json, print_table
from ddib_fed.cli.progress import counted
from ddib_fed.client.views import Submitted
from ddib_fed.engine.record import DOUBTFUL_BELOW, Part, Translation, fitted_line, tiles_in
from ddib_fed.errors import DiskFull, InputError
from ddib_fed.files import is_disk_full
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.formats.parts import WrittenStudy


@dataclass(frozen=True, slots=True)
class Document:
    """What a command has to say as JSON, in parts."""

    is_wanted: bool
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, part: Mapping[str, Any]) -> None:
        """Take another part; lists that both have are one list."""
        if not self.is_wanted:
            return
        for name, value in part.items():
            before = self.values.get(name)
            self.values[name] = [*before, *value] if isinstance(before, list) else value


@contextmanager
def one_document(output_format: str) -> Iterator[Document]:
    """A document that is printed at the end, also by an error: what was translated before it is on the disk."""
    document = Document(output_format == "json")
    try:
        yield document
    finally:
        if document.values:
            print_json(document.values)


PAGE, SHEET = "report.html", "sheet.png"
FEWEST = 2
"""Pictures: of one alone the record and the file say all."""
_SLOW = 50
"""Pictures from which drawing has a bar of its own."""


def write_pages(outcome: Outcome, out: Path, whole: Sequence[WrittenStudy] = ()) -> Path | None:
    """Write the page and the sheet; where the page is, or None if there is none."""
    pictures = [each for each in outcome.delivered if each.provenance.picture is not None]
    tiled = [each for each in whole if each.shown.suffix == ".png"]
    if len(pictures) + len(tiled) < FEWEST:
        return None
    page, sheet = _places(out, {path.name for each in outcome.delivered for path in each.files.values()})
    try:
        _write(outcome, pictures, tiled, page, sheet)
    except OSError as error:
        kind = DiskFull if is_disk_full(error) else InputError
        raise kind(
            f"{error.filename or page} cannot be written: {error.strerror or error}; every result is in {out}",
            hint="make room, then the same command again; or leave the page out with --no-page",
            hop="client",
        ) from error
    return page


def _write(
    outcome: Outcome, pictures: list[Delivered], tiled: Sequence[WrittenStudy], page: Path, sheet: Path
) -> None:
    from ddib_fed.evaluation.pages import ShownFile, ShownFiles, write_results

    sources = {entry.given.file: entry.path for entry in outcome.entries}
    given = Counter(each.file for each in pictures)
    files = [
        ShownFile(
            each.file if given[each.file] == 1 else each.files[Part.TRANSLATION].name,
            each.provenance,
            each.files[Part.TRANSLATION],
            each.files.get(Part.SOURCE, sources.get(each.file)),
            each.files.get(Part.RETURNED),
        )
        for each in pictures
    ]
    for study in tiled:
        returned = (
            study.record.parent / back.file if (back := study.provenance.files.get(Part.RETURNED)) else None
        )
        files.append(ShownFile(study.given.name, study.provenance, study.shown, study.given, returned))
    missing = [(str(each.path), each.why) for each in (*outcome.left_out, *outcome.failed)]
    missing += [(str(path), "was not submitted") for path in outcome.not_submitted]
    first = files[0].record
    results = ShownFiles(
        f"{first.target_institution}/{first.target_domain}".lstrip("/"),
        outcome.total + len(tiled),
        files,
        tuple(missing),
    )
    if len(files) < _SLOW:
        write_results(page, sheet, results)
        return
    with counted("drawing the page") as show:
        write_results(page, sheet, results, on_drawn=show)


def _places(out: Path, taken: set[str]) -> tuple[Path, Path]:
    """Where the page and the sheet go: in place of earlier ones of ours, and of nothing else."""
    from ddib_fed.pages import GENERATOR

    number = 0
    while True:
        more = f"-{number}" if number else ""
        page, sheet = out / PAGE.replace(".", f"{more}."), out / SHEET.replace(".", f"{more}.")
        if page.exists():
            with page.open("rb") as file:
                ours = f'content="{GENERATOR}"'.encode() in file.read(500)
        else:
            ours = not sheet.exists()
        if ours and not {page.name, sheet.name} & taken:
            return page, sheet
        number += 1


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


def report_outcome(
    outcome: Outcome,
    target: str,
    out: Path,
    document: Document,
    *,
    doubtful_below: float = DOUBTFUL_BELOW,
    page: Path | None = None,
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
