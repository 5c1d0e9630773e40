"""What a model draws lies in files, listed in a report."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import open_party
from ddib_fed.evaluation.draws import between, draw_pictures
from tests.runs.tiny_models import tiny

FEW = SolverSettings("unipc", 3, 3)


@pytest.fixture(scope="module")
def side():
    return open_party(tiny())


def test_samples_are_numbered_files_in_a_sheet_and_a_report(side, tmp_path):
    """The first are the same however many are drawn."""
    draw_pictures(side, 11, ArraySettings(FEW, seed=5), tmp_path / "many")
    report = draw_pictures(side, 2, ArraySettings(FEW, seed=5), tmp_path / "few")
    assert report["pictures"] == ["sample_0.png", "sample_1.png"]
    assert json.loads((tmp_path / "few" / "report.json").read_text()) == report
    assert (tmp_path / "few" / "sheet.png").exists()
    few, many = (read_image(tmp_path / name).pixels for name in ("few/sample_1.png", "many/sample_01.png"))
    assert np.abs(few.astype(int) - many).max() <= 1


def test_frames_between_two_pictures_have_the_first_ones_size(side, tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, size in zip(paths, ((12, 10), (8, 8)), strict=True):
        path.write_bytes(encode_png(np.full((*size, 1), 90, np.uint8)))
    report = between((paths[0], paths[1]), side, side, ArraySettings(FEW), tmp_path / "out", frames=3)
    assert report["weights"] == [0.0, 0.5, 1.0]
    assert [read_image(tmp_path / "out" / name).pixels.shape for name in report["pictures"]] == [
        (12, 10, 1)
    ] * 3
