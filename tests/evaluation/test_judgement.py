"""What is said of translations and samples, with intervals; baselines need no network."""

import numpy as np
import pytest

from ddib_fed import metrics
from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation import features
from ddib_fed.evaluation.features import judge_samples, textures
from ddib_fed.evaluation.judgement import judge, worst_first
from ddib_fed.metrics import feature_distance, histogram_match, mse, resample
from ddib_fed.models.units import ChannelMap
from tests.calibration.examples import calibration
from tests.runs.picture_folders import blocks
from tests.runs.tiny_models import pictures


@pytest.fixture(scope="module")
def whole():
    """Truth is the negative; the translation is nearly that."""
    source = blocks(12)
    truth = -source
    return judge(
        np.clip(0.8 * truth + 0.1 * blocks(12, seed=1), -1, 1), source=source, truth=truth,
        back=np.clip(source + 0.02, -1, 1), domain=-blocks(16, seed=2), marks=[True, *[False] * 11],
        clusters=np.arange(12) // 2,
    )  # fmt: skip


@pytest.mark.slow
def test_the_translation_beats_what_knows_nothing(whole):
    psnr = {name: found["psnr"]["value"] for name, found in whole["ways"].items() if "psnr" in found}
    own = psnr.pop("translated")
    assert set(psnr) == {"source", "histogram"}
    assert own > max(psnr.values())


def test_the_map_alone_is_the_first_baseline_and_it_is_said_where_it_does_as_well():
    source = pictures(8, channels=3)
    made = calibration(map=ChannelMap(rotation=((1, 0, 0), (0, 1, 0), (0, 0, 1))))
    report = judge(0.5 * source, source=source, truth=source, mapping=made.alone)
    assert list(report["ways"])[:2] == ["translated", "map"]
    assert report["ways"]["map"]["ssim"]["value"] == pytest.approx(1.0)
    assert report["ways"]["translated"]["sharpness"]["value"] == pytest.approx(0.5, abs=0.01)
    [said] = report["notes"]
    assert "SSIM the translations are worse than the calibration's map alone" in said


def test_a_monotone_tone_curve_is_found_without_pairs():
    source, unseen = pictures(60, channels=3), pictures(60, channels=3, seed=1)
    new = pictures(4, channels=3, seed=2)
    assert mse(histogram_match(new, source, unseen**3), new**3).max() < 1e-3


def row(cycle, edges, **more):
    return {"cycle_psnr": cycle, "edge_correlation": edges, **more}


def test_doubtful_pictures_come_first_then_those_with_one_bad_figure():
    """By the round trip alone, the best returned of the first four would be last; NaN is the worst figure."""
    rows = [row(38.0, 0.5), row(39.0, 0.6), row(44.0, 0.02), row(33.0, 0.7), row(40.0, 0.5, doubtful=True)]
    assert worst_first(rows)[:3] == [rows[4], rows[2], rows[3]]
    rows = [row(40.0, 0.4), row(float("nan"), 0.5), row(38.0, 0.6)]
    assert worst_first(rows)[0] is rows[1]
    rows = [row(40.0, None), row(39.0, 0.1), row(38.0, 0.9)]  # a figure that some lack does not count
    assert worst_first(rows) == rows[::-1]
    assert worst_first([]) == []


def rings(count: int, seed: int) -> np.ndarray:
    """(count, 1, 32, 32): a bright ring somewhere, of some size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    centre, radius = rng.uniform(10, 22, (count, 2, 1, 1)), rng.uniform(4, 9, (count, 1, 1))
    away = np.hypot(y - centre[:, 0], x - centre[:, 1])
    return (2 * np.exp(-((away - radius) ** 2) / 2) - 1).astype(np.float32)[:, None]


@pytest.mark.slow
def test_real_pictures_are_of_the_domain_textures_are_not_and_mixtures_are_near(monkeypatch):
    """The share of texture in a mixture is about the one that it was made with."""
    made, known = features.features, {}

    def once(pictures, blocks):
        key = pictures.tobytes()
        return known[key] if key in known else known.setdefault(key, made(pictures, blocks))

    monkeypatch.setattr(features, "features", once)
    held_out, train = rings(32, 1), rings(64, 2)
    fresh = rings(32, 3)
    texture = textures(rings(32, 4), np.random.default_rng(0))
    mixed = np.concatenate([fresh[:24], texture[:8]])[np.random.default_rng(1).permutation(32)]
    real, foreign, some = (judge_samples(x, held_out, train) for x in (fresh, texture, mixed))
    assert (real.level, foreign.level, some.level) == ("of the domain", "not yet", "near")
    assert some.share == pytest.approx(0.25, abs=0.12)
    assert foreign.share == pytest.approx(1.0, abs=0.25)
    assert real.floor < 0.2 * real.texture
    assert foreign.to_texture < foreign.distance
    assert "not of your domain yet" in foreign.sentence(150)
    assert foreign.sentence(150).startswith("150 steps:")


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


def cloud(count, *, seed=0, shift=0.0, scale=1.0, dim=6):
    return scale * np.random.default_rng(seed).normal(size=(count, dim)) + shift


def test_the_frechet_distance_of_normal_clouds_is_the_formulas() -> None:
    """D shift^2 + D (1 - scale)^2 for independent coordinates."""
    first, second = cloud(5_000), cloud(5_000, seed=1, shift=0.5, scale=2.0)
    assert metrics.frechet(first, second)[0] == pytest.approx(6 * 0.25 + 6 * 1.0, rel=0.05)
    assert metrics.frechet(first, first)[0] == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ShapeMismatch):
        metrics.frechet(first[:1], second)


def test_the_interval_of_a_distance_holds_what_other_pictures_give() -> None:
    """Unshifted, the draws lie above the figure: the interval would miss it."""
    generator = np.random.default_rng(4)
    real = generator.normal(0, 1, (300, 12))

    def judged() -> metrics.Matrix:
        return generator.normal(0.3, 1.2, (60, 12))

    found = feature_distance(judged(), real, resample(60))
    assert found["low"] < found["value"] < found["high"]
    others = [metrics.frechet(judged(), real)[0] for _ in range(20)]
    assert sum(found["low"] <= other <= found["high"] for other in others) >= 10
