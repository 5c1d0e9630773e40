"""Latents beside true noise, by the same estimate."""

import pytest
import torch

from ddib_fed.evaluation.metrics import WHITE_RATIO, noise_statistics, whiteness

SHAPE = (24, 1, 32, 32)


def noise(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_noise_is_as_white_as_noise():
    found = whiteness(noise(1))
    assert found.ratio == pytest.approx(1.0, abs=0.1)
    assert found.ratio <= WHITE_RATIO
    assert found.noise.count == found.latent.count


def test_few_patches_make_noise_look_correlated():
    """Why the figure of noise must stand beside: it depends on the count alone."""
    assert noise_statistics((4, 1, 32, 32)).correlation > 1.5 * noise_statistics(SHAPE).correlation


def test_a_smoothed_latent_is_not_white():
    z = noise(2)
    found = whiteness((z + z.roll(1, dims=3)) / 2**0.5)
    assert found.latent.std == pytest.approx(1.0, abs=0.05)
    assert found.ratio > WHITE_RATIO


def test_the_noise_is_always_the_same():
    first = noise_statistics(SHAPE)
    noise_statistics.cache_clear()
    assert noise_statistics(SHAPE) == first


def test_too_few_patches_tell_nothing():
    assert whiteness(torch.zeros(1, 1, 8, 8)).ratio == 0.0
