"""The bridge in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.errors import ShapeMismatch
from ddib_fed.metrics.pictures import psnr
from ddib_fed.metrics.references.gaussian_bridge import GaussianBridge, units_of
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.networks import spectrum

RAW = (Normalisation(), Normalisation())
DOWN, ACROSS = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")


def gaussians(count: int, fall: float, *, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Pictures whose deviation falls with frequency by the power `fall`."""
    import torch

    generator = np.random.default_rng(seed)
    white = generator.normal(0, 0.3, (count, channels, 8, 8)) / (1.0 + DOWN + ACROSS) ** fall
    return spectrum.pictures(torch.from_numpy(white)).numpy().astype(np.float32)


def test_the_spectrum_becomes_the_targets_and_each_frequency_keeps_its_sign() -> None:
    source, target = gaussians(4000, 0.5), gaussians(4000, 1.5, seed=1) + np.float32(0.2)
    bridge = GaussianBridge.fit(source, target, units=RAW)
    expected = gaussians(4000, 1.5) + np.float32(0.2)
    assert psnr(bridge(source[:8]), np.clip(expected[:8], -1, 1)).min() > 40


def test_the_way_back_is_the_inverse() -> None:
    source, target = gaussians(400, 0.5, channels=3) * 0.2, gaussians(400, 1.0, channels=3, seed=1) * 0.2
    there, back = GaussianBridge.fit(source, target), GaussianBridge.fit(target, source)
    assert psnr(back(there(source[:8])), source[:8]).min() > 60


def test_a_rotation_permutes_channels_before_the_spectra_are_matched() -> None:
    """Without it the channels stay where they are, whatever the picture shows."""
    source = gaussians(2000, 0.5, channels=3)
    turn = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    target = gaussians(2000, 1.0, channels=3)[:, [1, 2, 0]]
    turned = GaussianBridge.fit(source, target, units=RAW, rotation=turn)
    plain = GaussianBridge.fit(source, target, units=RAW)
    assert psnr(turned(source[:8]), np.clip(target[:8], -1, 1)).min() > 35
    assert psnr(plain(source[:8]), np.clip(target[:8], -1, 1)).max() < 30


def test_units_of_colour_are_opponent_channels_of_mean_0_and_deviation_1() -> None:
    stack = gaussians(50, 0.5, channels=3)
    units = units_of(stack)
    assert units.colours == "opponent"
    assert units.apply(stack).mean(axis=(0, 2, 3)) == pytest.approx(np.zeros(3), abs=1e-4)
    assert units.apply(stack).std(axis=(0, 2, 3)) == pytest.approx(np.ones(3), abs=1e-4)


def test_few_pictures_have_no_spectrum() -> None:
    with pytest.raises(ShapeMismatch, match="needs 16"):
        GaussianBridge.fit(gaussians(15, 1.0), gaussians(20, 1.0))
    with pytest.raises(ShapeMismatch, match="square"):
        GaussianBridge.fit(gaussians(20, 1.0)[..., :4], gaussians(20, 1.0)[..., :4])
