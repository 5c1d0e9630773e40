"""A profile tells pictures in noise from noise, ring by ring, and does not depend on how channels are rotated."""

from __future__ import annotations

import math

import pytest
import torch

from ddib_fed.engine.gate import ALONE, NAMES, profile


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(channels: int = 3, side: int = 32, seed: int = 1) -> torch.Tensor:
    """A picture of unit deviation that varies slowly."""
    field = torch.nn.functional.interpolate(
        noise(1, channels, 5, 5, seed=seed), size=(side, side), mode="bicubic"
    )
    return ((field - field.mean()) / field.std())[0]


def named(latent: torch.Tensor, picture: torch.Tensor | None = None) -> dict[str, float]:
    found = profile(latent, picture)
    return dict(zip(ALONE if picture is None else NAMES, found.tolist(), strict=True))


def test_white_noise_is_near_zero_where_zero_means_white():
    """Power of 1 in each ring, no aspect, quartiles and channels of unit deviation."""
    mean = torch.stack([profile(noise(3, 32, 32, seed=seed)) for seed in range(40)]).mean(0)
    figures = dict(zip(ALONE, mean.tolist(), strict=True))
    for name in ALONE[:9]:
        assert figures[name] == pytest.approx(0.0, abs=0.2), name
    for name in ("aspect", "bulk", "skewness", "kurtosis"):
        assert figures[name] == pytest.approx(0.0, abs=0.03), name


def test_a_picture_in_noise_shows_in_the_coarsest_ring_first():
    """At an amplitude of .3 it is a tenth of the power, and many times the power of the ring it lies in."""
    share = 0.3
    mixed = named(math.sqrt(1 - share**2) * noise(3, 32, 32) + share * smooth())
    plain = named(noise(3, 32, 32))
    rings = list(ALONE[:9])
    assert mixed[rings[0]] > plain[rings[0]] + 1.5
    assert all(abs(mixed[ring] - plain[ring]) < 0.3 for ring in rings[4:])


def test_the_picture_is_found_where_it_is_given():
    """Correlation over all numbers, of coarse and of fine structure, in [-1, 1]."""
    z = noise(3, 32, 32)
    same, other = named(z, z), named(z, noise(3, 32, 32, seed=9))
    assert same["picture"] == pytest.approx(1.0)
    assert same["picture, fine"] == pytest.approx(1.0)
    assert abs(other["picture"]) < 0.1
    assert len(profile(z, z)) == len(NAMES)


def test_a_rotation_of_the_channels_changes_rings_and_channels_by_rounding_alone():
    """A calibrated latent is the plain one, rotated."""
    z = smooth() + 0.5 * noise(3, 32, 32)
    matrix, _ = torch.linalg.qr(noise(3, 3, seed=4))
    turned = named(torch.einsum("ij,jhw->ihw", matrix, z))
    for name, value in named(z).items():
        if name in (*ALONE[:9], "aspect", "channels, least", "channels, largest"):
            assert turned[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("latent", [torch.zeros(1, 16, 16), torch.ones(3, 16, 24)])
def test_a_constant_has_finite_figures(latent):
    """What is refused must be measured first."""
    assert bool(torch.isfinite(profile(latent, latent)).all())
