"""The attacks find a member where there is no noise, and nobody where there is much of it."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.errors import ShapeMismatch
from ddib_fed.lab.report import area, first, scores


def people(count, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(8), size=count)


def test_area_is_the_share_of_pairs_in_order():
    """Ties count half."""
    assert area(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert area(np.array([0.0]), np.array([1.0])) == 0.0
    assert area(np.array([1.0, 1.0]), np.array([1.0, 0.0])) == 0.75
    with pytest.raises(ShapeMismatch):
        area(np.array([]), np.array([1.0]))


def test_whoever_knows_all_others_finds_the_one():
    candidates, population, count = people(50), people(1_000, seed=1).mean(0), 10
    own = np.arange(50)
    residuals = (candidates - population) / count
    found = scores(residuals, candidates, population, count)
    assert first(found, own).all()
    noise = 10.0 * np.random.default_rng(2).normal(size=residuals.shape)
    assert first(scores(residuals + noise, candidates, population, count), own).mean() < 0.2


def test_members_of_a_small_mean_score_above_strangers():
    """With about as many cells as pictures they do so without any knowledge of the others."""
    population = people(1_000, seed=1).mean(0)
    inside, outside = people(5, seed=2), people(200, seed=3)
    residual = inside.mean(0) - population
    found = [scores(residual, each, population, 5) for each in (inside, outside)]
    assert area(*found) > 0.65


def test_a_tie_is_no_hit():
    assert not first(np.array([[1.0, 1.0, 0.0]]), np.array([0]))[0]
    assert first(np.array([[0.0, 2.0, 1.0]]), np.array([1]))[0]


def test_refuses_other_cells():
    with pytest.raises(ShapeMismatch):
        scores(np.zeros(8), np.zeros((2, 7)), np.zeros(8), 2)
