"""The spectrum gives what a Gaussian model of pictures would answer, and asks the network about white noise."""

from functools import cache

import pytest
import torch

from ddib_fed.diffusion.denoiser import LAMBDA_SCALE, Denoiser
from ddib_fed.diffusion.schedule import CosineSchedule, make_grid
from ddib_fed.diffusion.solvers import integrate, unipc, walk
from ddib_fed.models.bundle import pretrained
from ddib_fed.networks.spectrum import Moments, Spectrum, Whitened, cosines, pictures
from tests.networks.picture_networks import unet

SIZE = 8


@cache
def gaussian(count, seed=0, *, sides=(SIZE, SIZE)):
    """Samples (count, 1, *sides) around a slope, coarse structure strong and fine structure faint; with both facts."""
    generator = torch.Generator().manual_seed(seed)
    frequency = sum(torch.meshgrid(*map(torch.arange, sides), indexing="ij"))
    variance = 30.0 / (1.0 + frequency.double()) ** 4
    mean = torch.linspace(-1, 1, sides[-1], dtype=torch.float64).expand(1, *sides)
    noise = torch.randn(count, 1, *sides, generator=generator, dtype=torch.float64)
    return (mean + pictures(variance.sqrt() * noise, len(sides))).float(), mean, variance


@cache
def measured(count=20_000, sides=(SIZE, SIZE)):
    x0, mean, variance = gaussian(count, sides=sides)
    moments = Moments(1, *sides)
    for part in x0.split(4_096):
        moments.add(part)
    spectrum = Spectrum(1, *sides)
    spectrum.measure(moments)
    return spectrum, mean, variance


@pytest.mark.parametrize("sides", [(SIZE, SIZE), (3, 4, 5)])
@pytest.mark.parametrize("lam", [4.0, 1.0, -0.5, -3.0])
def test_the_question_is_white_and_what_is_left_has_the_stated_size(lam, sides):
    """At every noise level: x is white by frequency, v - E[v | x] has variance D / S and nothing of x in it."""
    spectrum, mean, variance = measured(sides=sides)
    x0, _, _ = gaussian(20_000, seed=1, sides=sides)
    axes, one = len(sides), (1, *sides)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    alpha, sigma = (torch.sigmoid(torch.tensor(sign * 2 * lam)).sqrt() for sign in (1, -1))
    x = alpha * x0 + sigma * eps
    asked = spectrum.ask(x, torch.tensor([LAMBDA_SCALE * lam]))
    question, seen = asked.inputs.chunk(2, dim=1)
    white = cosines(question, axes)
    assert torch.allclose(white.var(0), torch.ones(one), atol=0.08)
    scale = (variance / (alpha.double() ** 2 * variance + sigma.double() ** 2)).sqrt().float()
    assert torch.allclose(asked.terms.left, scale.clamp(max=1.0), rtol=0.05)
    left = cosines(alpha * eps - sigma * x0 - asked.expected(), axes) / scale
    assert torch.allclose(left.var(0), torch.ones(one), atol=0.08)
    assert float((white * left).mean(0).abs().max()) < 0.04
    missed = cosines(x0 - mean.float() - seen, axes)
    assert torch.allclose(missed.var(0), (sigma * scale).square().expand(one), rtol=0.1)
    assert float((cosines(seen, axes) * missed).mean(0).abs().max()) < 0.04 * float(variance.max())


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


# Whitened coordinates: they can be left again, and what is linear stands still in them


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


def test_it_converges_to_what_unipc_converges_to(denoiser):
    """Other coordinates of the same ODE, which can be left again."""
    z, white = noise(), Whitened(denoiser)
    grid = make_grid(SCHEDULE, "uniform-lambda", 96).reversed()
    last = grid.levels[-1]
    assert torch.allclose(white.leave(white.enter(z, last), last), z, atol=1e-4)
    framed = walk(z, unipc(grid, whitened=True), white)
    plain = integrate(z, unipc(make_grid(SCHEDULE, "uniform-lambda", 192).reversed()), denoiser)
    assert (framed - plain).abs().max() < 2e-3 * plain.std()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_librarys_network_of_volumes_keeps_the_precision_that_it_is_asked_in(dtype):
    bundle = pretrained("brain-t1-volume")
    x, times = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([2.0])
    with torch.no_grad():
        whole, half = bundle.network()(x, times), bundle.network(dtype)(x.to(dtype), times.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - whole).abs().max() < 0.02 * whole.abs().max()
