"""Layers that several networks share: time features, and layers with one time for all rows or one for each.

A time embedding has one row per distinct time; `rows` spreads it over the batch, or it broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
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
    input's dtype.
    """

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
