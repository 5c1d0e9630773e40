"""How near pictures are to the nearest of those that a model was trained on: near 0 where it draws them again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch

Floats = NDArray[np.float32]
COMPARED = 16
"""Side to which pictures are reduced before they are compared."""


def reduced(pictures: Floats) -> Floats:
    """Pictures (N, C, H, W) as rows of means of blocks of pixels, (N, D)."""
    count, channels, height, width = pictures.shape
    block = max(1, min(height, width) // COMPARED)
    cut = pictures[:, :, : height // block * block, : width // block * block]
    means = cut.reshape(count, channels, height // block, block, width // block, block).mean((3, 5))
    rows: Floats = means.reshape(count, -1).astype(np.float32)
    return rows


def nearest(some: Floats, others: Floats) -> NDArray[np.float64]:
    """Distance of each row (N, D) to the nearest of others (M, D), over its distance to their mean; (N,)."""
    if some.ndim != 2 or some.shape[1:] != others.shape[1:] or not len(some) or not len(others):
        raise ShapeMismatch(f"rows {some.shape} beside {others.shape}")
    mean = others.mean(0)
    known, squares = others - mean, np.square(others - mean).sum(1)
    found = np.empty(len(some))
    for number, row in enumerate(some - mean):
        norm = float(np.square(row).sum())
        apart = float((squares - 2 * (known @ row)).min()) + norm
        found[number] = np.sqrt(max(apart, 0.0) / max(norm, 1e-6))
    return found
