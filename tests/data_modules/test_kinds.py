"""Which .npy files are points and which are pictures, by their headers alone."""

import io

import numpy as np
import pytest

from ddib_fed.data.pictures import decode_image
from ddib_fed.data.points import refuse_picture, refuse_points
from ddib_fed.errors import KindMismatch


def npy(shape, dtype="float32") -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(shape, dtype))
    return file.getvalue()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1000, 2), "float64"), ((1000, 8), "uint8"), ((20_000, 784), "uint8"), ((64, 64), "float32")],
    ids=str,
)
def test_tables_of_any_numbers_are_taken_as_points(shape, dtype):
    """Counts and flattened digits too: what has many more rows than columns is no picture, whatever its type."""
    refuse_picture(npy(shape, dtype))


@pytest.mark.parametrize("shape", [(64, 64), (48, 32), (32, 32, 3), (3, 32, 32)], ids=str)
def test_pictures_are_not_taken_as_points(shape):
    with pytest.raises(KindMismatch, match="a picture"):
        refuse_picture(npy(shape, "uint8"))


def test_a_narrow_picture_can_be_saved_so_that_it_is_one():
    """A spectrogram of 16 bands looks like points; the hint's way out is read as a picture."""
    with pytest.raises(KindMismatch) as caught:
        refuse_points(npy((300, 16)))
    assert "(H, W, 1)" in caught.value.hint
    assert decode_image(npy((300, 16, 1))).pixels.shape == (300, 16, 1)
