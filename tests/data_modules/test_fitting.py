"""A picture in the model's units becomes the model's array, and comes back at its own size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddib_fed.data.fitting import Geometry, PictureRule, check_numbers, fit_picture, from_array, to_array
from ddib_fed.data.pictures import Picture
from ddib_fed.errors import PictureMisfit
from tests.data_modules.picture_examples import noise

sides = st.integers(1, 24)


def picture_of(pixels) -> Picture:
    pixels = np.asarray(pixels)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return Picture(pixels, "TIFF")


def there_and_back(pixels: np.ndarray, rule: PictureRule) -> np.ndarray:
    x, geometry = to_array(picture_of(pixels), rule)
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
    x, _ = to_array(picture_of(pixels), PictureRule(3, size, size, "crop"))
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
        grey, _ = to_array(picture_of(colours), PictureRule(1, 6, 7, "pad", 0, top, 16))
        luma = colours @ np.array([0.299, 0.587, 0.114])
        assert np.abs((grey[0] + 1) / 2 * top - luma).max() < 0.51
        x, _ = to_array(picture_of(colours[..., :1]), PictureRule(3, 6, 7, "pad", 0, top, 16))
        assert (x[0] == x[1]).all()
        assert (x[0] == x[2]).all()


BYTES, WORDS, CT, BRAIN, UPTAKE = (0.0, 255.0), (0.0, 65535.0), (-1000.0, 2000.0), (0.0, 80.0), (0.0, 20.0)


def photo(dtype="uint8", seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32)).astype(dtype)


def slice_of_a_body(dtype="int16", padding=-3024) -> np.ndarray:
    """(32, 32) Hounsfield units: padding in the corners, air, tissue, a little bone and metal."""
    body = np.full((32, 32), -1000.0)
    body[:4], body[-4:], body[8:24, 8:24], body[10:12, 10:14] = padding, padding, 40, 1200
    body[15, 15:17] = 3071
    return body.astype(dtype)


FITS = {
    "8 bits": (photo(), BYTES),
    "8 bits in a 16-bit file": (photo("uint16"), BYTES),
    "Hounsfield": (slice_of_a_body(), CT),
    "a window of the brain": (slice_of_a_body(), BRAIN),
    "faint uptake": (photo("float32") / 300, UPTAKE),
}
MISFITS = {
    "16 bits": (photo("uint16") * 257, BYTES, "scale", "0:65535"),
    "8 bits for 16": (photo(), WORDS, "type", "0:255"),
    "floats of [0, 1] for 8 bits": (photo("float32") / 255, BYTES, "scale", "0:1"),
    "Hounsfield for 8 bits": (slice_of_a_body(), BYTES, "scale", "-3024:3071"),
    "12 bits for 8": (photo("uint16") * 16, BYTES, "scale", "0:4095"),
}


@pytest.mark.parametrize(("pixels", "span"), FITS.values(), ids=list(FITS))
def test_what_is_in_the_units_is_taken(pixels, span):
    """Whatever its type, when the type can hold the range and the values are not of another scale."""
    assert check_numbers(picture_of(pixels), *span).clipped >= 0


@pytest.mark.parametrize(("pixels", "span", "problem", "fits"), MISFITS.values(), ids=list(MISFITS))
def test_what_is_of_another_scale_is_refused(pixels, span, problem, fits):
    """With the type and values that it holds, those that are taken, and the range that would fit."""
    with pytest.raises(PictureMisfit) as caught:
        check_numbers(picture_of(pixels), *span)
    error = caught.value
    assert error.facts["problem"] == problem
    assert pixels.dtype.name in error.detail
    assert f"{span[0]:g} to {span[1]:g}" in error.detail
    assert f"--range {fits}" in error.hint or fits is None
    assert max(map(len, error.facts.values())) < 200


def test_what_was_clipped_is_counted_and_stays_in_the_original():
    """Beside the model's own copy in [-1, 1]; where nothing was clipped they are one array."""
    rule = PictureRule(1, 32, 32, low=-1000, high=2000, bits=16)
    fitted = fit_picture(picture_of(slice_of_a_body(padding=-2000)), rule)
    assert fitted.use.clipped == 8 * 32 + 2
    assert (fitted.samples.min(), fitted.samples.max()) == (-1, 1)
    assert fitted.original.min() == pytest.approx(-1 - 2000 / 3000)
    assert fitted.original.max() == pytest.approx(1 + 2 * 1071 / 3000)
    inside = np.abs(fitted.original) <= 1
    np.testing.assert_array_equal(fitted.original[inside], fitted.samples[inside])
    whole = fit_picture(picture_of(photo()), PictureRule(1, 16, 16))
    assert whole.original is whole.samples


def test_colours_are_not_dropped_and_grey_becomes_rgb():
    """RGB of three equal channels is grey; a photograph for a grey model is refused, except for training."""
    grey, colour = PictureRule(1, 32, 32), PictureRule(3, 32, 32)
    photograph = picture_of(np.stack([photo(), photo(seed=1), photo(seed=2)], axis=2))
    with pytest.raises(PictureMisfit, match="colours would be lost") as caught:
        fit_picture(photograph, grey)
    assert "--set channels=3" in caught.value.hint
    assert fit_picture(photograph, grey, grey=True).samples.shape == (1, 32, 32)
    same = picture_of(np.repeat(photo()[..., None], 3, axis=2))
    np.testing.assert_array_equal(
        fit_picture(same, grey).samples, fit_picture(picture_of(photo()), grey).samples
    )
    assert np.ptp(fit_picture(picture_of(photo()), colour).samples, axis=0).max() == 0
