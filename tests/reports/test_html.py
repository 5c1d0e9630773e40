"""A page holds all that it shows, and nothing of what it was told becomes markup."""

import base64
import re
from html.parser import HTMLParser

from ddib_fed.reports.html import (
    doubt,
    figure,
    figures,
    heading,
    link,
    page,
    paragraph,
    picture,
    table,
    write_page,
)

EVIL = "<script>alert('1')</script> \"&"
PNG = b"\x89PNG\r\n\x1a\n..."


class Tags(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def parsed(document):
    parser = Tags()
    parser.feed(document)
    return parser


def test_whatever_is_said_stays_text():
    parts = [
        heading(EVIL),
        paragraph(EVIL),
        table([EVIL], [[EVIL]]),
        figures({EVIL: EVIL}),
        picture(PNG, text=EVIL),
        figure(PNG, EVIL),
        doubt(EVIL),
    ]
    seen = parsed(page(EVIL, parts))
    assert "script" not in {tag for tag, _ in seen.tags}
    assert seen.text.count("<script>") == 10  # title, h1, h2, p, th, td, two of the figures, caption, doubt
    assert [attributes["alt"] for tag, attributes in seen.tags if tag == "img"] == [EVIL, EVIL]


def test_nothing_is_loaded_from_anywhere():
    document = page("t", [picture(PNG, text="p", width=64), figure(PNG, "f")])
    sources = re.findall(r'(?:src|href|url\()="?([^">]+)', document)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(sources) == 2
    assert base64.b64decode(sources[0].partition(",")[2]) == PNG
    assert "default-src &#x27;none&#x27;" in document
    assert "http://" not in document
    assert "https://" not in document


def test_cells_are_numbers_dashes_or_markup_of_our_own():
    cells = table(["a", "b", "c", "d", "e"], [[0.123456, None, 12345.6, 7, doubt("!")]])
    assert "<td>0.123</td><td>–</td><td>12,346</td><td>7</td>" in cells
    assert '<span class="doubt">!</span>' in cells


def test_paragraphs_end_with_the_line():
    assert paragraph("one\n\ntwo") == "<p>one</p><p>two</p>"


def test_a_page_is_a_file_of_utf8(tmp_path):
    write_page(tmp_path / "p.html", "Größe", [])
    assert "Größe" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_a_name_that_is_no_text_does_not_stop_the_page(tmp_path):
    """File names may hold bytes that are no UTF-8, which Python keeps as lone surrogates."""
    write_page(tmp_path / "p.html", "t", [paragraph("bad \udcff name")])
    assert rb"bad \udcff name" in (tmp_path / "p.html").read_bytes()


def test_no_name_turns_or_hides_the_text_beside_it():
    """An override of direction shows evilgnp.exe as evilexe.png, in a browser as in a terminal."""
    name = "evil\u202egnp.exe\x1b\u200b"
    parts = [heading(name), paragraph(name), doubt(name), table([name], [[name]]), figure(PNG, name)]
    document = page(name, parts)
    assert all(character.isprintable() or character == "\n" for character in document)
    assert document.count(r"evil\u202egnp.exe\x1b\u200b") == 9


def test_a_link_leads_to_a_file_beside_the_page_and_nowhere_else():
    """A name that would leave the folder, or be an address, is text alone."""
    assert link("a b/ü.png", "ü") == '<a href="./a%20b/%C3%BC.png">ü</a>'
    assert "<a" not in link("../secret.png", "x")
    assert "<a" not in link("/etc/passwd", "x")
    assert link("javascript:alert(1)", EVIL).startswith('<a href="./javascript%3Aalert')


def test_a_jpeg_is_shown_as_one():
    """By its first bytes."""
    assert "data:image/jpeg;" in picture(b"\xff\xd8\xff..", text="")
