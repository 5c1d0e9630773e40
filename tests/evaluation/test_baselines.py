"""Translations that need no network."""

import numpy as np
import pytest

from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation.judgement import (
    ColourMap,
    HistogramMatch,
    cross_fitted_colour_map,
    unpaired,
)
from ddib_fed.evaluation.metrics import mse
from tests.runs.tiny_models import pictures


def test_a_monotone_tone_curve_is_found_without_pairs():
    source, unseen = pictures(60, channels=3), pictures(60, channels=3, seed=1)
    match = HistogramMatch.fit(source, unseen**3)
    assert mse(match(pictures(4, channels=3, seed=2)), pictures(4, channels=3, seed=2) ** 3).max() < 1e-3


def test_a_value_that_half_the_pixels_have_goes_to_the_middle_of_the_lower_half():
    source = pictures(40)
    source[:20] = -1
    target = pictures(40, seed=3)
    mapped = HistogramMatch.fit(source, target)(source[:1])
    assert mapped == pytest.approx(np.full_like(mapped, np.quantile(target, 0.25)), abs=0.01)


def test_a_quadratic_colour_map_is_recovered():
    source = pictures(6, channels=3)
    red, green, blue = source.transpose(1, 0, 2, 3)
    target = np.stack([0.5 * red * green, 0.3 * blue**2 - 0.1, 0.4 * green - 0.4 * red], axis=1)
    assert mse(ColourMap.fit(source, target)(source), target).max() < 1e-10


def test_the_cross_fitted_map_never_sees_the_picture_that_it_maps():
    """Halves under different maps: each is mapped by the other's."""
    source = pictures(8)
    target = np.concatenate([source[:4] * 0.5, source[4:] * -0.5])
    mapped = cross_fitted_colour_map(source, target)
    assert mapped[:4] == pytest.approx(source[:4] * -0.5, abs=1e-5)
    assert mapped[4:] == pytest.approx(source[4:] * 0.5, abs=1e-5)


def test_the_baselines_follow_from_what_is_there():
    source, target = pictures(4), pictures(20, seed=1)
    assert set(unpaired(None, None, count=4, channels=1)) == set()
    assert set(unpaired(source, None, count=4, channels=1)) == {"source"}
    assert set(unpaired(None, (None, target), count=4, channels=1)) == {"mean", "random"}
    few = unpaired(source, (None, target), count=4, channels=1)
    assert set(few) == {"source", "histogram", "mean", "random"}
    own = unpaired(source, (pictures(20, seed=2), target), count=4, channels=1)
    assert set(own) == set(few)
    assert all(stack.shape == (4, *target.shape[1:]) for stack in own.values())


def test_what_is_no_pair_is_refused():
    with pytest.raises(ShapeMismatch):
        ColourMap.fit(pictures(3), pictures(4))
    with pytest.raises(ShapeMismatch):
        cross_fitted_colour_map(pictures(1), pictures(1))
