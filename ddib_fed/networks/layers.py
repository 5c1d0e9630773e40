"""Layers that several networks share: time features, and layers with one time for all rows or one for each.

A time embedding has one row per distinct time; `rows` spreads it over the batch, or it broadcasts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal features of guided-diffusion: [cos(t w_k), sin(t w_k)], w_k = max_period^(-k / (dim // 2)).

    Args:
        t: Times (K,).
        dim: Number of features; an odd one gets a zero column.
        max_period: Longest period over 2 pi.

    Returns:
        (K, dim) float32, or float64 for float64 times.
    """
    dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
    half = dim // 2
    exponent = torch.arange(half, dtype=dtype, device=t.device) * (-math.log(max_period) / half)
    angle = t.to(dtype)[:, None] * torch.exp(exponent)[None]
    features = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
    return functional.pad(features, (0, dim % 2))


def spread(embedding: Tensor, rows: Tensor | None) -> Tensor:
    """`embedding` (K, E) as it is (to broadcast: K is 1 or the batch), or one row of it for each of `rows` (N,)."""
    return embedding if rows is None else embedding.index_select(0, rows)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation, over 32 groups as a rule: statistics in float32 at least, rounded once to the input's dtype.

    A group of one channel loses its mean over the picture, and nothing else carries it: networks of few channels need
    fewer groups to represent a picture's brightness and colour.
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, channels, ...)."""
        # Kernels for half precision accumulate in float32, without a copy of x in it. Not functional.group_norm:
        # that refuses one row of 32 channels, groups of one number, which are the bias.
        normal = torch.group_norm(
            x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps
        )
        return normal.to(x.dtype)
