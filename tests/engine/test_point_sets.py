"""Parts of N(0, I) pass as sets, wherever they are cut; raw data, other noise and repeated points do not."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.data.synthetic import DOMAINS, sample
from ddib_fed.engine.gate import pass_latent
from ddib_fed.engine.party import Leg
from ddib_fed.errors import LatentNotGaussian


def noise(count: int, dim: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


PARTS = {
    "all": lambda z: z,
    "one half": lambda z: z[z[:, 0] > 0],
    "a quarter": lambda z: z[(z[:, 0] > 0) & (z[:, 1] > 0.3)],
    "a disc": lambda z: z[(z - 0.7).norm(dim=1) < 0.6],
    "a ring": lambda z: z[(z.norm(dim=1) > 0.8) & (z.norm(dim=1) < 1.6)],
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_part_of_true_noise_passes(part, seed):
    """A user may translate any part of a domain."""
    pass_latent(part(noise(4_000, seed=seed))[:1_000], Leg())


@pytest.mark.parametrize("count", [1, 2, 7, 8, 63, 64, 100, 5_000])
def test_sets_of_every_size_pass(count):
    """Few points say nothing."""
    pass_latent(noise(count), Leg())


@pytest.mark.parametrize("dim", [1, 3, 8, 9, 40])
def test_points_of_other_dimensions_pass(dim):
    """The bounds were measured in two, and are relative to true noise of the same."""
    for seed in range(3):
        pass_latent(noise(600, dim, seed), Leg())


@pytest.mark.parametrize("domain", DOMAINS)
def test_raw_data_are_refused(domain):
    """1,024 points as they are, whose norms are those of noise."""
    with pytest.raises(LatentNotGaussian) as refused:
        pass_latent(torch.from_numpy(sample(domain, 1_024, 0)), Leg())
    assert refused.value.facts.keys() & {"slope", "shift", "dimension"}


@pytest.mark.parametrize("scale", [0.55, 0.7, 1.4, 1.8])
def test_noise_of_another_scale_is_refused(scale):
    """Its density falls with another slope."""
    with pytest.raises(LatentNotGaussian) as refused:
        pass_latent(scale * noise(1_024), Leg())
    assert "slope" in refused.value.facts


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("count", [8, 64, 3_000])
def test_one_point_many_times_is_refused(value, count):
    """From eight points on."""
    with pytest.raises(LatentNotGaussian) as refused:
        pass_latent(torch.full((count, 2), value), Leg())
    assert float(refused.value.facts["repeated"]) > 0.5


def test_half_of_a_set_may_lie_on_another_point_and_no_more():
    """Just below and just above the half."""
    z = noise(100)
    pass_latent(torch.cat([z[:51], z[:1].expand(49, 2)]), Leg())
    with pytest.raises(LatentNotGaussian, match="lie on another one"):
        pass_latent(torch.cat([z[:49], z[:1].expand(51, 2)]), Leg())
