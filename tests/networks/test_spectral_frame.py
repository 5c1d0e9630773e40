"""Whitened coordinates: they can be left again, and what is linear stands still in them."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion.bridge import Rotated, integrate, rotated
from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.grids import make_grid
from ddib_fed.diffusion.schedule import CosineSchedule
from ddib_fed.diffusion.solvers import unipc, unipc_in
from ddib_fed.networks.spectrum import SharedWithLinear, SpectralFrame, cosines, pictures
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


@pytest.mark.parametrize("rotation", [None, turn()])
def test_what_is_entered_is_left_again(denoiser, rotation):
    """In the model's basis and in another."""
    frame, level = SpectralFrame(denoiser.network.spectrum, rotation), SCHEDULE.level(1.0)
    there = frame.enter(noise(), level.alpha, level.sigma)
    assert torch.allclose(frame.leave(there, level.alpha, level.sigma), noise(), atol=1e-5)


def test_one_step_of_the_linear_encoder_is_exact(denoiser):
    """Of Gaussian pictures the state does not move, so that one evaluation gives the closed form of `encoders`."""
    linear = SharedWithLinear(denoiser, 0.0)
    grid = make_grid(SCHEDULE, "uniform-lambda", 1).reversed()
    x = noise()
    found = integrate(unipc_in(SpectralFrame(denoiser.network.spectrum), x, grid), linear)
    first, last = grid.levels
    spectrum = denoiser.network.spectrum
    variance = spectrum.log_variance.exp()
    before, after = (level.alpha**2 * variance + level.sigma**2 for level in (first, last))
    scale = (after / before).sqrt()
    wanted = last.alpha * spectrum.mean + pictures(scale * cosines(x - first.alpha * spectrum.mean))
    assert torch.allclose(found, wanted, atol=2e-5)


def test_it_converges_to_what_unipc_converges_to(denoiser):
    """Other coordinates of the same ODE."""
    z = noise()
    grid = make_grid(SCHEDULE, "uniform-lambda", 96).reversed()
    framed = integrate(unipc_in(SpectralFrame(denoiser.network.spectrum), z, grid), denoiser)
    plain = integrate(unipc(z, make_grid(SCHEDULE, "uniform-lambda", 384).reversed()), denoiser)
    assert (framed - plain).abs().max() < 2e-3 * plain.std()


def test_a_rotated_leg_is_the_leg_rotated(denoiser):
    """Under a calibration the frame turns with the channels."""
    z, rotation = noise(), turn()
    grid = make_grid(SCHEDULE, "uniform-lambda", 10).reversed()
    spectrum = denoiser.network.spectrum
    own = integrate(unipc_in(SpectralFrame(spectrum), z, grid), denoiser)
    turned = unipc_in(SpectralFrame(spectrum, rotation), rotated(z, rotation), grid)
    found = integrate(turned, Rotated(denoiser, rotation))
    assert torch.allclose(found, rotated(own, rotation), atol=1e-4)
