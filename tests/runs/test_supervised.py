"""The small network that pairs alone would give."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.errors import ShapeMismatch
from ddib_fed.metrics.pictures import psnr
from ddib_fed.runs.supervised import supervised
from tests.runs.picture_folders import blocks


@pytest.mark.slow
def test_a_flipped_contrast_is_learned_from_a_few_pairs() -> None:
    given, asked = blocks(4, size=8), blocks(3, size=8, seed=1)
    found = supervised(given, -given, asked, steps=60)
    assert psnr(found, -asked).mean() > psnr(asked, -asked).mean() + 6
    assert np.abs(found).max() <= 1.0


def test_channels_sizes_and_seeds() -> None:
    """Grey to colour at a size that is no multiple of 4; the same seed gives the same pictures."""
    given = blocks(2, size=8)[..., :6, :7]
    target = np.repeat(given, 3, axis=1)
    once, again = (supervised(given, target, given, steps=2, seed=3) for _ in range(2))
    assert once.shape == target.shape
    assert np.array_equal(once, again)
    assert not np.array_equal(once, supervised(given, target, given, steps=2, seed=4))


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match="no pairs"):
        supervised(blocks(2), blocks(3), blocks(1))
    with pytest.raises(ShapeMismatch, match="1 channels"):
        supervised(blocks(2), blocks(2), blocks(1, channels=3))
