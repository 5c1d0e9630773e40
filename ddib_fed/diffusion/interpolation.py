"""Interpolation between two latents.

Between latents z_0 and z_1 with the angle theta between them, spherically (Shoemake 1985; for latents of DDIM Song et
al., arXiv 2010.02502, appendix D.3),

    z_w = sin((1 - w) theta) / sin(theta) z_0 + sin(w theta) / sin(theta) z_1

A point between two samples of N(0, I) is to look like one. On the straight line it does not: halfway between
two independent latents the standard deviation is only sqrt(1/2), and models answer with flat pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ddib_fed.errors import SettingsInvalid, ShapeMismatch

Way = Literal["slerp", "lerp"]
# Nearer to 0 or pi than this the formula divides by nothing, or the way round is not determined.
SMALLEST_ANGLE = 1e-4


def interpolate(start: Tensor, end: Tensor, weights: Sequence[float], *, way: Way = "slerp") -> Tensor:
    """Latents on the way from `start` to `end`.

    Args:
        start: One latent (*sample_shape), floating, not zero.
        end: Another, of the same shape, dtype and device.
        weights: Where on the way, each in [0, 1]; 0 gives `start`, 1 gives `end`.
        way: "slerp" on the sphere, "lerp" on the straight line.

    Returns:
        (number of weights, *sample_shape), dtype of `start`.

    Raises:
        ShapeMismatch: The two differ in shape.
        SettingsInvalid: A weight outside [0, 1], or a way that does not exist.
    """
    if start.shape != end.shape:
        raise ShapeMismatch(
            f"there is no way between latents of shapes {tuple(start.shape)} and {tuple(end.shape)}"
        )
    if way not in get_args(Way):
        raise SettingsInvalid(f"there is no way {way!r} between latents", hint="slerp or lerp")
    if not all(0.0 <= weight <= 1.0 for weight in weights):
        raise SettingsInvalid("weights between two latents are in [0, 1]")
    theta = angle(start, end)
    straight = way == "lerp" or not SMALLEST_ANGLE < theta < math.pi - SMALLEST_ANGLE
    shares = [(1.0 - w, w) if straight else _shares(w, theta) for w in weights]
    return torch.stack([a * start + b * end for a, b in shares])


def angle(start: Tensor, end: Tensor) -> float:
    """The angle between two latents seen as vectors, in [0, pi]; pi / 2 within a few percent for independent ones."""
    a, b = start.double().flatten(), end.double().flatten()
    # atan2 of the two halves keeps its digits where acos of a product near 1 loses them (Kahan).
    a, b = a / a.norm(), b / b.norm()
    return 2.0 * math.atan2(float((a - b).norm()), float((a + b).norm()))


def _shares(weight: float, theta: float) -> tuple[float, float]:
    return math.sin((1.0 - weight) * theta) / math.sin(theta), math.sin(weight * theta) / math.sin(theta)
