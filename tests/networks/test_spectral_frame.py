"""Whitened coordinates: they can be left again, and what is linear stands still in them."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.guidance import Rotated, rotated
from ddib_fed.diffusion.schedule import CosineSchedule, make_grid
from ddib_fed.diffusion.solvers import integrate, unipc
from ddib_fed.networks.spectrum import SpectralFrame
from tests.networks.picture_networks import unet

SCHEDULE = CosineSchedule()


@pytest.fixture
def denoiser():
    """A spectral network of 3 channels whose spectrum falls by five orders."""
    network = unet(image_size=8, in_channels=3, out_channels=3, spectral=True)
    frequency = torch.arange(8)[:, None] + torch.arange(8)
    network.spectrum.log_variance.copy_((4.0 / (1.0 + frequency) ** 5).log().expand(3, 8, 8))
    network.spectrum.mean.copy_(torch.linspace(-1, 1, 8).expand(3, 8, 8))
    return Denoiser(network, "v", "scaled-lambda")


def noise(seed=0):
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def turn():
    return torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5)))[0]


def test_it_converges_to_what_unipc_converges_to(denoiser):
    """Other coordinates of the same ODE."""
    z = noise()
    grid = make_grid(SCHEDULE, "uniform-lambda", 96).reversed()
    framed = integrate(unipc(z, grid, frame=SpectralFrame(denoiser.network.spectrum)), denoiser)
    plain = integrate(unipc(z, make_grid(SCHEDULE, "uniform-lambda", 384).reversed()), denoiser)
    assert (framed - plain).abs().max() < 2e-3 * plain.std()


def test_a_rotated_leg_is_the_leg_rotated(denoiser):
    """Under a calibration the frame turns with the channels."""
    z, rotation = noise(), turn()
    grid = make_grid(SCHEDULE, "uniform-lambda", 10).reversed()
    spectrum = denoiser.network.spectrum
    own = integrate(unipc(z, grid, frame=SpectralFrame(spectrum)), denoiser)
    turned = unipc(rotated(z, rotation), grid, frame=SpectralFrame(spectrum, rotation))
    found = integrate(turned, Rotated(denoiser, rotation))
    assert torch.allclose(found, rotated(own, rotation), atol=1e-4)
