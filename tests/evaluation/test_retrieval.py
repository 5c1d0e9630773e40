"""Whether the true partner is among the nearest."""

import numpy as np
import pytest

from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation.metrics import hits_by_features, hits_by_pixels, share
from tests.runs.tiny_models import pictures


def by_pixels(translated, truth, nearest=5):
    return share(hits_by_pixels(translated, truth, nearest=nearest), nearest)


def test_a_noisy_copy_finds_its_partner_and_a_stranger_does_not():
    truth = pictures(40)
    near = by_pixels((truth + 0.3 * pictures(40, seed=1)).astype(np.float32), truth)
    assert near == {"found": 1.0, "chance": 5 / 40, "nearest": 5, "count": 40}
    assert by_pixels(pictures(40, seed=2), truth)["found"] < 0.4


def test_brightness_does_not_decide():
    truth = 0.2 * pictures(20, channels=3)
    shift = np.linspace(-0.8, 0.8, 20, dtype=np.float32)[:, None, None, None]
    assert by_pixels(truth + shift, truth, nearest=1)["found"] == 1.0


def test_a_constant_finds_nothing_among_equals():
    """Every truth is as far from it as every other: a tie counts against."""
    truth = np.eye(16, dtype=np.float32).reshape(16, 1, 4, 4)
    assert by_pixels(np.zeros_like(truth), truth)["found"] == 0.0


def test_features_count_alike_whatever_their_scale():
    """The first number is large and says nothing; the second one tells the pictures apart."""
    rng = np.random.default_rng(0)
    told = np.arange(30.0)
    truth = np.stack([1e6 * rng.normal(size=30), told], axis=1)
    asked = np.stack([truth[:, 0] + 1e4 * rng.normal(size=30), told], axis=1)
    assert hits_by_features(asked, truth, nearest=2).all()


def test_shapes_must_be_one():
    with pytest.raises(ShapeMismatch):
        hits_by_features(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ShapeMismatch):
        by_pixels(pictures(2), pictures(3))
