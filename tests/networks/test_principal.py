"""An autoencoder that begins linear gives back nearly what principal components of blocks do, in fixed features."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import LibraryConfig
from ddib_fed.networks.principal import begin_linear


def autoencoder(dims, levels, **changes):
    arguments = {
        "spatial_dims": dims, "in_channels": 1, "out_channels": 1, "channels": [16] * levels, "latent_channels": 4,
        "num_res_blocks": [0] + [1] * (levels - 1), "attention_levels": [False] * levels, "norm_num_groups": 1,
        "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False, "use_convtranspose": True,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arguments |= changes
        return build_network(
            LibraryConfig(target="monai.networks.nets.AutoencoderKL", arguments=arguments)
        ).eval()


def fields(dims, count=32):
    """Smooth noise (count, 1, 16, ...) of deviation 1."""
    coarse = torch.randn(count, 1, *[6] * dims, generator=torch.Generator().manual_seed(1))
    x = functional.interpolate(coarse, size=[16] * dims, mode="bilinear" if dims == 2 else "trilinear")
    return (x - x.mean()) / x.std()


@pytest.mark.parametrize(("dims", "levels"), [(2, 2), (2, 3), (3, 2)])
@torch.no_grad()
def test_it_begins_as_good_as_the_principal_components_of_blocks(dims, levels):
    """Its latents have deviation 1, in pictures and in volumes; nothing is kept of 16 components but 4."""
    network, x = autoencoder(dims, levels), fields(dims)
    assert begin_linear(network, x)
    mean, deviation = network.posterior(x)
    assert torch.allclose(mean.std((0, *range(2, 2 + dims))), torch.ones(4), atol=0.1)
    assert torch.allclose(deviation, torch.full_like(deviation, np.exp(-3)))
    error = float((network.decode(mean) - x).square().mean())
    side = 2 ** (levels - 1)
    blocks = x.reshape(len(x), *(n for _ in range(dims) for n in (16 // side, side)))
    places, inside = range(1, 1 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
    rows = blocks.permute(0, *places, *inside).reshape(-1, side**dims).double()
    lost = torch.linalg.eigvalsh(rows.T @ rows / len(rows))[: side**dims - 4].sum() / side**dims
    assert float(lost) - 0.02 < error < float(lost) + 0.03
    # The first latent is the mean of a place, whatever the principal components are.
    pooled = (functional.avg_pool2d if dims == 2 else functional.avg_pool3d)(x, side)
    assert np.corrcoef(mean[:, 0].flatten(), pooled[:, 0].flatten())[0, 1] > 0.99
