"""`ddib evaluate`: how good translations are. Heavy imports wait until the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import command, option
from ddib_fed.errors import AlreadyExists
from ddib_fed.terminal import bar, emit, number, print_table, say

if TYPE_CHECKING:
    from ddib_fed.evaluation.judgement import Figures

_FOLDER = click.Path(file_okay=False, path_type=Path)


def _span(text: str) -> tuple[float, float]:
    """Two rising numbers."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise ValueError(f"{text!r} is not LOW:HIGH, such as -1000:2000") from error
    if not low < high < float("inf") or low == float("-inf"):
        raise ValueError(f"{text!r} is empty")
    return low, high


@command()
@click.argument("folder", type=_FOLDER)
@option("--truth FOLDER", "The true translations, by the same names.", _FOLDER)
@option("--source FOLDER", "The translated pictures' sources, by the same names.", _FOLDER)
@option(
    "--domain FOLDER",
    "Other pictures of the target domain, for the feature distance and for histogram matching.",
    _FOLDER,
)
@option(
    "--group-by",
    "folder: intervals draw whole folders of pictures, such as the slices of one patient, instead of single pictures.",
    ("folder",),
)
@option(
    "--size PIXELS",
    "Height and width that all pictures are resized to; default: those of the first translation.",
    click.IntRange(7, 4096),
)
@option(
    "span --range LOW:HIGH",
    "Raw values of black and white; default: the models' if the records have them, else those of the files' type.",
    callback=options.read_by(_span),
)
@option("--out FILE", "Also write an HTML page, with the pictures, the worst first.")
@options.OUTCOME
@options.FORCE
def evaluate(
    folder: Path,
    truth: Path | None,
    source: Path | None,
    domain: Path | None,
    group_by: str | None,
    size: int | None,
    span: tuple[float, float] | None,
    out: Path | None,
    force: bool,
) -> None:
    """Evaluate a folder of translated pictures against references.

    The folder is the output of `ddib translate`, or any folder of pictures. Everything else is optional; figures that
    need a missing input are left out. Pictures are matched by their path below their folder, ignoring the suffix. Each
    mean has its bootstrap interval of 95 % in brackets.
    """
    from ddib_fed.evaluation.pages import write_report_page
    from ddib_fed.evaluation.translations import evaluate_folder

    if out is not None and out.exists() and not force:
        raise AlreadyExists(f"{out} exists", hint="choose another file, or --force")
    with bar("reading") as show:
        report, found = evaluate_folder(
            folder,
            source=source,
            truth=truth,
            domain=domain,
            size=size,
            span=span,
            by_folder=group_by is not None,
            on_read=lambda done, total: show(done, total, ""),
        )
    if out is not None:
        write_report_page(out, f"Translations in {folder.name}", report, found)
    emit(report, lambda: _print(report))


def _print(report: Figures) -> None:
    from ddib_fed.evaluation.judgement import tables

    say(f"{report['count']} pictures, {' x '.join(map(str, report['shape']))}", *report["notes"])
    for table in tables(report):
        say()
        columns = [table.columns[0], *(f">{column}" for column in table.columns[1:])]
        rows = [
            [cell if isinstance(cell, str) else "-" if cell is None else number(cell) for cell in row]
            for row in table.rows
        ]
        print_table(table.title, columns, rows)
        say(table.note)
