"""The reference of the Python interface: everything public is in it, and its links lead somewhere."""

from pathlib import Path

import pytest

import ddib_fed
from tests.api.reference import Page, faults, write


@pytest.mark.slow
def test_the_reference_is_whole(tmp_path: Path) -> None:
    write(tmp_path)
    page = Page((tmp_path / "ddib_fed.html").read_text())
    assert set(ddib_fed.__all__) <= page.anchors
    assert "Client.from_profile" in page.anchors
    assert faults(tmp_path) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">b</a> <a href="#here">a</a> <a href="https://x.example">x</a>'
    )
    (tmp_path / "b.html").write_text('<p id="else">b</p>')
    assert faults(tmp_path) == ["a.html: #here leads nowhere", "a.html: b.html#there leads nowhere"]
