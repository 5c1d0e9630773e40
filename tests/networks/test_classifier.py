"""The noisy classifier: names of public checkpoints, the four ways to pool, rows of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ddib_fed.networks.build import network_shapes
from ddib_fed.networks.config import ClassifierConfig
from ddib_fed.networks.unet import AttentionPool
from tests.networks.picture_networks import classifier, filled

FILE = Path(__file__).parent.parent / "data" / "unet_adm_class_guided.safetensors"
POOLS = ["adaptive", "attention", "spatial", "spatial_v2"]


def test_the_public_classifiers_state_dict_is_unchanged():
    """Every name and shape of a classifier by the public code, and no other."""
    with safe_open(FILE, "pt") as file:
        names = [name for name in file.keys() if name.startswith("classifier.")]  # noqa: SIM118 - not a mapping
        theirs = {name.removeprefix("classifier."): tuple(file.get_slice(name).get_shape()) for name in names}
    config = ClassifierConfig(
        image_size=32,
        model_channels=32,
        out_channels=10,
        num_res_blocks=1,
        attention_resolutions=(4,),
        channel_mult=(2, 3, 4),
        num_head_channels=64,
        use_scale_shift_norm=True,
        resblock_updown=True,
        pool="attention",
    )
    assert {key: tuple(value.shape) for key, value in network_shapes(config).items()} == theirs


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_do_not_touch_one_another(pool, checkpointing):
    """Pointed-to times agree with each row alone, with gradients on or off."""
    network = classifier(pool=pool)
    network.checkpointing = checkpointing
    x, times, rows = torch.randn(3, 1, 16, 16), torch.tensor([0.5, 300.0]), torch.tensor([1, 0, 1])
    together = network(x, times, rows=rows)
    alone = torch.cat([network(x[i : i + 1], times[rows[i] : rows[i] + 1]) for i in range(3)])
    assert together.shape == (3, 3)
    assert torch.allclose(together, alone, atol=1e-4)


def test_attention_pool_is_what_the_mean_place_sees():
    """By the textbook: softmax(q k / sqrt(d)) v over all places, of which the mean's row is kept."""
    pool, x = filled(AttentionPool(4, 64, 32, 5)), torch.randn(2, 64, 2, 2)
    tokens = torch.cat([x.flatten(2).mean(-1, keepdim=True), x.flatten(2)], -1) + pool.positional_embedding
    q, k, v = pool.qkv_proj(tokens).reshape(2, 3, 2, 32, 5).unbind(1)
    weights = torch.softmax(torch.einsum("nhct,nhcs->nhts", q, k) / 32**0.5, dim=-1)
    expected = pool.c_proj(torch.einsum("nhts,nhcs->nhct", weights, v).reshape(2, 64, 5))[:, :, 0]
    assert torch.allclose(pool(x), expected, atol=1e-5)
