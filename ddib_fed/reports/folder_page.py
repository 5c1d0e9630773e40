"""An HTML page of the report on a folder of translations.

The worst come first, and the page states how many it leaves out.
"""

from __future__ import annotations

from pathlib import Path

from ddib_fed.metrics.judgement import Figures
from ddib_fed.metrics.pictures import Pictures
from ddib_fed.reports import html
from ddib_fed.reports.html import Cell, Html
from ddib_fed.reports.sheets import to_pixels
from ddib_fed.reports.tables import per_picture, tables
from ddib_fed.reports.translations import Translations
from ddib_fed.samples.images import encode_png

MOST_ROWS = 200
THUMBNAIL = 128
COLUMNS = {
    "cycle_psnr": "round trip dB",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "edge_correlation": "edge correlation",
    "mutual_information": "mutual information",
}


def write_report_page(
    path: Path, title: str, report: Figures, found: Translations, *, most_rows: int = MOST_ROWS
) -> None:
    """Write the page; the file appears completely or not at all."""
    parts = [html.paragraph(note) for note in report["notes"]]
    for table in tables(report):
        parts += [
            html.heading(table.title),
            html.table(table.columns, table.rows),
            html.paragraph(table.note),
        ]
    parts += _pictures(report, found, most_rows)
    html.write_page(path, title, parts)


def _pictures(report: Figures, found: Translations, most_rows: int) -> list[Html]:
    stages: list[tuple[str, Pictures]] = [
        (title, stack)
        for title, stack in (
            ("source", found.source),
            ("translated", found.translated),
            ("truth", found.truth),
            ("back", found.back),
        )
        if stack is not None
    ]
    rows = per_picture(report)
    known = [key for key in COLUMNS if key in rows[0]]
    where = {name: number for number, name in enumerate(found.names)}
    body: list[list[Cell]] = []
    for row in rows[:most_rows]:
        number = where[row["name"]]
        shown: list[Cell] = [_thumbnail(stack, number, f"{row['name']}, {title}") for title, stack in stages]
        name = [html.doubt(f"{row['name']} (doubtful)") if row.get("doubtful") else row["name"]]
        body.append([*name, *shown, *(row[key] for key in known)])
    columns = ["", *(title for title, _ in stages), *(COLUMNS[key] for key in known)]
    parts = [html.heading("Pictures, the worst first"), html.table(columns, body)]
    if len(rows) > most_rows:
        parts.append(html.paragraph(f"{len(rows) - most_rows} more are left out here."))
    return parts


def _thumbnail(stack: Pictures, number: int, text: str) -> Html:
    height, width = stack.shape[2:]
    shown = max(1, round(THUMBNAIL * width / max(height, width)))
    return html.picture(encode_png(to_pixels(stack[number : number + 1])[0]), text=text, width=shown)
