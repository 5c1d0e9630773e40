"""Noise that follows from a seed: of pictures by their content, of points by their row.

What a sample gets does not depend on how many there are, nor on which are computed together.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch

from ddib_fed.bridge.model import DomainModel
from ddib_fed.bridge.party import Array, RowDraw
from ddib_fed.datasets.synthetic import normals, uniforms

# Apart from the streams that training draws from, whose second number is a step.
_STREAM = 1 << 62
_STEPS = 1 << 32


def point_draw(seed: int, leg: int, dim: int) -> RowDraw:
    """Noise for points of `dim` coordinates."""

    def draw(step: int, rows: slice) -> Array:
        columns, count = 2 * math.ceil(dim / 2), rows.stop - rows.start
        u = uniforms(seed, _STREAM + leg * _STEPS + step, count, columns, first=rows.start)
        pairs = [normals(u[:, i : i + 2]) for i in range(0, columns, 2)]
        noise: Array = np.concatenate(pairs, axis=1)[:, :dim].astype(np.float32)
        return noise

    return draw


def seeded_noise(model: DomainModel, digest: bytes, purpose: str) -> Array:
    """Standard normal (1, *sample_shape), one seed for each digest, purpose and model."""
    mixed = hashlib.sha256(digest + f" {purpose} {model.bundle.digest}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed[:8], "little"))
    noise: Array = torch.randn((1, *model.sample_shape), generator=generator).numpy()
    return noise


def picture_draw(model: DomainModel, digest: bytes, purpose: str) -> RowDraw:
    return lambda step, rows: seeded_noise(model, digest, f"{purpose} step {step}")[rows]
