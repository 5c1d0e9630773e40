"""`ddib evaluate` measures a folder and says it as a table, as JSON and as a page."""

import json

import pytest

from ddib_fed.cli.model import evaluate
from tests.runs.picture_folders import blocks, record, write


@pytest.fixture
def folders(tmp_path):
    """Translations with a round trip in their records, and the truth."""
    write(tmp_path / "t", blocks(5) * 0.9)
    for number in range(5):
        record(tmp_path / "t", f"p{number:02}")
    write(tmp_path / "truth", blocks(5))
    return tmp_path


def test_a_table_a_page_and_json_say_the_same(ddib, folders):
    page = folders / "page.html"
    said = json.loads(ddib(evaluate, folders / "t", "--truth", folders / "truth", "--format", "json").stdout)
    text = ddib(evaluate, folders / "t", "--truth", folders / "truth", "--out", page).stdout
    mean = f"{said['ways']['translated']['psnr']['value']:.3g}"
    assert mean in text
    assert mean in page.read_text(encoding="utf-8")
    assert said["spread"]["cycle_psnr"]["median"] == 40.0
    assert "5 pictures, 1 x 16 x 16" in text
    assert "Translation and truth" in text
    assert "Doubtful: 0 of 5." in text
