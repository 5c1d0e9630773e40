"""What a run has translated: sentences and a table for people, one JSON document for scripts, and the page."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed.client.views import Submitted
from ddib_fed.engine.record import Part, Translation, fitted_line, tiles_in
from ddib_fed.errors import DiskFull, InputError
from ddib_fed.files import is_disk_full
from ddib_fed.terminal import bar, emit, number, print_table, say

if TYPE_CHECKING:
    from ddib_fed.client.folder_run import FolderRun
    from ddib_fed.client.results import Delivered
    from ddib_fed.formats.parts import WrittenStudy

PAGE, SHEET = "report.html", "sheet.png"
FEWEST = 2
"""Pictures: of one alone the record and the file say all."""
_SLOW = 50
"""Pictures from which drawing has a bar of its own."""
MOST_ROWS = 40
"""Results that are listed one by one; of more the page has the table."""


def write_pages(run: FolderRun) -> Path | None:
    """Write the page and the sheet; where the page is, or None if there are too few pictures."""
    pictures = [each for each in run.delivered if each.provenance.picture is not None]
    whole = [each for each in run.written if each.shown.suffix == ".png"]
    if len(pictures) + len(whole) < FEWEST:
        return None
    page, sheet = _places(run)
    try:
        _write(run, pictures, whole, page, sheet)
    except OSError as error:
        kind, out = DiskFull if is_disk_full(error) else InputError, run.options.out
        raise kind(
            f"{error.filename or page} cannot be written: {error.strerror or error}; every result is in {out}",
            hint="make room, then the same command again",
            hop="client",
        ) from error
    return page


def _write(
    run: FolderRun, pictures: list[Delivered], whole: Sequence[WrittenStudy], page: Path, sheet: Path
) -> None:
    from ddib_fed.evaluation.pages import ShownFile, ShownFiles, write_results

    sources = {item.file: item.path for item in run.items}
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
    for study in whole:
        back = study.provenance.files.get(Part.RETURNED)
        returned = study.record.parent / back.file if back else None
        files.append(ShownFile(study.given.name, study.provenance, study.shown, study.given, returned))
    missing = [(str(each.path), each.why) for each in (*run.left_out, *run.failed)]
    missing += [(str(path), "was not submitted") for path in run.not_submitted]
    first = files[0].record
    target = f"{first.target_institution}/{first.target_domain}".lstrip("/")
    results = ShownFiles(target, run.total, files, tuple(missing))
    if len(files) < _SLOW:
        write_results(page, sheet, results)
        return
    with bar("drawing the page") as show:
        write_results(page, sheet, results, on_drawn=lambda done, total: show(done, total, ""))


def _places(run: FolderRun) -> tuple[Path, Path]:
    """Where the page and the sheet go: in place of earlier ones of ours, and of nothing else."""
    from ddib_fed.pages import GENERATOR

    taken = {path.name for each in run.delivered for path in each.files.values()}
    count = 0
    while True:
        more = f"-{count}" if count else ""
        page, sheet = (run.options.out / name.replace(".", f"{more}.") for name in (PAGE, SHEET))
        if page.exists():
            with page.open("rb") as file:
                ours = f'content="{GENERATOR}"'.encode() in file.read(500)
        else:
            ours = not sheet.exists()
        if ours and not {page.name, sheet.name} & taken:
            return page, sheet
        count += 1


def print_submitted(jobs: Sequence[Submitted], target: str, out: Path, profile: Path | None) -> None:
    listed = [
        {"job_id": j.job_id, "request_id": j.request_id, "state": j.state, "target": target} for j in jobs
    ]
    more = f" --profile {shlex.quote(str(profile))}" if profile is not None else ""

    def show() -> None:
        for job in jobs:
            pasted = shlex.quote(job.job_id)
            say(f"job {job.job_id} is {job.state.lower()} (to {target})")
            say(f"  watch: ddib job watch {pasted}{more}")
            say(f"  fetch: ddib job fetch {pasted} --out {shlex.quote(str(out))}{more}")

    emit(listed[0] if len(listed) == 1 else {"target": target, "jobs": listed}, show)


def report_run(run: FolderRun, page: Path | None = None) -> None:
    emit(_as_json(run, page), lambda: _say_run(run, page))


def _say_run(run: FolderRun, page: Path | None) -> None:
    for study in run.written:
        _say_study(study)
    delivered = run.delivered
    if delivered:
        _say_fitted(delivered)
        if len(delivered) <= MOST_ROWS:
            _print_results(delivered)
        used = {(p.calibration_kind, p.calibration_sha256[:12]) for p in (d.provenance for d in delivered)}
        if said := ", ".join(f"calibration: {kind} {sha256}" for kind, sha256 in sorted(used) if sha256):
            say(said)
        say(_where(run))
        _say_marks(delivered, run.options.doubtful_below)
    if page is not None:
        say(f"page: {page}")


def _say_study(each: WrittenStudy) -> None:
    say(f"{each.given}: {each.kind}, {each.items} items -> {each.shown}")
    picture, round_trip = each.provenance.picture, ""
    if "tiles" in each.report and picture is not None and picture.cycle_psnr is not None:
        mark = ", doubtful" if "cycle_psnr" in (each.provenance.doubts or ()) else ""
        size = f"{picture.width}x{picture.height}"
        round_trip = f"round trip {picture.cycle_psnr:.1f} dB at its own {size} pixels{mark}"
    for line in filter(None, (each.refused, round_trip, *each.said)):
        say(f"  {line}")
    if doubtful := sum(bool(item.get("doubtful")) for item in each.report["items"]):
        say(f"  {doubtful} of {each.items} items doubtful ({each.record})", err=True)


def _where(run: FolderRun) -> str:
    done, jobs, out = len(run.delivered), run.jobs, run.options.out
    if len(jobs) == 1 and not run.earlier and run.total == len(jobs[0].items):
        return f"{done} of {len(jobs[0].items)} items of job {jobs[0].job_id} are in {out}"
    before = f"; {run.earlier:,} of them were there before" if run.earlier else ""
    of = f" of {len(jobs)} jobs" if len(jobs) > 1 else f" of job {jobs[0].job_id}" if jobs else ""
    return f"{done:,} of {run.total - len(run.written):,} files{of} are in {out}{before}"


def _as_json(run: FolderRun, page: Path | None) -> dict[str, Any]:
    jobs = [{"job_id": job.job_id, "state": job.state} for job in run.jobs]
    return {
        **(jobs[0] if len(jobs) == 1 else {}),
        "target": run.options.request.target,
        "out": run.options.out,
        "files": run.total,
        "earlier": run.earlier,
        "jobs": jobs,
        "page": page,
        "left_out": [each.as_json() for each in run.left_out],
        "failed": [each.as_json() for each in run.failed],
        "not_submitted": run.not_submitted,
        "items": [_item_as_json(each) for each in run.delivered],
        "studies": [_study_as_json(each) for each in run.written],
    }


def _item_as_json(item: Delivered) -> dict[str, object]:
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


def _study_as_json(each: WrittenStudy) -> dict[str, object]:
    return {
        "input": each.given,
        "kind": each.kind,
        "files": list(each.files),
        "provenance": each.record,
        "planes": each.report["planes"],
        "items": each.items,
        "refused": each.refused,
        "picture": each.provenance.picture,
        "flicker": each.report.get("flicker"),
        "doubtful": each.provenance.doubtful,
        "warnings": each.report["warnings"],
    }


def _say_fitted(delivered: Sequence[Delivered]) -> None:
    """Say which pictures were not translated at their own size, and how they would be."""
    if not (line := fitted_line([(item.file, item.provenance) for item in delivered])):
        return
    say(line)
    lost = [p for item in delivered if (p := item.provenance.picture) and p.lost]
    sides = {(p.fitted_height, p.fitted_width) for p in lost}
    high, wide = next(iter(sides))
    if len(sides) > 1 or high is None or high != wide:
        return
    if tiles := sum(tiles_in(p.height, p.width, (high, high)) for p in lost):
        say(f"  at their own size, in {tiles:,} tiles: --tile {high}")


def _say_marks(delivered: Sequence[Delivered], doubtful_below: float) -> None:
    reasons = {
        "cycle_psnr": f"the round trip is below {doubtful_below:g} dB",
        "structure": "edges or values agree with those of the source no better than those of unrelated pictures",
    }
    for kind, reason in reasons.items():
        if found := [item.file for item in delivered if kind in (item.provenance.doubts or ())]:
            say(f"{len(found)} of {len(delivered)} doubtful: {reason} ({_some(found)})", err=True)
    if clipped := [item.file for item in delivered if (p := item.provenance.picture) and p.clipped]:
        say(
            f"{len(clipped)} clipped: values outside the source model's range; the figures refer to the "
            f"original pictures ({_some(clipped)})",
            err=True,
        )


def _some(files: Sequence[str]) -> str:
    return ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")


def _print_results(delivered: Sequence[Delivered]) -> None:
    records = [item.provenance for item in delivered]
    pictures = any(record.picture for record in records)
    cycle = any(r.cycle or (r.picture and r.picture.cycle_psnr is not None) for r in records)
    marked = any(record.doubts is not None for record in records)
    if pictures:
        columns = ["file", ">pixels", ">edges", *([">cycle dB"] if cycle else []), *([""] if marked else [])]
    else:
        columns = ["file", ">samples", *([">cycle median", ">cycle p99", ">cycle max"] if cycle else [])]
    rows = []
    for item in delivered:
        made = _picture_cells if pictures else _point_cells
        cells = made(item.provenance, cycle=cycle, marked=marked)
        rows.append([item.file, *cells, f"{sum(item.provenance.seconds.values()):.1f}"])
    print_table("", [*columns, ">seconds"], rows)


def _picture_cells(record: Translation, *, cycle: bool, marked: bool) -> list[str]:
    picture, cells = record.picture, ["-", "-"]
    if picture is not None:
        at = f" at {picture.fitted_width}x{picture.fitted_height}" if picture.lost else ""
        edges = "-" if picture.edge_correlation is None else number(picture.edge_correlation)
        cells = [f"{picture.width}x{picture.height}{at}", edges]
    if cycle:
        psnr = picture.cycle_psnr if picture is not None else None
        cells.append("-" if psnr is None else f"{psnr:.1f}")
    return [*cells, *(["doubtful" if record.doubtful else ""] if marked else [])]


def _point_cells(record: Translation, *, cycle: bool, marked: bool) -> list[str]:
    del marked  # points have no bounds
    error = record.cycle
    figures = [number(error.median), number(error.p99), number(error.max)] if error else ["-"] * 3
    return [f"{record.samples:,}", *(figures if cycle else [])]
