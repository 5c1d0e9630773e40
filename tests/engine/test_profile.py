"""A profile tells pictures in noise from noise, ring by ring, and does not depend on how channels are rotated."""

from __future__ import annotations

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
