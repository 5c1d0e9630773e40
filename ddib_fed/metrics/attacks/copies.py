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
    """Distance of each row (N, D) to the nearest of others (M, D), over its distance to their mean; (N,).

    So a blurred picture, which is near to everything, does not pass for a copy.

    Raises:
        ShapeMismatch: Rows of different length, or none.
    """
    if some.shape[1:] != others.shape[1:] or not len(some) or not len(others):
        raise ShapeMismatch(f"rows {some.shape} beside {others.shape}")
    mean = others.mean(0)
    some, others = some - mean, others - mean
    norms = (some**2).sum(1)
    squares = norms[:, None] + (others**2).sum(1)[None] - 2 * some @ others.T
    found: NDArray[np.float64] = np.sqrt(np.clip(squares.min(1), 0, None) / np.maximum(norms, 1e-6)).astype(
        float
    )
    return found
