"""The study whose slices flicker, or are read: the test slices of the packaged head, softened by one noise or many."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.directed import from_bytes
from ddib_fed import Model, datasets
from ddib_fed.metrics import Figures, Pictures

PAIRS = (("brain-t1", "brain-t2"), ("brain-t2", "brain-t1"))
STUDY, SLAB = 48, 12
"""Slices of the study, and of each of its slabs, in which neighbours are 1 mm apart."""
Array = NDArray[np.float32]


def slices_of(name: str, most: int = STUDY, part: str = "test") -> Pictures:
    """Return the first slices of a part of a head, in [-1, 1]."""
    return from_bytes(datasets.shipped_bytes(name, [part])[0][:most])


def softened(model: Model, x: Array, seed: int, *, shared: bool) -> Array:
    """Return states (N, *latent shape) in the units of the ODE at the noise level from which the model encodes.

    Noise is drawn for each of them, or `shared` by all of a study.
    """
    sigma, generator = model.manifest.soften_sigma, np.random.default_rng(seed)
    alpha = 1.0 / math.hypot(1.0, sigma)
    if shared:
        noise = np.repeat(generator.standard_normal((-(-len(x) // STUDY), *x.shape[1:])), STUDY, axis=0)
    else:
        noise = generator.standard_normal(x.shape)
    return np.asarray(alpha * x + alpha * sigma * noise[: len(x)], np.float32)


def pictures_of(model: Model, x: Array) -> Pictures:
    """Return states at the data end as pictures."""
    return np.asarray(model.out_of_units(x).clip(-1.0, 1.0), np.float32)


def neighbours(values: NDArray[Any], step: int = 0) -> NDArray[Any]:
    """Return what belongs to the first, or with a step to the second, of two neighbouring slices of a slab."""
    rows = np.array([row for row in range(len(values) - 1) if row % SLAB != SLAB - 1])
    return np.asarray(values[rows + step])


def changes(stack: Pictures) -> Figures:
    """Return the mean change from a coronal slice to the next: of slices of each two, of volumes of each."""
    if stack.ndim == 5:
        return np.asarray(np.abs(np.diff(stack, axis=3)).mean((1, 2, 3, 4)), np.float64)
    gaps = np.abs(neighbours(stack, 1) - neighbours(stack))
    return np.asarray(gaps.mean((1, 2, 3)), np.float64)


def correlations(z: Array) -> Figures:
    """Return the correlation of the latents of neighbouring slices."""
    flat = z.reshape(len(z), -1)
    pairs = zip(neighbours(flat), neighbours(flat, 1), strict=True)
    return np.array([np.corrcoef(one, other)[0, 1] for one, other in pairs])


def mean_of_studies(z: Array) -> Array:
    """Return for each slice the mean of its study."""
    return np.asarray(z.reshape(-1, STUDY, *z.shape[1:]).mean(1).repeat(STUDY, 0), np.float32)
