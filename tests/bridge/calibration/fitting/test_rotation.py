"""The search for a rotation without pairs: it finds the one there is, and says how far behind the next one lies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ddib_fed.calibration.fit import (
    RotationCost,
    cleaned,
    degrees,
    directions,
    drawn,
    nearest_orthogonal,
    on_simplex,
    own,
    quantiles,
    random_orthogonal,
    search,
    without_noise,
)
from tests.bridge.calibration.fitting.two_worlds import TURN, aggregate, colours, pictures


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


def test_a_step_does_not_raise_the_cost() -> None:
    cost = RotationCost(colours(500, 2), colours(500, 3) @ TURN.T)
    rotation = random_orthogonal(3, np.random.default_rng(0))
    costs = [cost(rotation)]
    for _ in range(10):
        rotation = cost.step(rotation)
        costs.append(cost(rotation))
    assert all(after <= before + 1e-3 for before, after in itertools.pairwise(costs))
    assert costs[-1] < 0.5 * costs[0]


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


def test_the_cost_is_the_squared_shift_of_a_shifted_cloud() -> None:
    """E |theta . d|^2 over the sphere is |d|^2 / C: the directions are even enough for 3 %."""
    cloud = colours(500, 2)
    shifted = cloud + np.array([0.3, -0.4, 1.2])
    assert RotationCost(cloud, shifted)(np.eye(3)) == pytest.approx(1.69, rel=0.03)


def test_directions_have_length_one_and_quantiles_rise() -> None:
    assert np.allclose(np.linalg.norm(directions(3), axis=1), 1.0)
    assert (np.diff(quantiles(colours(300, 1)), axis=0) >= 0).all()
    assert degrees(nearest_orthogonal(TURN * 3 + 0.01), TURN) < 1
    assert degrees(TURN, -TURN) == 180.0


def test_cleaning_keeps_what_is_there_and_drops_the_noise() -> None:
    truth = np.zeros((10, 10, 10))
    truth[2:4, 5:7, 5] = 0.15
    truth[8, 1, 1] = 0.4
    noised = truth + 0.002 * np.random.default_rng(0).standard_normal(truth.shape)
    found = without_noise(noised, 0.002)
    assert found.sum() == pytest.approx(1.0)
    assert found.min() == 0.0
    assert np.abs(found - truth).sum() < 0.25 * np.abs(noised - truth).sum()


def test_the_simplex_is_met_at_its_nearest_point() -> None:
    assert np.allclose(on_simplex(np.array([0.5, 0.5, 0.3])), [0.4, 0.4, 0.2])
    assert np.allclose(on_simplex(np.array([2.0, 0.0, -1.0])), [1.0, 0.0, 0.0])


def test_pseudo_colours_are_like_the_targets() -> None:
    found = aggregate()
    pseudo = drawn(cleaned(found), found.cells, 20_000, np.random.default_rng(0))
    true = colours(20_000, 9) @ TURN.T
    assert np.abs(pseudo.mean(axis=0) - true.mean(axis=0)).max() < 0.15
    assert np.abs(pseudo.std(axis=0) - true.std(axis=0)).max() < 0.1


def test_each_cell_has_its_share_of_pseudo_colours() -> None:
    """To within one: independent draws of the cells move the margin as much as the noise does."""
    found = aggregate()
    shares, cells = cleaned(found), found.cells
    for seed in range(3):
        pseudo = drawn(shares, cells, 3000, np.random.default_rng(seed))
        places = np.floor((pseudo + cells.reach) * (cells.bins / (2 * cells.reach))).astype(int)
        counted = np.zeros(cells.shape)
        np.add.at(counted, tuple(places.T), 1)
        assert np.abs(counted - 3000 * shares).max() <= 1
        assert np.abs(np.diff(pseudo[:, 0])[:50]).max() > 0.1  # not in the order of the cells


def test_own_colours_are_pixels_of_their_pictures() -> None:
    units = pictures(5, 1)
    found = own(units, 7, np.random.default_rng(0))
    assert found.shape == (5, 7, 3)
    for picture, taken in zip(units, found, strict=True):
        pixels = picture.reshape(3, -1).T
        assert all((np.abs(pixels - colour).sum(axis=1) < 1e-6).any() for colour in taken)
