"""Intervals of figures over pictures."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation import features
from ddib_fed.evaluation.bootstrap import feature_distances, frechet_draws, kernel_draws, resample


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


def test_clusters_of_different_sizes_give_the_mean_over_pictures() -> None:
    """A draw of a large cluster weighs more than one of a small cluster."""
    drawn = resample(5, ["a", "a", "a", "a", "b"], draws=500)
    means = drawn.means([1.0, 1.0, 1.0, 1.0, 0.0])
    assert set(np.round(np.unique(means), 6)) == {0.0, 0.8, 1.0}


def test_a_fraction_stays_between_0_and_1_and_a_seed_repeats_it() -> None:
    hits = np.arange(50) < 49
    found = resample(50).mean(hits)
    assert 0.9 < found["low"] <= found["value"] == 0.98 <= found["high"] <= 1.0
    assert found == resample(50).mean(hits)
    assert not np.array_equal(resample(50).counts, resample(50, seed=1).counts)


def test_a_draw_of_every_picture_once_gives_the_distance_itself() -> None:
    generator = np.random.default_rng(2)
    judged, real = generator.normal(0.5, 2, (30, 6)), generator.normal(0, 1, (40, 6))
    once = np.ones((1, 30))
    assert frechet_draws(judged, real, once)[0] == pytest.approx(features.frechet(judged, real))
    assert kernel_draws(judged, real, once)[0] == pytest.approx(features.kernel_distance(judged, real))


def test_a_draw_with_repeats_has_the_frechet_distance_of_the_repeated_rows() -> None:
    generator = np.random.default_rng(3)
    judged, real = generator.normal(0.5, 2, (12, 4)), generator.normal(0, 1, (40, 4))
    rows = generator.integers(0, 12, 12)
    weights = np.bincount(rows, minlength=12)[None].astype(float)
    assert frechet_draws(judged, real, weights)[0] == pytest.approx(features.frechet(judged[rows], real))


def test_the_interval_of_a_distance_holds_what_other_pictures_give() -> None:
    """Unshifted, the draws lie above the figure: the interval would miss it."""
    generator = np.random.default_rng(4)
    real = features.Features(generator.normal(0, 1, (300, 12)), generator.normal(0, 1, (300, 20)))

    def judged() -> features.Features:
        return features.Features(generator.normal(0.3, 1.2, (60, 12)), generator.normal(0.3, 1.2, (60, 20)))

    found = feature_distances(judged(), real, resample(60))
    others = [features.distance(judged(), real) for _ in range(20)]
    for name, interval in found.items():
        assert interval["low"] < interval["value"] < interval["high"]
        inside = sum(interval["low"] <= other[name] <= interval["high"] for other in others)  # type: ignore[literal-required]
        assert inside >= 10, name


def test_labels_or_figures_for_other_pictures_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="3 pictures have no clusters"):
        resample(3, [0, 1])
    with pytest.raises(ShapeMismatch, match="0 pictures"):
        resample(0)
    with pytest.raises(ShapeMismatch, match="3 pictures have no figures"):
        resample(3).mean([1.0])
    one = features.Features(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ShapeMismatch, match="3 pictures were drawn, 2 are judged"):
        feature_distances(one, one, resample(3))
