"""Flips and crops are functions of their uniform numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

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
