"""Renders every HTML page from the templates of this package; text from outside is escaped, and shown as it prints.

A page that is written to a file extends document.html: it holds all that it shows, and its policy lets it load nothing.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ddib_fed.files import write_file
from ddib_fed.names import __version__
from ddib_fed.terminal import escape

TEMPLATES: Final = Path(__file__).parent / "templates"
GENERATOR: Final = "ddib-fed"  # what pages in files say made them, near their beginning


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if hasattr(value, "__html__") else escape(str(value)),
    )
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("document.css", "document.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals |= {"version": __version__, "generator": GENERATOR}
    made.globals |= {"document_style": style, "document_script": script, "script_digest": digest}
    made.filters |= {"cell": cell, "data_uri": data_uri, "lines": str.splitlines}
    return made


def render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(values)


def write_page(path: Path, template: str, *, overwrite: bool = True, **values: Any) -> None:
    """Write a page; it appears completely or not at all."""
    write_file(path, render(template, **values).encode("utf-8", "replace"), private=True, overwrite=overwrite)


def cell(value: object) -> str:
    """Format a table's value: a dash for None, a float with three significant digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def data_uri(picture: bytes) -> str:
    kind = "jpeg" if picture.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def beside(path: str) -> str:
    """Return the address of a file beside the page; empty for a path that leads elsewhere."""
    if path.startswith("/") or ".." in path.split("/"):
        return ""
    return "./" + quote(path, errors="surrogateescape")
