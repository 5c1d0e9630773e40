"""Building blocks of the UNet and of the noisy classifier: residual blocks, attention, resampling.

From Dhariwal, Nichol, Diffusion Models Beat GANs (arXiv 2105.05233), section 3 and appendix A. Names and
shapes in the state dict are those of the public checkpoints; the computation is our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

T = TypeVar("T")
Kept = dict[Hashable, Any]
"""What a network with fixed weights derived from one level (or pair of levels) alone, by who made it."""


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal features of guided-diffusion: [cos(t w_k), sin(t w_k)], w_k = max_period^(-k / (dim // 2))."""
    dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
    half = dim // 2
    exponent = torch.arange(half, dtype=dtype, device=t.device) * (-math.log(max_period) / half)
    angle = t.to(dtype)[:, None] * torch.exp(exponent)[None]
    features = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
    return functional.pad(features, (0, dim % 2))


def spread(embedding: Tensor, rows: Tensor | None) -> Tensor:
    return embedding if rows is None else embedding.index_select(0, rows)


def remembered(kept: Kept | None, key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gives; kept under `key`, and made once, where there is something to keep it in."""
    if kept is None:
        return make()
    if key not in kept:
        kept[key] = make()
    return cast("T", kept[key])


class Embedded:
    """The embedding of the levels of a batch on its way through a network's blocks."""

    __slots__ = ("emb", "kept", "rows")

    def __init__(self, emb: Tensor, rows: Tensor | None = None, kept: Kept | None = None) -> None:
        self.emb = emb
        self.rows = rows
        self.kept = kept

    @property
    def shared(self) -> bool:
        return self.rows is None and len(self.emb) == 1

    def through(self, layer: nn.Module) -> Tensor:
        return cast("Tensor", remembered(self.kept, layer, lambda: layer(self.emb)))


class GroupNorm32(nn.GroupNorm):
    """Group normalisation, over 32 groups as a rule: statistics in float32 at least, rounded once to the
    input's dtype."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, self.weight, self.bias)

    def scaled(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalise x (N, channels, ...) with other weights and biases than its own, (channels,) or (N, channels)."""
        # Kernels for half precision accumulate in float32, on a GPU without a copy of x in it; those of the CPU take
        # 2 to 3 times as long as a copy and the kernel of float32. Not functional.group_norm: that refuses one row of
        # 32 channels, groups of one number, which are the bias.
        dtype = torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype
        wide, groups = x.to(dtype), self.num_groups
        if weight.ndim == 2:
            # The rows as channels of one row: the kernel then scales and shifts each by its own, in the same pass.
            wide, groups = wide.reshape(1, -1, *x.shape[2:]), groups * len(x)
        normal = torch.group_norm(
            wide, groups, weight.to(dtype).reshape(-1), bias.to(dtype).reshape(-1), self.eps
        )
        return normal.to(x.dtype).view(x.shape)

    def modulated(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and biases with which `scaled` computes norm(x) (1 + scale) + shift; all (K, channels)."""
        wide = torch.promote_types(scale.dtype, torch.float32)
        gain = 1.0 + scale.to(wide)
        return self.weight * gain, self.bias * gain + shift


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    # torch knows no autocast, not even none, for tensors without values.
    lowered = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if lowered else nullcontext()


def activated(x: Tensor) -> Tensor:
    return functional.silu(x, inplace=not torch.is_grad_enabled())


def joined(x: Tensor, branch: Tensor) -> Tensor:
    return x + branch if torch.is_grad_enabled() else branch.add_(x)


Layer = TypeVar("Layer", nn.Linear, nn.Conv1d, nn.Conv2d)
_FEW = 64


@dataclass(frozen=True, slots=True)
class BlockSettings:
    emb_channels: int
    dropout: float
    scale_shift: bool
    head_channels: int
    new_order: bool
    conv_resample: bool
    resblock_updown: bool
    groups: int = 32

    def residual(self, channels: int, out_channels: int | None = None, *, resample: str = "") -> ResBlock:
        """A residual block of these settings; arguments as of `ResBlock`."""
        return ResBlock(
            channels,
            self.emb_channels,
            self.dropout,
            out_channels,
            scale_shift=self.scale_shift,
            resample=resample,
            groups=self.groups,
        )

    def attention(self, channels: int, heads: int) -> AttentionBlock:
        """An attention block of these settings with `heads` heads, unless their width is given."""
        if self.head_channels != -1:
            heads = channels // self.head_channels
        return AttentionBlock(channels, heads, new_order=self.new_order, groups=self.groups)

    def down(self, channels: int) -> nn.Module:
        """The layer that halves height and width."""
        if self.resblock_updown:
            return self.residual(channels, resample="down")
        return Downsample(channels, learned=self.conv_resample)

    def up(self, channels: int) -> nn.Module:
        """The layer that doubles height and width."""
        if self.resblock_updown:
            return self.residual(channels, resample="up")
        return Upsample(channels, learned=self.conv_resample)


@dataclass(slots=True)
class Descent:
    """The down path, from pictures to the coarsest features."""

    blocks: nn.ModuleList
    widths: list[int] = field(default_factory=list)
    factor: int = 1


def descend(
    settings: BlockSettings,
    in_channels: int,
    widths: Sequence[int],
    num_res_blocks: int,
    attention: Sequence[int],
    heads: int,
) -> Descent:
    channels = widths[0]
    way = Descent(nn.ModuleList([Timed(nn.Conv2d(in_channels, channels, 3, padding=1))]), [channels])
    for level, width in enumerate(widths):
        for _ in range(num_res_blocks):
            layers: list[nn.Module] = [settings.residual(channels, width)]
            channels = width
            if way.factor in attention:
                layers.append(settings.attention(channels, heads))
            way.blocks.append(Timed(*layers))
            way.widths.append(channels)
        if level < len(widths) - 1:
            way.blocks.append(Timed(settings.down(channels)))
            way.widths.append(channels)
            way.factor *= 2
    return way


def middle(settings: BlockSettings, channels: int, heads: int) -> Timed:
    return Timed(
        settings.residual(channels), settings.attention(channels, heads), settings.residual(channels)
    )


class TimeEmbed(nn.Sequential):
    """From times to their embeddings: two linear layers on `timestep_embedding`.

    A flow map adds that of a `span`: of the time asked to, and of the difference; 0 at first.
    """

    def __init__(self, channels: int, *, span: bool = False) -> None:
        first = nn.Linear((1 + span) * channels, 4 * channels)
        last = nn.Linear(4 * channels, 4 * channels)
        super().__init__(first, nn.SiLU(), zeroed(last) if span else last)
        self.channels = channels

    def forward(self, times: Tensor, to: Tensor | None = None) -> Tensor:
        """Embed times (K,), or spans from them to `to` (K,): (K, 4 channels)."""
        told = (times,) if to is None else (to, to - times)
        emb = torch.cat([timestep_embedding(part, self.channels) for part in told], dim=1)
        emb = emb.to(next(self.parameters()).dtype)
        for layer in self:
            emb = layer(emb)
        return emb


class Timed(nn.Sequential):
    """Layers in sequence; those that depend on the time receive its embedding."""

    def forward(self, x: Tensor, embedded: Embedded) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedded) if isinstance(layer, ResBlock) else layer(x)
        return x


class Upsample(nn.Module):
    """Doubles height and width by repetition, with a convolution after it when `learned`."""

    def __init__(self, channels: int, *, learned: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Downsample(nn.Module):
    """Halves height and width by a convolution of stride 2 when `learned`, else by the mean of four."""

    def __init__(self, channels: int, *, learned: bool = False) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class ResBlock(nn.Module):
    """skip(x) + out_layers(in_layers(x), time); with `resample`, both branches double or halve height and width."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        *,
        scale_shift: bool = False,
        resample: str = "",
        groups: int = 32,
    ) -> None:
        super().__init__()
        width = out_channels or channels
        self.scale_shift = scale_shift
        self.resamples = bool(resample)
        self.in_layers = nn.Sequential(
            GroupNorm32(channels, groups), nn.SiLU(), nn.Conv2d(channels, width, 3, padding=1)
        )
        self.h_upd, self.x_upd = _resampler(channels, resample), _resampler(channels, resample)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * width if scale_shift else width)
        )
        last = zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.out_layers = nn.Sequential(GroupNorm32(width, groups), nn.SiLU(), nn.Dropout(dropout), last)
        self.skip_connection = nn.Identity() if width == channels else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, embedded: Embedded) -> Tensor:
        """Pass x (N, C, H, W) through the block, at the embedded levels."""
        norm, _, enter = self.in_layers
        h = activated(norm(x))
        if self.resamples:
            h, x = self.h_upd(h), self.x_upd(x)
        h = self._modulated(enter(h), embedded)
        _, _, *rest = self.out_layers
        h = activated(h)
        for layer in rest:
            h = layer(h)
        return joined(self.skip_connection(x), h)

    def _modulated(self, h: Tensor, embedded: Embedded) -> Tensor:
        """The second normalisation, with the time before or after it; h (N, C, H, W) is this block's own."""
        norm = cast("GroupNorm32", self.out_layers[0])
        factors = embedded.through(self.emb_layers)
        if not self.scale_shift:
            return cast("Tensor", norm(joined(spread(factors, embedded.rows)[:, :, None, None], h)))
        # Scale and shift go into the normalisation's weights instead of over all pixels.
        made = remembered(embedded.kept, norm, lambda: norm.modulated(*factors.chunk(2, dim=1)))
        weight, bias = (part[0] if embedded.shared else spread(part, embedded.rows) for part in made)
        return norm.scaled(h, weight, bias)


def _resampler(channels: int, resample: str) -> nn.Module:
    if not resample:
        return nn.Identity()
    return Upsample(channels) if resample == "up" else Downsample(channels)


class AttentionBlock(nn.Module):
    """x + proj_out(attention(qkv(norm(x)))) over all positions of a picture."""

    def __init__(self, channels: int, heads: int, *, new_order: bool = False, groups: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = GroupNorm32(channels, groups)
        # Convolutions of length 1 in name and shape, as in checkpoints; computed as linear layers.
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        # (N, T, C): a view where the memory is channels-last.
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = pointwise(self.qkv, tokens)
        if self.new_order:
            qkv = qkv.reshape(count, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        else:
            qkv = qkv.reshape(count, -1, self.heads, 3, channels // self.heads).permute(3, 0, 2, 1, 4)
        query, key, value = qkv.unbind(0)
        seen = attention(query, key, value)
        out = pointwise(self.proj_out, seen.transpose(1, 2).reshape(count, -1, channels))
        return x + out.transpose(1, 2).reshape(count, channels, height, width)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(D)) value, each (N, heads, T, D)."""
    few = query.shape[2] <= _FEW and query.device.type == "cpu"
    if not (few and query.requires_grad and torch.is_grad_enabled()):
        return functional.scaled_dot_product_attention(query, key, value)
    products = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    return torch.matmul(torch.softmax(products, dim=-1).to(value.dtype), value)


def pointwise(layer: nn.Conv1d, tokens: Tensor) -> Tensor:
    return functional.linear(tokens, layer.weight.squeeze(-1), layer.bias)


def zeroed(layer: Layer) -> Layer:
    """`layer` with weights and bias 0: a residual branch that starts as zero."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
