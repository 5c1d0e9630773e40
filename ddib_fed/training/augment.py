"""Changes of training pictures that another head or scanner brings: `augment = "scan"`.

In order, v in [0, 1]: a smooth displacement with a change of scale; v^g; a smooth factor (bias field); noise. The
strengths are those at which a model of one head reconstructs another one (docs/own-pictures.md).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ddib_fed.data.synthetic import generator_of

SCALE: Final = 0.08
"""Deviation of the logarithm of a change of size."""
BEND, KNOTS = 0.02, 5
"""Deviation of the displacement at knots, as a share of the side, and knots along a side."""
GAMMA, FACTOR, BIAS, NOISE = 0.25, 0.1, 0.15, 0.03
"""Deviations of log g, of the logarithm of a factor on all, and of the bias field's; the largest noise."""


def scan_like(pictures: NDArray[np.float32], seed: int, step: int, first: int) -> NDArray[np.float32]:
    """Pictures (N, C, H, W) in [-1, 1], changed; each by (seed, step, number) alone."""
    numbered = enumerate(pictures, first)
    return np.stack([_changed(each, generator_of(seed, step, number, stream=1)) for number, each in numbered])


def _changed(picture: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float32]:
    height, width = picture.shape[1:]
    scale = float(np.exp(SCALE * draw.standard_normal()))
    pull = _smooth(BEND * 2.0 * draw.standard_normal((2, KNOTS, KNOTS)), height, width)
    at = functional.affine_grid(torch.eye(2, 3)[None] * scale, [1, 1, height, width], align_corners=False)
    at = at + pull.permute(1, 2, 0)[None]
    levels = torch.from_numpy((picture[None] + 1.0) / 2.0).clamp(0.0, 1.0)
    moved = functional.grid_sample(levels, at, padding_mode="border", align_corners=False)[0]
    field = _smooth(BIAS * draw.standard_normal((1, 3, 3)), height, width)
    factor = torch.exp(field + FACTOR * draw.standard_normal())
    noise = NOISE * draw.random() * torch.from_numpy(draw.standard_normal(picture.shape).astype(np.float32))
    found = moved ** float(np.exp(GAMMA * draw.standard_normal())) * factor
    found = found / found.amax().clamp_min(1.0)  # nothing is saturated
    found = torch.where(moved > 0.0, found + noise, found)  # a scan that was masked stays masked
    return (found.clamp(0.0, 1.0) * 2.0 - 1.0).numpy()


def _smooth(knots: NDArray[np.float64], height: int, width: int) -> Tensor:
    """Fields (C, H, W) through knots (C, K, K)."""
    small = torch.from_numpy(knots.astype(np.float32))[None]
    return functional.interpolate(small, (height, width), mode="bicubic", align_corners=True)[0]
