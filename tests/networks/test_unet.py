"""The ADM UNet: names and sizes of public checkpoints, times and classes by row, precisions, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ddib_fed.networks.build import network_shapes
from ddib_fed.networks.config import UNetConfig
from tests.networks.picture_networks import filled, unet

DATA = Path(__file__).parent.parent / "data"
VARIANTS = [
    {},
    {"num_classes": 3, "class_dropout": True, "use_scale_shift_norm": True, "out_channels": 2},
    {"resblock_updown": True, "use_new_attention_order": True, "num_head_channels": 32},
    {"patch": 2, "in_channels": 3, "out_channels": 6, "conv_resample": False, "num_heads_upsample": 2},
    {"patch": 2, "norm_groups": 8, "global_mean": True, "use_scale_shift_norm": True},
]
ADM_256 = {
    "image_size": 256,
    "model_channels": 256,
    "out_channels": 6,
    "num_res_blocks": 2,
    "attention_resolutions": (8, 16, 32),
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "num_head_channels": 64,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}


def picture(changes, rows=4):
    return torch.randn(rows, changes.get("in_channels", 1), 16, 24)


def classes(changes, rows=4):
    return {"y": torch.arange(rows)} if "num_classes" in changes else {}


def test_the_public_networks_state_dict_is_unchanged():
    """Every name and shape of a class-conditional network by the public code, and no other."""
    with safe_open(DATA / "unet_adm_class_guided.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118 - not a mapping
        theirs = {name.removeprefix("model."): tuple(file.get_slice(name).get_shape()) for name in names}
    config = UNetConfig(
        image_size=64,
        model_channels=32,
        out_channels=6,
        num_res_blocks=1,
        attention_resolutions=(2, 4),
        channel_mult=(1, 2),
        num_classes=10,
        num_head_channels=16,
        use_scale_shift_norm=True,
        resblock_updown=True,
    )
    assert {key: tuple(value.shape) for key, value in network_shapes(config).items()} == theirs


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "parameters"), [(1000, 553_838_086)])
def test_the_256_pixel_networks_have_their_published_size(num_classes, parameters):
    """The public unconditional and class-conditional 256 x 256 networks, built without memory."""
    shapes = network_shapes(UNetConfig(**ADM_256, num_classes=num_classes))
    assert sum(value.numel() for value in shapes.values()) == parameters
    assert all(value.is_meta for value in shapes.values())


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_rows_do_not_touch_one_another(changes):
    """One time, one a row and pointed-to times agree with each row alone, classes too."""
    network, x = unet(**changes), picture(changes)
    times, rows = torch.tensor([0.5, 300.0]), torch.tensor([0, 1, 1, 0])
    y = classes(changes).get("y")
    with torch.no_grad():
        pointed = network(x, times, rows=rows, y=y)
        for_each = network(x, times[rows], y=y)
        alone = [
            network(x[i : i + 1], times[rows[i] : rows[i] + 1], y=None if y is None else y[i : i + 1])
            for i in range(4)
        ]
    assert pointed.shape == (4, changes.get("out_channels", 1), 16, 24)
    assert torch.allclose(pointed, for_each, atol=1e-4)
    assert torch.allclose(pointed, torch.cat(alone), atol=1e-4)
    assert not torch.allclose(pointed, network(x, times[1 - rows], y=y), atol=1e-2)


def test_a_network_told_the_global_mean_sees_it_at_the_scale_of_one_pixels_noise():
    network = filled(unet(global_mean=True))
    entering: list[torch.Tensor] = []
    network.input_blocks[0].register_forward_pre_hook(lambda _, given: entering.append(given[0]))
    noise = torch.randn(64, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network(noise, torch.tensor([0.5]))
    (told,) = entering
    assert told.shape == (64, 2, 16, 24)
    assert torch.equal(told[:, :1], noise)
    assert torch.allclose(told[:, 1, 0, 0], noise.sum(dim=(1, 2, 3)) / (16 * 24) ** 0.5, atol=1e-4)
    assert 0.7 < told[:, 1, 0, 0].std() < 1.3
