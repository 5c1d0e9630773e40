"""A classifier of noisy pictures for guidance (Dhariwal, Nichol, arXiv 2105.05233, section 4): half a UNet.

p(y | x_t) = softmax(pool(middle(down(x_t, t))))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ddib_fed.networks.layers import (
    BlockSettings,
    Embedded,
    GroupNorm32,
    TimeEmbed,
    descend,
    middle,
    pointwise,
    zeroed,
)

HIDDEN = 2048
POOLS = ("adaptive", "attention", "spatial", "spatial_v2")


class AttentionPool(nn.Module):
    """Attention pooling (after CLIP): the mean position attends to all positions and itself."""

    def __init__(self, places: int, channels: int, head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, places + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, C, H, W) with H x W = places to (N, out_channels)."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.T.to(x.dtype)
        count, _, channels = tokens.shape
        # Only the mean is a query; the outputs of other positions are not used.
        query, key, value = (
            functional.linear(asked, weight, bias).reshape(count, -1, self.heads, channels // self.heads)
            for asked, weight, bias in zip(
                (tokens[:, :1], tokens, tokens),
                self.qkv_proj.weight.squeeze(-1).chunk(3),
                cast("Tensor", self.qkv_proj.bias).chunk(3),
                strict=True,
            )
        )
        seen = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        return pointwise(self.c_proj, seen.transpose(1, 2).reshape(count, 1, channels))[:, 0]


class NoisyClassifier(nn.Module):
    """Class logits of noisy pictures; arguments as of `UNet`, except these."""

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "adaptive",
    ) -> None:
        super().__init__()
        self.checkpointing = False
        self.by_block = pool.startswith("spatial")
        emb_channels = 4 * model_channels
        widths = [int(mult * model_channels) for mult in channel_mult]
        settings = BlockSettings(
            emb_channels,
            dropout,
            use_scale_shift_norm,
            num_head_channels,
            use_new_attention_order,
            conv_resample,
            resblock_updown,
        )
        self.time_embed = TimeEmbed(model_channels)
        way = descend(settings, in_channels, widths, num_res_blocks, attention_resolutions, num_heads)
        self.input_blocks = way.blocks
        self.middle_block = middle(settings, widths[-1], num_heads)
        last, features = widths[-1], sum(way.widths) + widths[-1]
        if pool == "attention":
            places = (image_size // way.factor) ** 2
            head = AttentionPool(places, last, num_head_channels, out_channels)
            self.out = nn.Sequential(GroupNorm32(last), nn.SiLU(), head)
        elif pool == "adaptive":
            leave = zeroed(nn.Conv2d(last, out_channels, 1))
            mean = nn.AdaptiveAvgPool2d((1, 1))
            self.out = nn.Sequential(GroupNorm32(last), nn.SiLU(), mean, leave, nn.Flatten())
        elif pool == "spatial":
            self.out = nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, out_channels))
        elif pool == "spatial_v2":
            self.out = nn.Sequential(
                nn.Linear(features, HIDDEN), GroupNorm32(HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, out_channels)
            )
        else:
            raise ValueError(f"there is no pool {pool!r}: {', '.join(POOLS)}")

    def forward(self, x: Tensor, times: Tensor, rows: Tensor | None = None) -> Tensor:
        embedded = Embedded(self.time_embed(times), rows)
        h = x
        means = []
        for block in (*self.input_blocks, self.middle_block):
            if self.checkpointing and torch.is_grad_enabled():
                h = cast("Tensor", checkpoint(block, h, embedded, use_reentrant=False))
            else:
                h = block(h, embedded)
            if self.by_block:
                means.append(h.mean(dim=(2, 3)))
        out: Tensor = self.out(torch.cat(means, dim=-1) if self.by_block else h)
        return out
