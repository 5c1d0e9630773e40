"""Every network computes in float64 when it is asked to: nothing inside rounds to float32."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import DiffusersUNetConfig, MlpConfig, SyntheticConfig
from tests.networks.picture_networks import classifier, filled, unet

STEP = 1e-5
DIFFUSERS = DiffusersUNetConfig(
    image_size=16,
    in_channels=1,
    out_channels=1,
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
NETWORKS = {
    "mlp": (lambda: filled(build_network(MlpConfig(width=16, blocks=1, embedding=8, features=4))), (2,)),
    "synthetic": (lambda: filled(build_network(SyntheticConfig(num_channels=32, num_res_blocks=1))), (2,)),
    "unet": (unet, (1, 16, 16)),
    "spectral unet": (lambda: unet(spectral=True, global_mean=True), (1, 16, 16)),
    "classifier": (classifier, (1, 16, 16)),
    "diffusers unet": (lambda: filled(build_network(DIFFUSERS)), (1, 16, 16)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("moved", ["x", "time"])
def test_a_network_in_float64_computes_in_float64(name, moved):
    """Differences over 2e-5 and over 4e-5 are one slope to five digits; a value rounded to float32 leaves them none."""
    if name.startswith("diffusers"):
        pytest.importorskip("diffusers")
    make, shape = NETWORKS[name]
    network = make().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    time = torch.tensor([3.3], dtype=torch.float64)
    way = (
        torch.randn(x.shape, generator=generator, dtype=torch.float64)
        if moved == "x"
        else torch.zeros_like(x)
    )
    push = torch.zeros(1, dtype=torch.float64) if moved == "x" else torch.ones(1, dtype=torch.float64)
    with torch.no_grad():
        ends = [network(x + h * way, time + h * push) for h in (STEP, -STEP, 2 * STEP, -2 * STEP)]
    near, far = (ends[0] - ends[1]) / (2 * STEP), (ends[2] - ends[3]) / (4 * STEP)
    assert ends[0].dtype == torch.float64
    assert float((near - far).abs().max() / near.abs().max()) < 1e-5
