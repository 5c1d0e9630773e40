"""Samples are of the domain, near it or not yet, by bounds from the domain's own pictures."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.evaluation.features import SampleVerdict, judge_samples, textures


def rings(count: int, seed: int) -> np.ndarray:
    """(count, 1, 32, 32): a bright ring somewhere, of some size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    centre, radius = rng.uniform(10, 22, (count, 2, 1, 1)), rng.uniform(4, 9, (count, 1, 1))
    away = np.hypot(y - centre[:, 0], x - centre[:, 1])
    return (2 * np.exp(-((away - radius) ** 2) / 2) - 1).astype(np.float32)[:, None]


@pytest.fixture(scope="module")
def domain():
    return rings(32, 1), rings(64, 2)


@pytest.mark.slow
def test_real_pictures_are_of_the_domain_textures_are_not_and_mixtures_are_near(domain):
    """The share of texture in a mixture is about the one that it was made with."""
    held_out, train = domain
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


def test_a_verdict_comes_back_from_a_manifests_figures():
    """Figures of a model without one give none."""
    made = SampleVerdict(0.3, 0.0, 0.01, 0.5, 0.4, 64, 100)
    assert SampleVerdict.of_figures({**made.figures(), "held_out_loss": 1.0}) == made
    assert SampleVerdict.of_figures({"held_out_loss": 1.0}) is None
