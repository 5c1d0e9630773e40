"""Latents that no encoder makes, and sets of points as a user might choose them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]


def mixed(picture: Latents, other: NDArray[Any], share: float) -> Latents:
    """Return a share of pictures, and other latents as the rest, of unit deviation together."""
    return np.asarray(share * picture + math.sqrt(1 - share * share) * other, np.float32)


def permuted(x: Latents, rng: np.random.Generator) -> Latents:
    """Return pictures (N, C, H, W) with their pixels in another order."""
    flat = x.reshape(*x.shape[:2], -1)
    orders = [rng.permutation(flat.shape[2]) for _ in x]
    return np.stack([one[:, order] for one, order in zip(flat, orders, strict=True)]).reshape(x.shape)


def with_ranks_of(x: Latents, noise: Latents) -> Latents:
    """Return the values of noise in the order of those of each picture."""
    hidden = np.empty((len(x), x[0].size), np.float32)
    for one, drawn, into in zip(x, noise, hidden, strict=True):
        into[one.ravel().argsort()] = np.sort(drawn, axis=None)
    return hidden.reshape(x.shape)


def with_window(latents: Latents, x: Latents) -> Latents:
    """Return latents whose middle quarter is the picture, of unit deviation."""
    axes, side = (1, 2, 3), x.shape[-1] // 4
    standard = (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)
    window, middle = latents.copy(), (..., slice(side, 3 * side), slice(side, 3 * side))
    window[middle] = standard[middle]
    return window


def chosen(x: Latents, size: int, sets: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield rows of so many sets of each way: of all points, of one side of a plane, of the neighbours of a point."""
    for _ in range(sets):
        yield rng.choice(len(x), size, replace=False)
        side = x @ rng.standard_normal(x.shape[1])
        yield rng.choice(np.argsort(side)[len(x) // 2 :], size, replace=False)
        apart = np.square(x - x[rng.integers(len(x))]).sum(axis=1)
        yield rng.choice(np.argsort(apart)[: max(2 * size, len(x) // 8)], size, replace=False)
