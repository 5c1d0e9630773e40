"""Tables in Markdown, and what stands between two markers of a page."""

from __future__ import annotations

from typing import Any


def between(text: str, name: str, writer: str, new: str) -> str:
    begin, end = f"<!-- {name}: written by {writer} -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{new.strip()}\n\n{end}{rest.split(end)[1]}"


def markdown(columns: tuple[str, ...], rows: tuple[tuple[Any, ...], ...]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
