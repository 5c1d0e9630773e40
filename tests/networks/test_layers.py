"""Layers compute what torch's kernels compute, and keep in float32 what half precision would lose."""

import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.solvers import integrate
from ddib_fed.models.bundle import pretrained
from ddib_fed.networks.unet import GroupNorm32, TimeEmbed, timestep_embedding

HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Types, and their largest relative rounding error."""


@pytest.mark.parametrize("dtype", HALF)
def test_features_of_times_are_made_before_they_are_rounded(dtype):
    """In bfloat16 the times 999 and 1000 are one number."""
    embed = TimeEmbed(32).to(dtype)
    seen = []
    embed[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    embed(torch.tensor([999.0, 1000.0]))
    exact = timestep_embedding(torch.tensor([999.0, 1000.0], dtype=torch.float64), 32)
    assert seen[0].dtype == dtype
    assert float((seen[0].double() - exact).abs().max().detach()) < 2 * HALF[dtype]


@pytest.mark.slow
def test_a_leg_of_points_in_bfloat16_is_as_exact_as_documented():
    """docs/operating.md: 2e-3 in the latent, 6e-4 in the sample, of deviation 1; the integrated state is float32."""
    bundle = pretrained("moons")
    laid = plan(SolverSettings(), bundle.schedule)
    exact, rounded = bundle.denoiser(), bundle.denoiser(torch.bfloat16)
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    for start, bound in ((laid.decoder, 2e-3), (laid.encoder, 5e-3)):
        ends = [integrate(start(x), each) for each in (exact, rounded)]
        assert ends[1].dtype == torch.float32
        error = float((ends[0] - ends[1]).square().mean(1).sqrt().median())
        assert 1e-6 < error < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalisation_in_half_precision_has_statistics_in_float32(dtype):
    """One rounding away from float64, on data whose mean is 30 times their deviation."""
    norm = GroupNorm32(64).to(dtype)
    x = (30.0 + torch.randn(2, 64, 16, 16)).to(dtype)
    exact = torch.group_norm(x.double(), 32)
    allowed = torch.finfo(dtype).eps * float(exact.detach().abs().max())
    assert float((norm(x).double() - exact).detach().abs().max()) <= allowed
