"""The noisy classifier: names of public checkpoints, the four ways to pool, rows of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ddib_fed.networks.build import network_shapes
from ddib_fed.networks.config import ClassifierConfig
from tests.networks.picture_networks import classifier

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
