"""Writes the page and the sheet of a command's results into their folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.bridge.records.translation_record import Part
from ddib_fed.cli.client.delivery import Delivered
from ddib_fed.cli.client.progress import counted
from ddib_fed.cli.client.translation.outcome import Outcome
from ddib_fed.errors import DiskFull, InputError
from ddib_fed.files import is_disk_full

if TYPE_CHECKING:
    from ddib_fed.formats.parts import WrittenStudy

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
    from ddib_fed.reports.results import Results, ShownFile, write_results

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
    results = Results(
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
