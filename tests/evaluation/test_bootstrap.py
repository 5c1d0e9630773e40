"""Intervals of figures over pictures."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.evaluation import features
from ddib_fed.evaluation.judgement import feature_distances, resample
from tests.runs.picture_folders import blocks
from tests.runs.tiny_models import pictures


def test_the_interval_of_a_mean_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = resample(400).mean(values)
    error = values.std() / 20
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert found["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_most_intervals_hold_the_mean_of_clustered_pictures() -> None:
    """With clusters; as independent pictures, far fewer would."""
    generator, labels = np.random.default_rng(1), np.repeat(np.arange(40), 3)
    held = np.zeros(2)
    for turn in range(40):
        values = generator.normal(0, 1, 40)[labels] + generator.normal(0, 0.5, 120)
        for column, clusters in enumerate((labels, None)):
            found = resample(120, clusters, draws=200, seed=turn).mean(values)
            held[column] += found["low"] <= 0 <= found["high"]
    assert held[0] >= 34
    assert held[1] <= 32


def cloud(
    count: int, *, seed: int = 0, shift: float = 0.0, scale: float = 1.0, dim: int = 6
) -> features.Matrix:
    return scale * np.random.default_rng(seed).normal(size=(count, dim)) + shift


def test_the_frechet_distance_of_normal_clouds_is_the_formulas() -> None:
    """D shift^2 + D (1 - scale)^2 for independent coordinates."""
    first, second, once = cloud(5_000), cloud(5_000, seed=1, shift=0.5, scale=2.0), np.ones((1, 5_000))
    assert features.frechet(first, second, once)[0] == pytest.approx(6 * 0.25 + 6 * 1.0, rel=0.05)
    assert features.frechet(first, first, once)[0] == pytest.approx(0.0, abs=1e-9)


def test_a_draw_with_repeats_has_the_frechet_distance_of_the_repeated_rows() -> None:
    judged, real = cloud(12, shift=0.5, scale=2, dim=4), cloud(40, seed=1, dim=4)
    rows = np.random.default_rng(3).integers(0, 12, 12)
    weights = np.bincount(rows, minlength=12)[None].astype(float)
    repeated = features.frechet(judged[rows], real, np.ones((1, 12)))
    assert features.frechet(judged, real, weights) == pytest.approx(repeated)


@pytest.mark.slow
def test_the_network_tells_squares_from_noise() -> None:
    """Two sets of squares are near, noise is far, by every distance; grey has the features of its repetition."""
    grey = blocks(12, size=32)
    squares, more = features.features(grey), features.features(blocks(12, seed=1, size=32))
    noise = features.features(pictures(12, size=32))
    near, far = features.distances(squares, more), features.distances(squares, noise)
    assert all(far[name] > 2 * near[name] for name in near)
    assert features.features(np.repeat(grey[:2], 3, axis=1)).late == pytest.approx(squares.late[:2], abs=1e-5)


def test_the_interval_of_a_distance_holds_what_other_pictures_give() -> None:
    """Unshifted, the draws lie above the figure: the interval would miss it."""
    generator = np.random.default_rng(4)
    real = features.Features(generator.normal(0, 1, (300, 12)), generator.normal(0, 1, (300, 20)))

    def judged() -> features.Features:
        return features.Features(generator.normal(0.3, 1.2, (60, 12)), generator.normal(0.3, 1.2, (60, 20)))

    found = feature_distances(judged(), real, resample(60))
    others = [features.distances(judged(), real) for _ in range(20)]
    for name, interval in found.items():
        assert interval["low"] < interval["value"] < interval["high"]
        inside = sum(interval["low"] <= other[name][0] <= interval["high"] for other in others)
        assert inside >= 10, name
