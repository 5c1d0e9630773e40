"""Two clouds of colours to compare: the source's own, and pseudo-colours drawn from the target's noised aggregate.

cleaned   shares below what noise alone gives are 0, the rest is projected onto the simplex (post-processing: free)
drawn     colours uniform within a cell; each cell has its share of them to within one (systematic resampling)
own       colours of random pixels of each picture
"""

from __future__ import annotations

import numpy as np

from ddib_fed.bridge.calibration.aggregates import Aggregate, Cells, Floats, Numbers

KERNEL = (0.25, 0.5, 0.25)
"""Neighbours along each channel whose mean decides whether a cell holds anything."""
SMOOTHED_SIGMAS, SINGLE_SIGMAS = 2.0, 3.5
"""A cell is kept whose smoothed share, or whose own, is so many deviations of the noise above 0."""


def cleaned(aggregate: Aggregate) -> Numbers:
    return without_noise(aggregate.shares, aggregate.sigma)


def without_noise(shares: Numbers, sigma: float) -> Numbers:
    """Shares, one axis a channel, each with noise of deviation sigma, projected onto those that can be."""
    smooth, deviation = shares, sigma
    for axis in range(shares.ndim):
        smooth = _smoothed(smooth, axis)
        deviation *= float(np.linalg.norm(KERNEL))
    held = (smooth > SMOOTHED_SIGMAS * deviation) | (shares > SINGLE_SIGMAS * sigma)
    if not held.any():
        held = shares == shares.max()
    found = np.zeros_like(shares)
    found[held] = on_simplex(shares[held])
    return found


def on_simplex(values: Numbers) -> Numbers:
    """The nearest point to values (N,) with no negative entry and sum 1."""
    falling = np.sort(values)[::-1]
    excess = np.cumsum(falling) - 1.0
    counts = np.arange(1, len(values) + 1)
    last = np.nonzero(falling - excess / counts > 0)[0][-1]
    nearest: Numbers = np.maximum(values - excess[last] / counts[last], 0.0)
    return nearest


def drawn(shares: Numbers, cells: Cells, count: int, generator: np.random.Generator) -> Numbers:
    """Pseudo-colours (count, C) of cleaned shares, in the target's units, in random order."""
    ends = np.cumsum(shares.ravel() / shares.sum())
    # The last end is 1 up to rounding.
    flat = np.searchsorted(ends[:-1], (np.arange(count) + generator.uniform()) / count, side="right")
    places = np.stack(np.unravel_index(flat, cells.shape), axis=1)
    within = generator.uniform(-0.5, 0.5, places.shape) * (2 * cells.reach / cells.bins)
    found: Numbers = generator.permutation(cells.centres()[places] + within)
    return found


def own(units: Floats, each: int, generator: np.random.Generator) -> Numbers:
    """Colours (N, each, C) of random pixels of each of the pictures (N, C, H, W), drawn with replacement."""
    flat = units.reshape(*units.shape[:2], -1)
    taken = generator.integers(0, flat.shape[2], (len(units), 1, each))
    found: Numbers = np.moveaxis(np.take_along_axis(flat, taken, axis=2), 1, 2).astype(np.float64)
    return found


def _smoothed(shares: Numbers, axis: int) -> Numbers:
    padded = np.pad(shares, [(1, 1) if i == axis else (0, 0) for i in range(shares.ndim)])
    length = shares.shape[axis]
    parts = [weight * np.take(padded, range(i, i + length), axis) for i, weight in enumerate(KERNEL)]
    found: Numbers = np.sum(parts, axis=0)
    return found
