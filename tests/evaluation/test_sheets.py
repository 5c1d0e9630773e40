"""What a model draws lies in files, listed in a report; sheets show the very pixels, in their places."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from ddib_fed.data.pictures import read_image
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import open_party
from ddib_fed.evaluation.draws import draw_pictures
from ddib_fed.evaluation.sheets import DOUBT, Stage, clouds, contact_sheet, to_pixels
from tests.runs.tiny_models import pictures, tiny

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


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def flat(count, level, *, size=32, channels=1):
    return np.full((count, channels, size, size), level, np.float32)


def places(sheet, colour):
    rows, columns = np.nonzero((sheet == np.array(colour)).all(axis=2))
    return len(rows), rows.min(), rows.max(), columns.min(), columns.max()


def test_a_picture_is_shown_pixel_by_pixel():
    x = pictures(1, channels=3, size=120)
    sheet = opened(contact_sheet([Stage("", x)]))
    pixels = to_pixels(x)[0]
    row, column = np.argwhere((sheet == pixels[0, 0]).all(axis=2))[0]
    assert (sheet[row : row + 120, column : column + 120] == pixels).all()


def test_stages_stand_beneath_one_another_and_pictures_beside():
    """Ten pictures in bands of four: three bands, each with both stages."""
    red, green = (
        np.stack([flat(10, 1)[:, 0] * s for s in signs], axis=1) for signs in ((1, -1, -1), (-1, 1, -1))
    )
    sheet = opened(contact_sheet([Stage("source", red), Stage("target", green)], across=4))
    count, top, _, left, right = places(sheet, (255, 0, 0))
    assert count == 10 * 96 * 96
    assert places(sheet, (0, 255, 0))[1] == top + 100
    assert right - left + 1 == 4 * 100 - 4
    changes = np.diff((sheet[:, left] == (255, 0, 0)).all(axis=1).astype(int))
    assert (changes == 1).sum() == 3


def test_a_doubtful_picture_is_framed():
    plain = opened(contact_sheet([Stage("a", flat(3, 0))], names=["x", "y", "z"], doubtful=[False] * 3))
    marked = opened(
        contact_sheet([Stage("a", flat(3, 0))], names=["x", "y", "z"], doubtful=[False, True, False])
    )
    assert not (plain == np.array(DOUBT)).all(axis=2).any()
    _, _, _, left, right = places(marked, DOUBT)
    assert 96 < right - left < 104


@pytest.fixture
def cloud():
    return np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)


def size_of(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize("title", ["$\\frac$", "a$b$c", "x\u202ey\x1b\n"])
def test_a_title_is_text_and_no_formula(title, cloud, tmp_path):
    """A bundle's name may hold anything; matplotlib would set dollars as mathematics, or raise."""
    clouds([(title, cloud)], tmp_path / "cloud.png", caption=title)
    clouds([("-", cloud)], tmp_path / "one.png", caption="-")
    assert size_of(tmp_path / "cloud.png") == size_of(tmp_path / "one.png")
