"""How near pictures are to the nearest of those that a model was trained on: near 0 where it draws them again.

Rows that cannot be within some distance are ruled out by a lower bound on few numbers, from the triangle inequality:
|a - b|^2 >= |V(a - b)|^2 + (|r_a| - |r_b|)^2, with V the rows' leading principal axes and r the residual.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch

Floats = NDArray[np.float32]
Distances = NDArray[np.float64]
COMPARED = 16
"""Side to which pictures are reduced before they are compared."""
AXES = 31
"""Principal axes of the lower bound; the norm of the residual is one more number."""
SLACK = 1e-3
"""Share of a squared norm by which rounding may raise the lower bound."""
FITTED_TO = 4_096
"""Rows to which the axes are fitted; any axes give a valid bound."""


def reduced(pictures: Floats) -> Floats:
    """Pictures (N, C, H, W) as rows of means of blocks of pixels, (N, D)."""
    count, channels, height, width = pictures.shape
    block = _block(height, width)
    cut = pictures[:, :, : height // block * block, : width // block * block]
    means = cut.reshape(count, channels, height // block, block, width // block, block).mean((3, 5))
    rows: Floats = means.reshape(count, -1).astype(np.float32)
    return rows


def reduced_length(sample_shape: tuple[int, int, int]) -> int:
    """Length D of the rows of `reduced`, for pictures (C, H, W)."""
    channels, height, width = sample_shape
    block = _block(height, width)
    return channels * (height // block) * (width // block)


def _block(height: int, width: int) -> int:
    return max(1, min(height, width) // COMPARED)


class TrainingRows:
    """Reduced training pictures, searched for the nearest to others."""

    def __init__(self, rows: Floats) -> None:
        if rows.ndim != 2 or not len(rows):
            raise ShapeMismatch(f"rows {rows.shape} to compare with")
        self._mean = rows.mean(0)
        self._rows = rows - self._mean
        self._squares = np.square(self._rows).sum(1)
        self._axes = _axes(self._rows[:: max(1, len(rows) // FITTED_TO)])
        self._short = self._shortened(self._rows)
        self._short_squares = np.square(self._short).sum(1)

    def __len__(self) -> int:
        return len(self._rows)

    def nearest(self, rows: Floats, within: float = np.inf) -> Distances:
        """Distance of each row (N, D) to the nearest of these, over its distance to their mean; (N,)."""
        if rows.shape[1:] != self._rows.shape[1:] or not len(rows):
            raise ShapeMismatch(f"rows {rows.shape} beside {self._rows.shape}")
        centred = rows - self._mean
        norms = np.square(centred).sum(1)
        short = self._shortened(centred) if np.isfinite(within) else None
        found = np.full(len(rows), np.inf)
        for number, (row, norm) in enumerate(zip(centred, norms, strict=True)):
            which = slice(None) if short is None else self._possible(short[number], norm, within)
            squares = self._squares[which]
            if len(squares):
                apart = float((squares - 2 * (self._rows[which] @ row)).min() + norm)
                found[number] = np.sqrt(max(apart, 0.0) / max(float(norm), 1e-6))
        return found

    def _possible(self, short: Floats, norm: np.float32, within: float) -> NDArray[np.intp]:
        bounds = self._short_squares - 2 * (self._short @ short) + np.square(short).sum()
        return np.flatnonzero(bounds <= norm * np.float32(within**2 + SLACK))

    def _shortened(self, centred: Floats) -> Floats:
        along = centred @ self._axes
        left = np.square(centred).sum(1) - np.square(along).sum(1)
        return np.concatenate([along, np.sqrt(np.clip(left, 0, None))[:, None]], axis=1)


def _axes(rows: Floats) -> Floats:
    found = np.random.default_rng(0).standard_normal((rows.shape[1], min(AXES, rows.shape[1])))
    for _ in range(3):
        found = np.linalg.qr(rows.T @ (rows @ found.astype(np.float32)).astype(np.float32))[0]
    axes: Floats = found.astype(np.float32)
    return axes


def nearest(some: Floats, others: Floats) -> Distances:
    return TrainingRows(others).nearest(some)
