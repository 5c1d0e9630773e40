"""A picture of any size becomes the model's array, and comes back at its own size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddib_fed.data.fitting import Geometry, PictureRule, from_array, to_array
from ddib_fed.data.pictures import Picture
from tests.data_modules.picture_examples import noise

sides = st.integers(1, 24)


def picture(pixels: np.ndarray) -> Picture:
    return Picture(pixels, "PNG")


def there_and_back(pixels: np.ndarray, rule: PictureRule) -> np.ndarray:
    x, geometry = to_array(picture(pixels), rule)
    assert (x.dtype, x.shape) == (np.float32, (rule.channels, rule.height, rule.width))
    assert x.flags.c_contiguous
    assert np.abs(x).max() <= 1
    assert geometry == Geometry(*pixels.shape[:2])
    return from_array(x, rule, geometry)


def rule_for(dtype: str, channels: int, height: int, width: int, fit: str) -> PictureRule:
    return PictureRule(channels, height, width, fit, 0, np.iinfo(dtype).max, 8 * np.dtype(dtype).itemsize)


@given(
    dtype=st.sampled_from(["uint8", "uint16"]),
    channels=st.sampled_from([1, 3]),
    height=sides,
    width=sides,
    more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 99),
)
def test_a_padded_picture_comes_back_to_the_bit(dtype, channels, height, width, more, seed):
    """Whatever fits into the array is not resized: all 256 or 65,536 values survive."""
    pixels = noise(height, width, channels, dtype, seed)
    rule = rule_for(dtype, channels, height + more[0], width + more[1], "pad")
    back = there_and_back(pixels, rule)
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


@given(original=st.tuples(sides, sides), model=st.tuples(sides, sides))
def test_the_cropped_part_comes_back_at_its_own_scale(original, model):
    """It is as large as the part that the model saw, within two of the model's pixels, and never larger than it was."""
    back = there_and_back(noise(*original, 1), PictureRule(1, *model, "crop"))
    scale = min(original[0] / model[0], original[1] / model[1])
    for got, whole, side in zip(back.shape, original, model, strict=False):
        assert 1 <= got <= whole
        # The scaled side is rounded to the model's pixels, and each halving may lose a last row.
        assert abs(got - side * scale) <= 2 + 2 * scale


def public_rule(pixels: np.ndarray, size: int) -> np.ndarray:
    """The rule of guided-diffusion for a square of `size`, computed step by step."""
    image = Image.fromarray(pixels)
    while min(image.width, image.height) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.width, image.height)
    new = (round(image.width * scale), round(image.height * scale))
    whole = np.asarray(image.resize(new, Image.Resampling.BICUBIC))
    top, left = (whole.shape[0] - size) // 2, (whole.shape[1] - size) // 2
    return whole[top : top + size, left : left + size].astype(np.float32) / 127.5 - 1


@given(height=st.integers(5, 90), width=st.integers(5, 90), size=st.integers(4, 16), seed=st.integers(0, 9))
def test_cropping_is_what_public_models_were_trained_on(height, width, size, seed):
    """Equal to the public rule, computed directly: larger, smaller, odd, long pictures."""
    pixels = noise(height, width, 3, seed=seed)
    x, _ = to_array(picture(pixels), PictureRule(3, size, size, "crop"))
    np.testing.assert_allclose(x.transpose(1, 2, 0), public_rule(pixels, size), atol=1e-6)


def test_a_range_of_hounsfield_units_is_inverted_by_the_scale():
    """Negative values do not fit a PNG: the numbers are scaled, and the scale is returned."""
    rule = PictureRule(1, 2, 2, "pad", -1000, 2000, 16)
    pixels = np.array([[[-1000], [-3000]], [[0], [1234]]], dtype=np.int16)
    slope, intercept = rule.output_scale
    numbers = there_and_back(pixels, rule)
    assert numbers.dtype == np.uint16
    np.testing.assert_allclose(numbers * slope + intercept, pixels.clip(-1000, 2000), atol=slope / 2 + 1e-3)


def test_rgb_becomes_grey_by_luma_and_grey_becomes_rgb_by_repetition():
    """0.299 R + 0.587 G + 0.114 B, in every type."""
    for dtype in ("uint8", "uint16"):
        colours = noise(6, 7, 3, dtype)
        top = np.iinfo(dtype).max
        grey, _ = to_array(picture(colours), PictureRule(1, 6, 7, "pad", 0, top, 16))
        luma = colours @ np.array([0.299, 0.587, 0.114])
        assert np.abs((grey[0] + 1) / 2 * top - luma).max() < 0.51
        x, _ = to_array(picture(colours[..., :1]), PictureRule(3, 6, 7, "pad", 0, top, 16))
        assert (x[0] == x[1]).all()
        assert (x[0] == x[2]).all()
