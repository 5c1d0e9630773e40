"""The UNet of diffusers' `UNet2DModel` (after Ho et al., arXiv 2006.11239): from (x_t, t, class) to eps, x0 or v.

It differs from `UNet` in what checkpoints of google/ddpm-* and others need: padding, epsilon, frequencies of the time,
and attention that may lie differently on the two ways. Diffusers' weights load under their own names, and
outputs equal the library's; a time is embedded once, however many rows share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ddib_fed.networks.diffusers_config import DiffusersUNetConfig
from ddib_fed.networks.layers import spread

MAX_PERIOD = 10000.0


class DiffusersUNet(nn.Module):
    """Predicts eps, x0 or v of pictures, as its weights were trained; arguments as of `DiffusersUNetConfig`.

    Attributes:
        config: Its arguments.
        checkpointing: Set it to recompute activations in the backward pass instead of keeping them.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        config = self.config = DiffusersUNetConfig(**arguments)
        self.checkpointing = False
        widths, count = config.block_out_channels, config.layers_per_block
        emb_channels = config.time_embedding_dim or 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], emb_channels)
        if config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, emb_channels)
        self.down_blocks = nn.ModuleList()
        channels, skips = widths[0], [widths[0]]
        for level, (kind, width) in enumerate(zip(config.down_block_types, widths, strict=True)):
            entering = [channels] + [width] * (count - 1)
            change = "" if level + 1 == len(widths) else "down"
            self.down_blocks.append(Level(config, emb_channels, kind, entering, width, change))
            channels = width
            skips += [width] * (count + bool(change))
        self.mid_block = Middle(config, emb_channels, channels) if config.mid_block else None
        self.up_blocks = nn.ModuleList()
        for level, (way_up, width) in enumerate(zip(config.up_block_types, widths[::-1], strict=True)):
            before = [channels] + [width] * count
            entering = [own + skips.pop() for own in before]
            change = "" if level + 1 == len(widths) else "up"
            self.up_blocks.append(Level(config, emb_channels, way_up, entering, width, change))
            channels = width
        self.conv_norm_out = Norm(config.norm_num_groups, channels, config.norm_eps)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)

    def forward(
        self, x: Tensor, times: Tensor, rows: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """The prediction at x.

        Args:
            x: Pictures (N, in_channels, H, W); H and W divide by 2^(levels - 1).
            times: (1,) or (N,), or (K,) with `rows`.
            rows: (N,) pointing into `times`.
            y: Classes (N,) int64, if and only if the network has classes.

        Returns:
            (N, out_channels, H, W).

        Raises:
            ValueError: Classes for a network without, or none for a network with.
        """
        config = self.config
        if (y is None) != (config.num_class_embeds is None):
            raise ValueError("classes are given if and only if the network has classes")
        if config.center_input_sample:
            x = 2.0 * x - 1.0
        emb = self.time_embedding(self._features(times))
        if y is not None:
            emb, rows = spread(emb, rows) + self.class_embedding(y), None
        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks:
            h, passed = self._through(block, h, emb, rows, [])
            skips += passed
        if self.mid_block is not None:
            h = self.mid_block(h, emb, rows)
        for block in self.up_blocks:
            count = config.layers_per_block + 1
            taken, skips = skips[-count:], skips[:-count]
            h, _ = self._through(block, h, emb, rows, taken)
        return cast("Tensor", self.conv_out(functional.silu(self.conv_norm_out(h))))

    def _features(self, times: Tensor) -> Tensor:
        """Sines and cosines of times (K,): (K, first width), in the dtype of the weights."""
        config, dim = self.config, self.config.block_out_channels[0]
        half = dim // 2
        wide = torch.promote_types(times.dtype, torch.float32)
        exponent = torch.arange(half, dtype=wide, device=times.device)
        angle = times.to(wide)[:, None] * torch.exp(
            exponent * (-math.log(MAX_PERIOD) / (half - config.freq_shift))
        )
        parts = [torch.sin(angle), torch.cos(angle)]
        features = torch.cat(parts[::-1] if config.flip_sin_to_cos else parts, dim=-1)
        return functional.pad(features, (0, dim % 2)).to(self.conv_in.weight.dtype)

    def _through(
        self, block: nn.Module, h: Tensor, emb: Tensor, rows: Tensor | None, skips: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        if self.checkpointing and torch.is_grad_enabled():
            passed = checkpoint(block, h, emb, rows, skips, use_reentrant=False)
            return cast("tuple[Tensor, list[Tensor]]", passed)
        return cast("tuple[Tensor, list[Tensor]]", block(h, emb, rows, skips))


class Norm(nn.GroupNorm):
    """Group normalisation: statistics in float32 at least, rounded once to the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, channels, ...)."""
        # Not functional.group_norm: that refuses groups of one number, which are the bias.
        return torch.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class TimeEmbedding(nn.Module):
    """From features of times to their embeddings: two linear layers.

    Args:
        channels: Number of features.
        emb_channels: Size of an embedding.
    """

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, emb_channels)
        self.linear_2 = nn.Linear(emb_channels, emb_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Embed features (K, channels): (K, emb_channels)."""
        return cast("Tensor", self.linear_2(functional.silu(self.linear_1(features))))


class Level(nn.Module):
    """One level of the way down or up: residual blocks, attention after each where there is any, a change of size.

    Args:
        config: Of the network.
        emb_channels: Size of a time's embedding.
        kind: One of the block types.
        entering: Channels that each residual block takes.
        width: Channels that each gives.
        change: "down", "up" or nothing.
    """

    def __init__(
        self,
        config: DiffusersUNetConfig,
        emb_channels: int,
        kind: str,
        entering: Sequence[int],
        width: int,
        change: str,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(config, emb_channels, own, width) for own in entering)
        self.attentions: nn.ModuleList | None = None
        if kind.startswith("Attn"):
            self.attentions = nn.ModuleList(
                SelfAttention(config, width, config.norm_num_groups) for _ in entering
            )
        if not change:
            return
        chosen = config.downsample_type if change == "down" else config.upsample_type
        residual = kind.startswith("Resnet") or (kind.startswith("Attn") and chosen == "resnet")
        layer: nn.Module
        if residual:
            layer = Residual(config, emb_channels, width, width, resample=change)
        elif change == "down":
            layer = Halved(width, config.downsample_padding)
        else:
            layer = Doubled(width)
        self.add_module(f"{change}samplers", nn.ModuleList([layer]))

    def forward(
        self, h: Tensor, emb: Tensor, rows: Tensor | None, skips: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Pass h (N, C, H, W) through, with `skips` joined from the last: the output, and what each layer gave."""
        skips, passed = list(skips), []
        attentions = self.attentions if self.attentions is not None else [None] * len(self.resnets)
        for resnet, attention in zip(self.resnets, attentions, strict=True):
            h = resnet(torch.cat([h, skips.pop()], dim=1) if skips else h, emb, rows)
            if attention is not None:
                h = attention(h)
            passed.append(h)
        for name in ("downsamplers", "upsamplers"):
            for layer in getattr(self, name, ()):
                h = layer(h, emb, rows) if isinstance(layer, Residual) else layer(h)
                passed.append(h)
        return h, passed


class Middle(nn.Module):
    """Two residual blocks with attention between them, or none.

    Args:
        config: Of the network.
        emb_channels: Size of a time's embedding.
        width: Channels.
    """

    def __init__(self, config: DiffusersUNetConfig, emb_channels: int, width: int) -> None:
        super().__init__()
        scale = config.mid_block_scale_factor
        self.resnets = nn.ModuleList(
            Residual(config, emb_channels, width, width, scale=scale) for _ in range(2)
        )
        self.attentions = nn.ModuleList()
        if config.add_attention:
            self.attentions.append(SelfAttention(config, width, config.middle_groups, scale=scale))

    def forward(self, h: Tensor, emb: Tensor, rows: Tensor | None) -> Tensor:
        """Pass h (N, C, H, W) through; emb (K, E), rows as in `spread`."""
        h = self.resnets[0](h, emb, rows)
        for attention in self.attentions:
            h = attention(h)
        return cast("Tensor", self.resnets[1](h, emb, rows))


class Residual(nn.Module):
    """(shortcut(x) + conv2(norm2(conv1(norm1(x)), time))) / scale; with `resample`, at double or half the size.

    Args:
        config: Of the network.
        emb_channels: Size of a time's embedding.
        channels: Of the input.
        width: Of the output.
        resample: "up", "down" or nothing.
        scale: What the sum is divided by.
    """

    def __init__(
        self,
        config: DiffusersUNetConfig,
        emb_channels: int,
        channels: int,
        width: int,
        *,
        resample: str = "",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.resample = resample
        self.scale = scale
        self.norm1 = Norm(config.norm_num_groups, channels, config.norm_eps)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_channels, 2 * width if self.scale_shift else width)
        self.norm2 = Norm(config.norm_num_groups, width, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, width, 1) if channels != width else None

    def forward(self, x: Tensor, emb: Tensor, rows: Tensor | None) -> Tensor:
        """Pass x (N, C, H, W) through the block; emb (K, E), rows as in `spread`."""
        h = functional.silu(self.norm1(x))
        if self.resample == "up":
            h, x = (functional.interpolate(part, scale_factor=2.0, mode="nearest") for part in (h, x))
        elif self.resample == "down":
            h, x = (functional.avg_pool2d(part, 2) for part in (h, x))
        h = self.conv1(h)
        told = spread(self.time_emb_proj(functional.silu(emb)), rows)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1.0 + scale)
        else:
            h = self.norm2(h + told)
        h = self.conv2(self.dropout(functional.silu(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return cast("Tensor", (x + h) / self.scale)


class SelfAttention(nn.Module):
    """(x + to_out(attention(norm(x)))) / scale over all places of a picture.

    Args:
        config: Of the network.
        channels: Of input and output.
        groups: Of the normalisation; None for none.
        scale: What the sum is divided by.
    """

    def __init__(
        self, config: DiffusersUNetConfig, channels: int, groups: int | None, *, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.heads = channels // (config.attention_head_dim or channels)
        self.scale = scale
        self.group_norm = Norm(groups, channels, config.norm_eps) if groups is not None else None
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Attend over x (N, C, H, W)."""
        count, channels, height, width = x.shape
        normal = x if self.group_norm is None else self.group_norm(x)
        tokens = normal.flatten(2).transpose(1, 2)
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        seen = functional.scaled_dot_product_attention(query, key, value)
        out = self.to_out[0](seen.transpose(1, 2).flatten(2))
        return cast("Tensor", (x + out.transpose(1, 2).reshape(count, channels, height, width)) / self.scale)


class Halved(nn.Module):
    """Halves height and width by a convolution of stride 2.

    Args:
        channels: Of input and output.
        padding: 1 around, or 0 for one row and column of zeros below and to the right.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, C, H, W) to (N, C, H / 2, W / 2)."""
        if self.conv.padding == (0, 0):
            x = functional.pad(x, (0, 1, 0, 1))
        return cast("Tensor", self.conv(x))


class Doubled(nn.Module):
    """Doubles height and width by repetition, then a convolution.

    Args:
        channels: Of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, C, H, W) to (N, C, 2 H, 2 W)."""
        return cast("Tensor", self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest")))
