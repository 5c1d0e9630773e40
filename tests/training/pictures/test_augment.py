"""Flips and crops are functions of their uniform numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.errors import ShapeMismatch
from ddib_fed.training.pictures import random_crop, random_flip


def pictures(count: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.arange(count * channels * height * width, dtype=np.uint16).reshape(
        count, channels, height, width
    )


def test_a_uniform_below_a_half_mirrors_left_to_right():
    """Only that picture, and the array given stays as it was."""
    given_pictures = pictures(3, 4, 5)
    before = given_pictures.copy()
    flipped = random_flip(given_pictures, np.array([0.0, 0.5, 0.499]))
    np.testing.assert_array_equal(flipped[0], before[0, :, :, ::-1])
    np.testing.assert_array_equal(flipped[1], before[1])
    np.testing.assert_array_equal(flipped[2], before[2, :, :, ::-1])
    flipped[:] = 0
    np.testing.assert_array_equal(given_pictures, before)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(0, 4),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_a_crop_is_the_window_that_its_uniforms_name(height, width, down, across, u, v):
    """The corner is floor(u (free + 1)), so each place is equally likely."""
    whole = pictures(2, height + down, width + across)
    cut = random_crop(whole, (height, width), np.array([[u, v], [0.0, 0.0]]))
    top, left = int(u * (down + 1)), int(v * (across + 1))
    np.testing.assert_array_equal(cut[0], whole[0, :, top : top + height, left : left + width])
    np.testing.assert_array_equal(cut[1], whole[1, :, :height, :width])
    assert cut.dtype == whole.dtype


def test_every_place_of_a_crop_is_reached_equally_often():
    """Over an even sweep of the uniforms."""
    whole = np.broadcast_to(np.arange(5, dtype=np.uint8), (1_000, 1, 5, 5))
    sweep = (np.arange(1_000) + 0.5) / 1_000
    cut = random_crop(whole, (3, 3), np.stack([sweep, sweep], axis=1))
    assert np.abs(np.bincount(cut[:, 0, 0, 0]) - 1_000 / 3).max() < 1


def test_a_uniform_that_was_rounded_up_to_one_stays_inside():
    """float32 from a float64 just below 1."""
    uniforms = np.full((1, 2), 1 - 1e-12).astype(np.float32)
    assert random_crop(pictures(1, 5, 5), (3, 3), uniforms)[0, 0, 0, 0] == 2 * 5 + 2


@pytest.mark.parametrize("size", [(6, 5), (5, 6), (0, 2)])
def test_a_window_that_does_not_fit_is_refused(size):
    with pytest.raises(ShapeMismatch):
        random_crop(pictures(2, 5, 5), size, np.zeros((2, 2)))


def test_uniforms_for_other_pictures_are_refused():
    """Broadcasting them would repeat one picture's chance for all."""
    with pytest.raises(ShapeMismatch):
        random_flip(pictures(2, 5, 5), np.zeros(1))
    with pytest.raises(ShapeMismatch):
        random_crop(pictures(2, 5, 5), (3, 3), np.zeros((1, 2)))
    with pytest.raises(ShapeMismatch):
        random_flip(pictures(2, 5, 5)[0], np.zeros(3))
