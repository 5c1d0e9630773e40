"""What is in a model's units is taken, what is of another scale is refused, and what would fit is named."""

import numpy as np
import pytest

from ddib_fed.data.fitting import PictureRule, check_numbers, fit_picture
from ddib_fed.data.pictures import Picture
from ddib_fed.errors import PictureMisfit

BYTES, WORDS, CT, BRAIN, UPTAKE = (0.0, 255.0), (0.0, 65535.0), (-1000.0, 2000.0), (0.0, 80.0), (0.0, 20.0)


def picture(pixels) -> Picture:
    pixels = np.asarray(pixels)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return Picture(pixels, "TIFF")


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
    assert check_numbers(picture(pixels), *span).clipped >= 0


@pytest.mark.parametrize(("pixels", "span", "problem", "fits"), MISFITS.values(), ids=list(MISFITS))
def test_what_is_of_another_scale_is_refused(pixels, span, problem, fits):
    """With the type and values that it holds, those that are taken, and the range that would fit."""
    with pytest.raises(PictureMisfit) as caught:
        check_numbers(picture(pixels), *span)
    error = caught.value
    assert error.facts["problem"] == problem
    assert pixels.dtype.name in error.detail
    assert f"{span[0]:g} to {span[1]:g}" in error.detail
    assert f"--range {fits}" in error.hint or fits is None
    assert max(map(len, error.facts.values())) < 200


def test_a_range_for_a_folder_may_be_a_narrow_window_but_not_another_scale():
    """Training lets a slice of air alone lie outside the window that was chosen for all; 16 bits for 8 it does not."""
    air = picture(np.full((8, 8), -1000, np.int16))
    with pytest.raises(PictureMisfit):
        check_numbers(air, *BRAIN)
    assert check_numbers(air, *BRAIN, windows=True).outside == 1
    with pytest.raises(PictureMisfit):
        check_numbers(picture(photo("uint16") * 257), *BYTES, windows=True)


def test_what_was_clipped_is_counted_and_stays_in_the_original():
    """Beside the model's own copy in [-1, 1]; where nothing was clipped they are one array."""
    rule = PictureRule(1, 32, 32, low=-1000, high=2000, bits=16)
    fitted = fit_picture(picture(slice_of_a_body(padding=-2000)), rule)
    assert fitted.use.clipped == 8 * 32 + 2
    assert (fitted.samples.min(), fitted.samples.max()) == (-1, 1)
    assert fitted.original.min() == pytest.approx(-1 - 2000 / 3000)
    assert fitted.original.max() == pytest.approx(1 + 2 * 1071 / 3000)
    inside = np.abs(fitted.original) <= 1
    np.testing.assert_array_equal(fitted.original[inside], fitted.samples[inside])
    whole = fit_picture(picture(photo()), PictureRule(1, 16, 16))
    assert whole.original is whole.samples


def test_colours_are_not_dropped_and_grey_becomes_rgb():
    """RGB of three equal channels is grey; a photograph for a grey model is refused, except for training."""
    grey, colour = PictureRule(1, 32, 32), PictureRule(3, 32, 32)
    photograph = picture(np.stack([photo(), photo(seed=1), photo(seed=2)], axis=2))
    with pytest.raises(PictureMisfit, match="colours would be lost") as caught:
        fit_picture(photograph, grey)
    assert "--set channels=3" in caught.value.hint
    assert fit_picture(photograph, grey, grey=True).samples.shape == (1, 32, 32)
    same = picture(np.repeat(photo()[..., None], 3, axis=2))
    np.testing.assert_array_equal(
        fit_picture(same, grey).samples, fit_picture(picture(photo()), grey).samples
    )
    assert np.ptp(fit_picture(picture(photo()), colour).samples, axis=0).max() == 0
