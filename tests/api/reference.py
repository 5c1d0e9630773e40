"""Writes the reference of the public Python interface as HTML: `make docs`, or python -m tests.api.reference FOLDER."""

import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pdoc

import ddib_fed

ROOT = Path(__file__).parents[2]
BESIDE = ["errors", "studies", "importing", "datasets", "metrics", "testing"]


def write(folder: Path) -> None:
    """Write a page for what `ddib_fed.__all__` names, and one for each public module beside it."""
    for name in ddib_fed.__all__:  # pdoc reads the module's dict, where names appear when they are first used
        setattr(ddib_fed, name, getattr(ddib_fed, name))
    pdoc.render.configure(docformat="numpy", show_source=False)
    # Annotations of a base in another module: pdoc cannot look them up, and shows them as they are written.
    warnings.filterwarnings("ignore", "Error parsing type annotation")
    pdoc.pdoc("ddib_fed", *map("ddib_fed.{}".format, BESIDE), output_directory=folder)


class Page(HTMLParser):
    """The links of a page, and what they can lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.add(given.get("id") or "")
        if tag == "a":
            self.links.add(given.get("href") or "")


def faults(folder: Path) -> list[str]:
    """Return the internal links that lead nowhere, and the pages that name this machine's folders."""
    texts = {path.resolve(): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    pages = {path: Page(text) for path, text in texts.items()}
    dead = [
        f"{path.name}: {link} leads nowhere"
        for path, page in pages.items()
        for link in sorted(page.links)
        for parts in [urlsplit(link)]
        for target in [(path.parent / unquote(parts.path)).resolve() if parts.path else path]
        if not parts.scheme
        and (target not in pages or unquote(parts.fragment) not in pages[target].anchors | {""})
    ]
    own = (str(ROOT), str(Path.home()))
    return dead + [
        f"{path.name}: names {word}" for path, text in texts.items() for word in own if word in text
    ]


if __name__ == "__main__":
    made = Path(sys.argv[1])
    write(made)
    sys.exit("\n".join(faults(made)) or None)
