"""Turns arrays of pictures and uniform random numbers into flipped and cropped arrays.

The rule: no randomness of its own; equal uniforms give equal pictures, so a resumed training goes on as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch


def random_flip(pictures: NDArray[Any], uniforms: NDArray[np.floating]) -> NDArray[Any]:
    """Mirrored left to right where the uniform is below a half.

    Args:
        pictures: (N, C, H, W), any type; not changed.
        uniforms: (N,) in [0, 1).

    Returns:
        (N, C, H, W) of the same type, a new array.

    Raises:
        ShapeMismatch: The numbers do not fit one another.
    """
    _check(pictures, uniforms, (len(pictures),))
    mirrored = (uniforms < 0.5)[:, None, None, None]
    return np.where(mirrored, pictures[..., ::-1], pictures)


def random_crop(
    pictures: NDArray[Any], size: tuple[int, int], uniforms: NDArray[np.floating]
) -> NDArray[Any]:
    """A window of each picture, its corner by two uniforms; every place is equally likely.

    Load the pictures larger than the model for this (the public code's crops show 80 to 100 % of the shorter side).

    Args:
        pictures: (N, C, H, W), any type.
        size: (height, width) of the window, at most (H, W).
        uniforms: (N, 2) in [0, 1): down and across.

    Returns:
        (N, C, height, width) of the same type, a new array.

    Raises:
        ShapeMismatch: The window is larger than the pictures, or the numbers do not fit one another.
    """
    _check(pictures, uniforms, (len(pictures), 2))
    free = np.array(pictures.shape[2:]) - np.array(size)
    if (free < 0).any() or min(size) < 1:
        raise ShapeMismatch(f"a window of {size} in pictures of {pictures.shape[2:]}")
    # The minimum is for uniforms that were rounded up to 1 in a narrower type.
    corners = np.minimum(np.floor(uniforms * (free + 1)).astype(np.int64), free)
    rows = corners[:, 0, None] + np.arange(size[0])
    columns = corners[:, 1, None] + np.arange(size[1])
    each = np.arange(len(pictures))[:, None, None]
    cut: NDArray[Any] = pictures.transpose(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].transpose(
        0, 3, 1, 2
    )
    return cut


def _check(pictures: NDArray[Any], uniforms: NDArray[np.floating], shape: tuple[int, ...]) -> None:
    if pictures.ndim != 4 or uniforms.shape != shape:
        raise ShapeMismatch(
            f"uniforms of {uniforms.shape} for pictures of {pictures.shape}: {shape} are needed"
        )
