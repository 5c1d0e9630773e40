"""A photograph becomes a cloud of colours and comes back as it was; what has no colours is refused."""

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import FileMissing, ImageUnreadable, InputError
from ddib_fed.paper.colours import (
    PACKAGED,
    dequantised,
    from_space,
    open_photograph,
    photograph,
    to_space,
    unit,
)


def noise(dtype=np.uint8, size=(20, 30, 3)):
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("space", ["rgb", "lab"])
def test_colours_come_back_from_a_space_to_the_very_pixels(dtype, space):
    pixels = noise(dtype)
    photo = photograph("noise", pixels)
    back = photo.paint(from_space(to_space(photo.rgb(), space), space))
    assert back.dtype == dtype
    assert np.array_equal(back, pixels)


def test_lab_is_that_of_scikit_image():
    colour = pytest.importorskip("skimage.color")
    rgb = noise(size=(200, 1, 3)) / 255
    light, a, b = to_space(2 * rgb.reshape(-1, 3) - 1, "lab").T
    ours = np.stack([50 * (light + 1), 50 * a, 50 * b], axis=1)
    assert np.abs(ours - colour.rgb2lab(rgb).reshape(-1, 3)).max() < 0.05


def test_lab_goes_on_smoothly_beyond_the_gamut():
    beyond = np.array([[-1.02, 1.02, 1.0], [1.05, -1.05, 0.0]])
    assert np.allclose(from_space(to_space(beyond, "lab"), "lab"), beyond, atol=1e-9)


def test_dequantised_points_lie_in_the_cells_of_the_pixels():
    photo = photograph("noise", noise())
    points = dequantised(photo, "rgb", 1_500, 0)
    cells = np.rint((points + 1) * 127.5).astype(int)
    known = {tuple(c) for c in photo.colours.tolist()}
    assert {tuple(c) for c in cells.tolist()} == known
    assert np.array_equal(points, dequantised(photo, "rgb", 1_500, 0))
    offsets = (points + 1) * 127.5 - cells
    assert offsets.std() == pytest.approx(1 / np.sqrt(12), rel=0.03)


def test_a_colour_is_counted_as_often_as_it_occurs():
    pixels = noise()
    pixels[:5] = (7, 8, 9)
    photo = photograph("noise", pixels)
    at = int(np.flatnonzero((photo.colours == (7, 8, 9)).all(axis=1))[0])
    assert photo.counts[at] == (pixels == (7, 8, 9)).all(axis=2).sum()
    assert photo.counts.sum() == 600
    assert np.mean(photo.drawn(6_000, 0) == at) == pytest.approx(photo.counts[at] / 600, abs=0.03)


def test_a_value_beyond_the_gamut_is_clipped():
    photo = photograph("noise", noise())
    assert photo.paint(np.full((len(photo.colours), 3), 1.3)).min() == 255
    assert unit(np.array([0, 255]), 255).tolist() == [-1.0, 1.0]


GREY = np.repeat(noise(size=(20, 30, 1)), 3, axis=2)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (GREY, "line"),
        (GREY[:, :, :1], "one channel"),
        (np.dstack([noise()[:, :, :2], np.full((20, 30, 1), 40, np.uint8)]), "plane"),
        (np.full((20, 30, 3), 90, np.uint8), "flat"),
        (noise(size=(4, 4, 3)), "16 colours"),
        (noise().astype(np.float32), "float32"),
    ],
)
def test_a_picture_without_colours_is_refused_with_the_reason(pixels, said):
    with pytest.raises(InputError, match=said) as caught:
        photograph("it", pixels)
    assert caught.value.hint


def test_a_file_is_read_with_its_bits_and_a_name_fit_for_a_model(tmp_path):
    pixels = noise(np.uint16)
    (tmp_path / "my photo (1).png").write_bytes(encode_png(pixels))
    photo = open_photograph(str(tmp_path / "my photo (1).png"))
    assert (photo.name, photo.top, photo.credit) == ("my-photo-1", 65_535, "")
    assert np.array_equal(photo.paint(photo.rgb()), pixels)


def test_what_is_not_there_or_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageUnreadable):
        open_photograph(str(tmp_path / "a.png"))
    for which in (str(tmp_path / "b.png"), "sklearn:moon"):
        with pytest.raises(FileMissing) as caught:
            open_photograph(which)
        assert "sklearn:china" in caught.value.hint


def test_packaged_photographs_are_there_with_their_credit():
    china = open_photograph("sklearn:china")
    assert china.index.shape == (427, 640)
    assert "CC BY 2.0" in china.credit
    assert "danielbuechele" in china.credit
    assert open_photograph("skimage:coffee").index.shape == (400, 600)
    assert all(entry.credit for entry in PACKAGED.values())
