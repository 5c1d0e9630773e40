"""Self-contained HTML pages: figures and pictures in one file that needs no network.

The page embeds everything (pictures as data URIs, a style sheet, and at most the one script of `page_script`, by its
digest; a policy lets it load nothing), and every text from outside is escaped: only this module makes `Html`, out of
plain strings.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from ddib_fed.files import write_file
from ddib_fed.terminal import escape


class Html(str):
    """Text that is safe in the body of a page; made only by this module."""

    __slots__ = ()


Cell = str | float | Html | None

GENERATOR = "ddib-fed"
"""What pages say made them, near their beginning."""
# A page may load only its embedded pictures and styles.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #3c3c46; max-width: 1100px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em } p { max-width: 46em; overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0 }
th, td { padding: .25em .8em .25em 0; text-align: right; border-bottom: 1px solid #e4e4ea; vertical-align: middle }
th { font-weight: 600; color: #6c6c78; border-bottom-color: #b8b8c2 }
th:first-child, td:first-child { text-align: left }
img { image-rendering: pixelated; display: inline-block; vertical-align: middle; max-width: 100% }
.text th, .text td { text-align: left; vertical-align: top; overflow-wrap: anywhere; min-width: 5em }
.text th, .text td:first-child { overflow-wrap: break-word } .text td:first-child { max-width: 20em }
@media print { body { font-size: 11px; margin: 0 } h2 { margin-top: 1em; break-after: avoid }
  tr { break-inside: avoid } }
.sort th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer }
.sort th button::after { content: " \\2195" / ""; color: #b8b8c2 }
.sort th[aria-sort=ascending] button::after { content: " \\2191" / ""; color: inherit }
.sort th[aria-sort=descending] button::after { content: " \\2193" / ""; color: inherit }
.sort td { vertical-align: middle; overflow-wrap: anywhere }
.sort td button { border: 0; background: none; padding: 2px; cursor: zoom-in }
dialog { max-width: 96vw; border: 1px solid #b8b8c2 } dialog img { width: min(30vw, 512px); margin: .3em }
.verdict { font-size: 1.1em; font-weight: 600 } dt { font-weight: 600 } dd { margin: 0 0 .6em 1.2em; max-width: 46em }
.doubt { color: #c81e3c; font-weight: 600 } figure { margin: 1em 0 } figcaption { color: #6c6c78; font-size: .9em }
"""


def page(title: str, parts: Sequence[Html], *, script: str = "") -> str:
    """A complete page of parts made by this module's other functions."""
    policy = _POLICY
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        policy += f"; script-src 'sha256-{digest}'"
    end = f"<script>{script}</script>" if script else ""
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="generator" content="{GENERATOR}">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1>\n" + "\n".join(parts) + f"\n{end}</body></html>\n"
    )


def write_page(path: Path, title: str, parts: Sequence[Html], *, script: str = "") -> None:
    write_file(path, page(title, parts, script=script).encode("utf-8", "replace"))


def heading(text: str) -> Html:
    return Html(f"<h2>{_text(text)}</h2>")


def paragraph(text: str) -> Html:
    return Html("".join(f"<p>{_text(line)}</p>" for line in text.split("\n") if line.strip()))


def doubt(text: str) -> Html:
    return Html(f'<span class="doubt">{_text(text)}</span>')


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Html:
    """A table; numbers have three significant digits, None is a dash, `Html` stays as it is and text is escaped."""
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return Html(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    return Html(table(columns, rows).replace("<table>", '<table class="text">', 1))


def sortable(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Html:
    return Html(table(columns, rows).replace("<table>", '<table class="sort">', 1))


def verdict(text: str) -> Html:
    return Html(f'<p class="verdict">{_text(text)}</p>')


def terms(meanings: Mapping[str, str]) -> Html:
    """Words and what they mean."""
    return Html(
        "<dl>"
        + "".join(f"<dt>{_text(word)}</dt><dd>{_text(text)}</dd>" for word, text in meanings.items())
        + "</dl>"
    )


def link(path: str, text: str) -> Html:
    """A link to a file beside the page, whose path is relative to it; one that leads elsewhere is text alone."""
    if path.startswith("/") or ".." in path.split("/"):
        return Html(_text(text))
    return Html(f'<a href="./{quote(path, errors="surrogateescape")}">{_text(text)}</a>')


def figures(values: Mapping[str, Cell]) -> Html:
    return table(("", ""), list(values.items()))


def picture(data: bytes, *, text: str, width: int | None = None, zoom: bool = False) -> Html:
    """A PNG or JPEG inside the page, at its own size or so many pixels wide."""
    size = f' width="{width:d}"' if width is not None else ""
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
    more = ' class="zoom" loading="lazy" decoding="async"' if zoom else ""
    encoded = base64.b64encode(data).decode("ascii")
    return Html(f'<img src="data:image/{kind};base64,{encoded}" alt="{_text(text)}"{size}{more}>')


def figure(png: bytes, caption: str) -> Html:
    return Html(f"<figure>{picture(png, text=caption)}<figcaption>{_text(caption)}</figcaption></figure>")


def _text(text: str) -> str:
    return html.escape(escape(text))


def _cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return cell if isinstance(cell, Html) else _text(str(cell))
