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
