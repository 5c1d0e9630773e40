"""What a latent says of its sample without any model: how it correlates, and which of many samples it is of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch

Array = NDArray[np.floating]
TINY = 1e-9


def correlation_matrix(latents: Array, originals: Array) -> NDArray[np.float64]:
    """Correlation of the numbers of each latent with those of each sample, (N, M); 0 for one that is constant."""
    if latents.shape[1:] != originals.shape[1:]:
        raise ShapeMismatch(f"latents {latents.shape} beside samples {originals.shape}")
    flat = [each.reshape(len(each), -1).astype(np.float64) for each in (latents, originals)]
    flat = [each - each.mean(axis=1, keepdims=True) for each in flat]
    unit = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), TINY) for each in flat]
    found: NDArray[np.float64] = unit[0] @ unit[1].T
    return found


def first_by_correlation(found: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each latent correlates most with its own sample, of (N, N); a tie counts against it."""
    own = np.diagonal(found)
    hits: NDArray[np.bool_] = (found >= own[:, None]).sum(axis=1) == 1
    return hits
