"""The spectrum gives what a Gaussian model of pictures would answer, and asks the network about white noise."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion import plans
from ddib_fed.diffusion.denoiser import LAMBDA_SCALE, Denoiser
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.networks.spectrum import Moments, Spectrum, cosines, pictures
from tests.networks.picture_networks import unet

SIZE = 8


def gaussian(count, seed=0, *, white=False):
    """Pictures (count, 1, 8, 8) around a slope, coarse structure strong and fine structure faint; with both facts."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.arange(SIZE)[:, None] + torch.arange(SIZE)
    variance = 30.0 / (1.0 + frequency.double()) ** 4
    mean = torch.linspace(-1, 1, SIZE, dtype=torch.float64).expand(1, SIZE, SIZE)
    noise = torch.randn(count, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    if white:
        rows = noise.flatten(1) - noise.flatten(1).mean(0)
        noise = (torch.linalg.qr(rows)[0] * (count - 1) ** 0.5).reshape(noise.shape)
    return (mean + pictures(variance.sqrt() * noise)).float(), mean, variance


def measured(count=20_000):
    x0, mean, variance = gaussian(count)
    moments = Moments(1, SIZE)
    for part in x0.split(4_096):
        moments.add(part)
    spectrum = Spectrum(1, SIZE)
    spectrum.measure(moments)
    return spectrum, mean, variance


@pytest.mark.parametrize("lam", [4.0, 1.0, -0.5, -3.0])
def test_the_question_is_white_and_what_is_left_has_the_stated_size(lam):
    """At every noise level: x is white by frequency, v - E[v | x] has variance D / S and nothing of x in it."""
    spectrum, mean, variance = measured()
    x0, _, _ = gaussian(20_000, seed=1)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    alpha, sigma = (torch.sigmoid(torch.tensor(sign * 2 * lam)).sqrt() for sign in (1, -1))
    x = alpha * x0 + sigma * eps
    asked = spectrum.ask(x, torch.tensor([LAMBDA_SCALE * lam]))
    question, seen = asked.inputs.chunk(2, dim=1)
    white = cosines(question)
    assert torch.allclose(white.var(0), torch.ones(1, SIZE, SIZE), atol=0.08)
    scale = (variance / (alpha.double() ** 2 * variance + sigma.double() ** 2)).sqrt().float()
    assert torch.allclose(asked.terms.left, scale.clamp(max=1.0), rtol=0.05)
    left = cosines(alpha * eps - sigma * x0 - asked.expected()) / scale
    assert torch.allclose(left.var(0), torch.ones(1, SIZE, SIZE), atol=0.08)
    assert float((white * left).mean(0).abs().max()) < 0.04
    missed = cosines(x0 - mean.float() - seen)
    assert torch.allclose(missed.var(0), (sigma * scale).square().expand(1, SIZE, SIZE), rtol=0.1)
    assert float((cosines(seen) * missed).mean(0).abs().max()) < 0.04 * float(variance.max())


@pytest.mark.slow
def test_a_network_that_answers_nothing_encodes_gaussian_pictures_to_noise():
    """Where one without a spectrum leaves the picture in its latent."""
    least = {"image_size": SIZE, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": ()}
    network, plain = unet(**least, spectral=True), unet(**least)
    for parameter in [*network.out.parameters(), *plain.out.parameters()]:
        torch.nn.init.zeros_(parameter)
    spectrum, _, _ = measured()
    network.spectrum.load_state_dict(spectrum.state_dict())
    x0, _, _ = gaussian(96, seed=3, white=True)
    schedule, settings = schedule_from_config(ScheduleConfig()), SolverSettings(evaluations=24)
    found = {}
    for name, made in (("spectral", network), ("plain", plain)):
        latent = plans.encode(x0, Denoiser(made, "v", "scaled-lambda"), schedule, settings)
        found[name] = cosines(latent).var(0)
    assert torch.allclose(found["spectral"], torch.ones(1, SIZE, SIZE), atol=0.1)
    assert float(found["plain"].max()) > 5.0
    assert float(found["plain"].min()) < 0.1


def test_rows_have_their_own_levels_and_half_precision_is_rounded_once():
    """One level a row and pointed-to levels agree; bfloat16 stays within a rounding of float32."""
    network = unet(spectral=True)
    network.spectrum.log_variance.normal_(0.0, 2.0, generator=torch.Generator().manual_seed(0))
    x, times = torch.randn(4, 1, 16, 16), torch.tensor([2.0, -6.0])
    rows = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        pointed = network(x, times, rows=rows)
        alone = torch.cat([network(x[i : i + 1], times[rows[i] : rows[i] + 1]) for i in range(4)])
        rough = network.to(torch.bfloat16)(x.bfloat16(), times, rows=rows)
    assert torch.allclose(pointed, alone, atol=1e-4)
    assert rough.dtype == torch.bfloat16
    assert float((rough.float() - pointed).abs().max()) < 0.05 * float(pointed.abs().max())
