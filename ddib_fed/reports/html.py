"""Self-contained HTML pages: figures and pictures in one file that needs no network.

The page embeds everything (pictures as data URIs, a style sheet, no script, a policy that lets
it load nothing), and every text from outside is escaped: only this module makes `Html`, out of plain strings.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from ddib_fed.files import write_file
from ddib_fed.terminal import escape


class Html(str):
    """Text that is safe in the body of a page; made only by this module."""

    __slots__ = ()


Cell = str | float | Html | None

# A page may load only its embedded pictures and styles.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #3c3c46; max-width: 1100px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em } p { max-width: 46em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0 }
th, td { padding: .25em .8em .25em 0; text-align: right; border-bottom: 1px solid #e4e4ea; vertical-align: middle }
th { font-weight: 600; color: #6c6c78; border-bottom-color: #b8b8c2 }
th:first-child, td:first-child { text-align: left }
img { image-rendering: pixelated; display: inline-block; vertical-align: middle; max-width: 100% }
.text th, .text td { text-align: left; vertical-align: top; overflow-wrap: anywhere; min-width: 5em }
@media print { body { font-size: 11px; margin: 0 } h2 { margin-top: 1em; break-after: avoid }
  tr { break-inside: avoid } }
.doubt { color: #c81e3c; font-weight: 600 } figure { margin: 1em 0 } figcaption { color: #6c6c78; font-size: .9em }
"""


def page(title: str, parts: Sequence[Html]) -> str:
    """A complete page of parts made by this module's other functions."""
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def write_page(path: Path, title: str, parts: Sequence[Html]) -> None:
    """Write a page; the file appears completely or not at all."""
    write_file(path, page(title, parts).encode("utf-8", "replace"))


def heading(text: str) -> Html:
    """A heading of a section."""
    return Html(f"<h2>{_text(text)}</h2>")


def paragraph(text: str) -> Html:
    """Running text; a line break ends a paragraph."""
    return Html("".join(f"<p>{_text(line)}</p>" for line in text.split("\n") if line.strip()))


def doubt(text: str) -> Html:
    """A warning label."""
    return Html(f'<span class="doubt">{_text(text)}</span>')


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Html:
    """A table; numbers have three significant digits, None is a dash, `Html` stays as it is and text is escaped."""
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return Html(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table of texts: to the left, and they may be long."""
    return Html(table(columns, rows).replace("<table>", '<table class="text">', 1))


def figures(values: Mapping[str, Cell]) -> Html:
    """Names and values below one another."""
    return table(("", ""), list(values.items()))


def picture(png: bytes, *, text: str, width: int | None = None) -> Html:
    """A PNG inside the page, at its own size or so many pixels wide.

    Args:
        png: The file.
        text: Alternative text.
        width: In pixels of the page; each pixel of the picture stays a square.
    """
    size = f' width="{width:d}"' if width is not None else ""
    data = base64.b64encode(png).decode("ascii")
    return Html(f'<img src="data:image/png;base64,{data}" alt="{_text(text)}"{size}>')


def figure(png: bytes, caption: str) -> Html:
    """A large picture with its caption."""
    return Html(f"<figure>{picture(png, text=caption)}<figcaption>{_text(caption)}</figcaption></figure>")


def _text(text: str) -> str:
    """Plain text as the page shows it: no markup, and no character that would turn, hide or break it."""
    return html.escape(escape(text))


def _cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return cell if isinstance(cell, Html) else _text(str(cell))
