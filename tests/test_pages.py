"""A page holds all that it shows, and nothing of what it was told becomes markup."""

import base64
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from ddib_fed.pages import beside, render, write_page

EVIL = "<script>alert('1')</script> \"&"
PNG = b"\x89PNG\r\n\x1a\n..."


class Tags(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def folder(text: str = "t", picture: bytes = PNG, **values: Any) -> str:
    """The page of a report on a folder, with one picture; each of its texts is `text`."""
    numbers = [text, 0.123456, None, 12345.6, 7]
    table = {"title": text, "columns": [text], "rows": [numbers], "note": text, "kind": ""}
    row = {"name": text, "address": "", "mark": text, "pictures": [(picture, text, 64)], "figures": [1.0]}
    known = {
        "title": text, "verdict": text, "notes": [text], "tables": [table], "columns": [text], "rows": [row],
        "left_out": 0, "provenance": [(text, text)],
    }  # fmt: skip
    return render("pictures.html", **{**known, **values})


def rehearsal(text: str) -> str:
    side = {"domain": text, "folder": text, "lines": [text], "figures": [(text, text)], "verdict": text}
    side |= dict.fromkeys(("loss_chart", "samples", "held_out"), PNG)
    way = {"title": text, "sheet": PNG, "folder": text, "notes": [text], "tables": []}
    return render("rehearsal.html", title=text, advice=[text], ways=[way], sides=[side])


@pytest.mark.parametrize("make", [folder, rehearsal])
def test_whatever_is_said_stays_text(make) -> None:
    seen = Tags(make(EVIL))
    assert [tag for tag, _ in seen.tags].count("script") == (make is folder)
    assert seen.text.count("<script>") > 8
    assert all(EVIL in str(attributes["alt"]) for tag, attributes in seen.tags if tag == "img")
    captions = [tag for tag, _ in seen.tags if tag == "figcaption"]
    assert len(captions) == (4 if make is rehearsal else 0)


@pytest.mark.parametrize("make", [folder, rehearsal])
def test_nothing_is_loaded_from_anywhere(make) -> None:
    document = make("t")
    sources = re.findall(r'(?:src|href|url\()="?([^">]+)', document)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert base64.b64decode(sources[0].partition(",")[2]) == PNG
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in document
    assert not re.search("https?://", document)


def test_a_name_that_is_no_text_does_not_stop_the_page(tmp_path) -> None:
    """File names may hold bytes that are no UTF-8, which Python keeps as lone surrogates."""
    write_page(tmp_path / "p.html", "notice.html", title="Größe", text="bad \udcff name", url="", icon=False)
    assert rb"bad \udcff name" in (tmp_path / "p.html").read_bytes()
    assert "Größe" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_no_name_turns_or_hides_the_text_beside_it() -> None:
    """An override of direction shows evilgnp.exe as evilexe.png, in a browser as in a terminal."""
    document = folder("evil\u202egnp.exe\x1b\u200b")
    assert all(character.isprintable() or character == "\n" for character in document)
    assert document.count(r"evil\u202egnp.exe\x1b\u200b") == 14


def test_a_link_leads_to_a_file_beside_the_page_and_nowhere_else() -> None:
    assert beside("a b/ü.png") == "./a%20b/%C3%BC.png"
    assert beside("../secret.png") == beside("/etc/passwd") == ""
    assert beside("javascript:alert(1)").startswith("./javascript%3Aalert")
