"""The noise of each step of decoding with eta above 0: for points, a function of (seed, leg, step, point) alone.

The rule: what a point gets does not depend on how many there are, nor on which are computed together. Pictures have
theirs from `PictureSide.noise`, which follows the same rule.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ddib_fed.datasets.synthetic import normals, uniforms
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.solvers import Draw
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.manifest import Manifest

# Apart from the streams that training draws from, whose second number is a step.
_STREAM = 1 << 62
_STEPS = 1 << 32


def point_draw(seed: int, leg: int, first: int, shape: torch.Size) -> Draw:
    """Noise for the points `first` and on.

    Args:
        seed: Of all noise, 0 to 2^64 - 1.
        leg: Which of a run's decodings, from 0.
        first: Number of the first point.
        shape: (N, D) of the points that are decoded together.

    Returns:
        From a step's number to standard normal (N, D), float32.
    """
    count, dim = shape

    def draw(step: int) -> Tensor:
        columns = 2 * math.ceil(dim / 2)
        u = uniforms(seed, _STREAM + leg * _STEPS + step, count, columns, first=first)
        pairs = [normals(u[:, i : i + 2]) for i in range(0, columns, 2)]
        return torch.from_numpy(np.concatenate(pairs, axis=1)[:, :dim]).float()

    return draw


def check_ancestral(settings: SolverSettings, manifest: Manifest, *, guided: bool = False) -> None:
    """Return when decoding as DDPM, where it is asked for, would be what the public code computes.

    Raises:
        SettingsInvalid: The model learned its variance, or is guided by a classifier: that code then takes another
            step.
    """
    if not settings.ancestral:
        return
    why = "is guided by a classifier" if guided else ""
    if manifest.learns_variance:
        why = "learned its variance"
    if why:
        raise SettingsInvalid(
            f"{manifest.name} {why}, which the step of DDPM here leaves out",
            hint="use --eta 1 instead of --ddpm",
        )
