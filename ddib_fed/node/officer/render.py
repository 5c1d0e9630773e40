"""The officer's page as a self-contained HTML file, or as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ddib_fed.node.officer.section import Section
from ddib_fed.reports import html
from ddib_fed.terminal import escape

_MARKUP = re.compile(r"[\\|<>\[\]*]")


def as_html(title: str, parts: Sequence[Section]) -> str:
    return html.page(title, [piece for part in parts for piece in _html(part)])


def _html(part: Section) -> Iterator[html.Html]:
    yield html.heading(part.title)
    yield html.paragraph("\n".join(part.lines))
    if part.columns:
        yield html.text_table(part.columns, part.rows)


def as_markdown(title: str, parts: Sequence[Section]) -> str:
    """The same for a repository or a ticket."""
    blocks = [f"# {_cell(title)}"]
    for part in parts:
        blocks.append(f"## {_cell(part.title)}")
        blocks += [_cell(line) for line in part.lines]
        if part.columns:
            head = [_row(part.columns), _row(["---"] * len(part.columns))]
            blocks.append("\n".join([*head, *map(_row, part.rows)]))
    return "\n\n".join(blocks) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", escape(text))
