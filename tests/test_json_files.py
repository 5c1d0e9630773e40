"""A report is there whole or not at all."""

import json

import pytest

from ddib_fed.json_files import write_bytes, write_json


def test_a_report_reads_back(tmp_path):
    write_json(tmp_path / "report.json", {"domain": "moons → checkerboards", "error": 1e-4})
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "domain": "moons → checkerboards",
        "error": 1e-4,
    }


def test_a_figure_that_json_does_not_have_is_refused_and_the_old_report_stays(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"error": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"error": float("nan")})
    assert json.loads(path.read_text()) == {"error": 1}


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    """The destination is a folder, so the final rename fails."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OSError, match="taken"):
        write_bytes(tmp_path / "taken", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
