"""Pictures are PNGs of panels that share limits and colours."""

import struct

import numpy as np
import pytest

from ddib_fed.evaluation import sheets


@pytest.fixture
def cloud():
    return np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)


def size_of(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def test_a_translation_has_four_panels_in_a_row(cloud, tmp_path):
    sheets.clouds([("x", cloud)] * 4, tmp_path / "translation.png", caption="moons → rings")
    width, height = size_of(tmp_path / "translation.png")
    assert 3 < width / height < 4


@pytest.mark.parametrize("title", ["$\\frac$", "a$b$c", "x\u202ey\x1b\n"])
def test_a_title_is_text_and_no_formula(title, cloud, tmp_path):
    """A bundle's name may hold anything; matplotlib would set dollars as mathematics, or raise."""
    sheets.draw_rows([[sheets.Panel(title, cloud)]], tmp_path / "cloud.png", caption=title)
    sheets.draw_rows([[sheets.Panel("-", cloud)]], tmp_path / "one.png", caption="-")
    assert size_of(tmp_path / "cloud.png") == size_of(tmp_path / "one.png")


def test_a_loss_curve_is_drawn_with_and_without_held_out_points(tmp_path):
    curve = [(step, 1 / step) for step in range(1, 50)]
    sheets.loss_curve(curve, tmp_path / "a.png")
    sheets.loss_curve(curve, tmp_path / "b.png", held_out=curve[::10])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
