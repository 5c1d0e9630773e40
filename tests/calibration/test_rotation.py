"""The search for a rotation without pairs: it finds the one there is, and says how far behind the next one lies."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.calibration.fit import (
    cleaned,
    degrees,
    drawn,
    search,
    without_noise,
)
from tests.calibration.two_worlds import TURN, aggregate, colours


@pytest.mark.slow
def test_it_finds_the_turn_of_the_colours() -> None:
    found = search(colours(1000, 2), colours(2000, 3) @ TURN.T, starts=60)
    assert degrees(found.best.matrix, TURN) < 8
    assert degrees(found.other.matrix, found.best.matrix) > 30
    assert found.other.cost > 4 * found.best.cost


@pytest.mark.slow
def test_the_same_seed_gives_the_same_rotation() -> None:
    sides = colours(600, 2), colours(600, 3) @ TURN.T
    first, second = (search(*sides, starts=20, seed=7).best for _ in range(2))
    assert np.array_equal(first.matrix, second.matrix)


@pytest.mark.slow
def test_a_colour_cloud_that_its_mirror_image_fits_has_no_margin() -> None:
    symmetric = colours(2000, 2)
    symmetric[::2, 2] *= -1
    symmetric[:, 2] -= symmetric[:, 2].mean()
    found = search(symmetric, symmetric[::-1], starts=60)
    assert found.other.cost - found.best.cost < 0.02


def test_grey_is_told_from_its_negative_by_its_skewness() -> None:
    skewed = np.random.default_rng(1).exponential(size=(2000, 1)) - 1
    assert search(skewed, -skewed[::-1]).best.matrix == [[-1.0]]


def test_cleaning_keeps_what_is_there_and_drops_the_noise() -> None:
    truth = np.zeros((10, 10, 10))
    truth[2:4, 5:7, 5] = 0.15
    truth[8, 1, 1] = 0.4
    noised = truth + 0.002 * np.random.default_rng(0).standard_normal(truth.shape)
    found = without_noise(noised, 0.002)
    assert found.sum() == pytest.approx(1.0)
    assert found.min() == 0.0
    assert np.abs(found - truth).sum() < 0.25 * np.abs(noised - truth).sum()


def test_pseudo_colours_are_like_the_targets() -> None:
    found = aggregate()
    pseudo = drawn(cleaned(found), found.cells, 20_000, np.random.default_rng(0))
    true = colours(20_000, 9) @ TURN.T
    assert np.abs(pseudo.mean(axis=0) - true.mean(axis=0)).max() < 0.15
    assert np.abs(pseudo.std(axis=0) - true.std(axis=0)).max() < 0.1
