"""Converts a UNet of diffusers to our `UNet` where both compute the same function.

The function must be exactly the same. Time features in the other order are columns in the other order;
query, key and value are stacked as in the new attention order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ddib_fed.models.importers.shapes import multiplier
from ddib_fed.networks.configs import UNetConfig
from ddib_fed.networks.diffusers.config import DiffusersUNetConfig

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def adm_config(config: DiffusersUNetConfig) -> UNetConfig | None:
    """The arguments of the `UNet` equivalent to the network of `config`; None if there is none."""
    widths = config.block_out_channels
    changes = {_change(config, kind, "down") for kind in config.down_block_types[:-1]}
    changes |= {_change(config, kind, "up") for kind in config.up_block_types[:-1]}
    attends = [kind.startswith("Attn") for kind in config.down_block_types]
    same = (
        config.mid_block
        and config.add_attention
        and config.mid_block_scale_factor == 1.0
        and config.middle_groups == config.norm_num_groups == 32
        and config.norm_eps == 1e-5
        and config.act_fn == "silu"
        and config.freq_shift == 0
        and config.time_embedding_dim in (None, 4 * widths[0])
        and not config.center_input_sample
        and (config.downsample_padding == 1 or "conv" not in changes)
        and len(changes) <= 1
        and attends == [kind.startswith("Attn") for kind in config.up_block_types[::-1]]
        and not any(width % 32 for width in widths)
    )
    if not same:
        return None
    return UNetConfig(
        image_size=config.image_size,
        in_channels=config.in_channels,
        model_channels=widths[0],
        out_channels=config.out_channels,
        num_res_blocks=config.layers_per_block,
        attention_resolutions=tuple(2**level for level, there in enumerate(attends) if there),
        dropout=config.dropout,
        channel_mult=tuple(multiplier(width, widths[0]) for width in widths),
        num_classes=config.num_class_embeds,
        num_heads=1,
        num_head_channels=config.attention_head_dim or -1,
        use_scale_shift_norm=config.resnet_time_scale_shift == "scale_shift",
        resblock_updown=changes == {"resnet"},
        use_new_attention_order=True,
    )


def _change(config: DiffusersUNetConfig, kind: str, way: str) -> str:
    if kind.startswith("Attn"):
        return config.downsample_type if way == "down" else config.upsample_type
    return "resnet" if kind.startswith("Resnet") else "conv"


def adm_state(config: DiffusersUNetConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `state`, which fits `config`, as that `UNet` has them."""
    made = dict(_plain(state, _ENDS))
    for prefix, name in _residuals(config):
        made |= dict(_plain(state, {f"{prefix}.{old}": f"{name}.{new}" for old, new in _RESIDUAL.items()}))
    for prefix, name in _attentions(config):
        made |= dict(_plain(state, {f"{prefix}.group_norm": f"{name}.norm"}))
        for part in ("weight", "bias"):
            rows = torch.cat([state[f"{prefix}.to_{letter}.{part}"] for letter in "qkv"])
            made[f"{name}.qkv.{part}"] = rows[..., None] if part == "weight" else rows
        made[f"{name}.proj_out.weight"] = state[f"{prefix}.to_out.0.weight"][..., None]
        made[f"{name}.proj_out.bias"] = state[f"{prefix}.to_out.0.bias"]
    for prefix, name in _changes(config):
        made |= dict(_plain(state, {f"{prefix}.conv": name}))
    if not config.flip_sin_to_cos:
        sines, cosines = made["time_embed.0.weight"].chunk(2, dim=1)
        made["time_embed.0.weight"] = torch.cat([cosines, sines], dim=1)
    return made


def _plain(state: Mapping[str, Tensor], names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for old, new in names.items():
        for part in ("weight", "bias"):
            if f"{old}.{part}" in state:
                yield f"{new}.{part}", state[f"{old}.{part}"]


def _places(config: DiffusersUNetConfig) -> Iterator[tuple[str, str, str, int]]:
    size = config.layers_per_block + 1
    for level, kind in enumerate(config.down_block_types):
        yield f"down_blocks.{level}", kind, "input_blocks", 1 + level * size
    for level, way_up in enumerate(config.up_block_types):
        yield f"up_blocks.{level}", way_up, "output_blocks", level * size


def _residuals(config: DiffusersUNetConfig) -> Iterator[tuple[str, str]]:
    """Each residual block's name, and ours."""
    for name, kind, way, first in _places(config):
        down = way == "input_blocks"
        count = config.layers_per_block + (not down)
        for index in range(count):
            yield f"{name}.resnets.{index}", f"{way}.{first + index}.0"
        if down:
            yield f"{name}.downsamplers.0", f"{way}.{first + count}.0"
        else:
            yield f"{name}.upsamplers.0", f"{way}.{first + count - 1}.{1 + kind.startswith('Attn')}"
    for index in range(2):
        yield f"mid_block.resnets.{index}", f"middle_block.{2 * index}"


def _attentions(config: DiffusersUNetConfig) -> Iterator[tuple[str, str]]:
    for name, kind, way, first in _places(config):
        if kind.startswith("Attn"):
            for index in range(config.layers_per_block + (way == "output_blocks")):
                yield f"{name}.attentions.{index}", f"{way}.{first + index}.1"
    yield "mid_block.attentions.0", "middle_block.1"


def _changes(config: DiffusersUNetConfig) -> Iterator[tuple[str, str]]:
    """Each convolution that resamples, and ours without its weight or bias."""
    for name, kind, way, first in _places(config):
        if way == "input_blocks":
            yield f"{name}.downsamplers.0", f"{way}.{first + config.layers_per_block}.0.op"
        else:
            block = first + config.layers_per_block
            yield f"{name}.upsamplers.0", f"{way}.{block}.{1 + kind.startswith('Attn')}.conv"
