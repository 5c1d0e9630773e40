"""`ddib evaluate`: how good translations are. Heavy imports wait until the command runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.errors import AlreadyExists, InputError
from ddib_fed.terminal import bar, say

if TYPE_CHECKING:
    from ddib_fed.evaluation.judgement import Figures
    from ddib_fed.evaluation.structure import Thresholds

_FOLDER = click.Path(file_okay=False, path_type=Path)


class Span(click.ParamType[tuple[float, float]]):
    """Two numbers, LOW:HIGH."""

    name = "range"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        """See click.ParamType."""
        try:
            low, high = (float(part) for part in str(value).split(":"))
        except ValueError:
            self.fail(f"{value!r} is not LOW:HIGH, such as -1000:2000", param, ctx)
        if not low < high < float("inf") or low == float("-inf"):
            self.fail(f"{value!r} is empty", param, ctx)
        return low, high


@command()
@click.argument("folder", type=_FOLDER)
@click.option("--truth", type=_FOLDER, metavar="FOLDER", help="The true translations, by the same names.")
@click.option(
    "--source", type=_FOLDER, metavar="FOLDER", help="The translated pictures' sources, by the same names."
)
@click.option(
    "--domain",
    type=_FOLDER,
    metavar="FOLDER",
    help="Other pictures of the target domain, for the feature distance and for histogram matching.",
)
@click.option(
    "--by-folder",
    is_flag=True,
    help="Intervals draw whole folders of pictures, such as the slices of one patient, instead of single pictures.",
)
@click.option(
    "--thresholds",
    metavar="MODEL",
    help="A model with thresholds of structure (`ddib model thresholds`): what has less is doubtful. Without it the "
    "marks in the records count.",
)
@click.option(
    "--size",
    type=click.IntRange(7, 4096),
    metavar="PIXELS",
    help="Height and width that all pictures are resized to; default: those of the first translation.",
)
@click.option(
    "--range",
    "span",
    type=Span(),
    metavar="LOW:HIGH",
    help="Raw values of black and white; default: the models' if the records have them, else those of the files' type.",
)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Also write an HTML page."
)
@options.FORMAT
@options.FORCE
def evaluate(
    folder: Path,
    truth: Path | None,
    source: Path | None,
    domain: Path | None,
    by_folder: bool,
    thresholds: str | None,
    size: int | None,
    span: tuple[float, float] | None,
    html: Path | None,
    output_format: str,
    force: bool,
) -> None:
    """Evaluate a folder of translated pictures against references.

    The folder is the output of `ddib translate`, or any folder of pictures. Everything else is optional; figures that
    need a missing input are left out. Pictures are matched by their path below their folder, ignoring the suffix. Each
    mean has its bootstrap interval of 95 % in brackets.

    The page of --html embeds the pictures, the worst first.
    """
    from ddib_fed.evaluation.pages import write_report_page
    from ddib_fed.evaluation.translations import evaluate_folder

    if html is not None and html.exists() and not force:
        raise AlreadyExists(f"{html} exists", hint="choose another file, or --force")
    with bar("reading") as show:
        report, found = evaluate_folder(
            folder,
            source=source,
            truth=truth,
            domain=domain,
            size=size,
            span=span,
            by_folder=by_folder,
            thresholds=None if thresholds is None else _thresholds(thresholds),
            on_read=lambda done, total: show(done, total, ""),
        )
    if "edge_correlation" not in report["measured"]:
        options.refuse_idle(
            ("thresholds",),
            "compares translations with their sources, which are not there",
            hint="add --source FOLDER",
        )
    if html is not None:
        write_report_page(html, f"Translations in {folder.name}", report, found)
    _print(report, output_format)


def _thresholds(which: str) -> Thresholds:
    from ddib_fed.models.bundle import open_bundle

    found = open_bundle(which).manifest.structure
    if found is None:
        raise InputError(
            f"the model {which} has no thresholds of structure",
            hint=f"ddib model thresholds {shlex.quote(which)} --images FOLDER",
        )
    return found


def _print(report: Figures, output_format: str) -> None:
    from ddib_fed.cli.output import number, print_json, print_table
    from ddib_fed.evaluation.judgement import tables

    if output_format == "json":
        print_json(report)
        return
    shape = " x ".join(map(str, report["shape"]))
    say(f"{report['count']} pictures, {shape}")
    for note in report["notes"]:
        say(note)
    for table in tables(report):
        say()
        columns = [table.columns[0], *(f">{column}" for column in table.columns[1:])]
        rows = [
            [cell if isinstance(cell, str) else "-" if cell is None else number(cell) for cell in row]
            for row in table.rows
        ]
        print_table(table.title, columns, rows)
        say(table.note)
