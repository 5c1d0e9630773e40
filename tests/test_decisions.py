"""docs/decisions: titles in one form, and an index of all of them."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "decisions"
PAGES = sorted(path.name for path in FOLDER.glob("[0-9]*.md"))


def test_each_title_carries_its_number_and_is_in_the_index() -> None:
    """The index links every page under its title."""
    lines = (FOLDER / "README.md").read_text().splitlines()
    entries = [line for line in lines if line.startswith("- [")]
    titles = [(FOLDER / name).read_text().split("\n", 1)[0] for name in PAGES]
    assert all(re.fullmatch(r"# \d{4} \S.*", title) for title in titles)
    expected = [f"- [{name[:4]}]({name}) {title[7:]}" for name, title in zip(PAGES, titles, strict=True)]
    assert entries == expected


def test_links_to_decisions_lead_somewhere() -> None:
    """In every page of the documentation."""
    root = FOLDER.parents[1]
    for page in [*root.glob("*.md"), *(root / "docs").rglob("*.md")]:
        for target in re.findall(r"\((?:[^()\s]*/)?(\d{4}-[^()\s#]+\.md)\)", page.read_text()):
            assert target in PAGES, f"{page.name}: {target}"
