"""One section of the officer's page, as plain text and a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the page.

    Attributes:
        title: Its heading.
        lines: Sentences before the table.
        columns: Of the table; none for no table.
        rows: Of the table.
    """

    title: str
    lines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
