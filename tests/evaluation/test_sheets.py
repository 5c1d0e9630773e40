"""Sheets show the very pixels, in their places."""

import io

import numpy as np
from PIL import Image

from ddib_fed.evaluation.sheets import DOUBT, Stage, contact_sheet, to_pixels
from tests.runs.tiny_models import pictures


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


def test_names_and_captions_are_one_line_each():
    """A line break in a file's name would be written over the picture below it."""
    blank = flat(1, 1)
    kept = [contact_sheet([Stage(t, blank)], names=[t], caption=t) for t in ("a\\nb\\u202e", "a\nb\u202e")]
    escaped, steering = (opened(png) for png in kept)
    assert steering.shape[1] == escaped.shape[1]
    assert np.array_equal(steering[:60], escaped[:60])
