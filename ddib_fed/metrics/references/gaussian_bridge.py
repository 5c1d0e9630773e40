"""The bridge between two Gaussian models of pictures, in closed form: no network, no pairs.

For u ~ N(m_A, U D_A U^T) the probability-flow ODE leads from a picture to U D_A^(-1/2) U^T (u - m_A) and, on the other
side, from that to a picture, so that
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.errors import ShapeMismatch
from ddib_fed.metrics.pictures import Pictures, to_channels
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.networks.spectrum import LEAST_VARIANCE, Moments, cosines, pictures

FEWEST = 16
"""Pictures of a side from which on it has a spectrum."""
LEAST_DEVIATION = 1e-4
"""Of a channel in its units."""


@dataclass(frozen=True, slots=True)
class GaussianBridge:
    """A linear map of pictures, made by `fit`."""

    units: tuple[Normalisation, Normalisation]
    rotation: NDArray[np.float64] | None
    means: tuple[Tensor, Tensor] = field(repr=False)
    gain: Tensor = field(repr=False)

    @staticmethod
    def fit(
        source: Pictures,
        target: Pictures,
        *,
        units: tuple[Normalisation, Normalisation] | None = None,
        rotation: NDArray[np.float64] | None = None,
    ) -> GaussianBridge:
        """Fit to two unpaired sets of pictures (N, C, H, W) and (M, C', H, W) in [-1, 1]."""
        given = to_channels(source, target.shape[1])
        if given.shape[1:] != target.shape[1:] or min(len(given), len(target)) < FEWEST:
            raise ShapeMismatch(
                f"pictures {source.shape} and {target.shape}: a spectrum needs {FEWEST} of one size on each side"
            )
        both = units or (units_of(given), units_of(target))
        first = _moments(_turned(both[0].apply(given), rotation))
        second = _moments(both[1].apply(target))
        gain = (second[1].clamp_min(LEAST_VARIANCE) / first[1].clamp_min(LEAST_VARIANCE)).sqrt()
        return GaussianBridge(both, rotation, (first[0], second[0]), gain)

    def __call__(self, source: Pictures) -> Pictures:
        given = to_channels(source, self.gain.shape[0])
        u = torch.from_numpy(_turned(self.units[0].apply(given), self.rotation)).double()
        v = self.means[1] + pictures(self.gain * cosines(u - self.means[0]))
        return np.clip(self.units[1].undo(v.numpy()), -1.0, 1.0).astype(np.float32)


def units_of(stack: Pictures) -> Normalisation:
    """Each channel's mean and deviation over pictures (N, C, H, W) in [-1, 1], colour in opponent channels."""
    plain = Normalisation(colours="opponent" if stack.shape[1] == 3 else "rgb")
    values = plain.recoloured(stack.astype(np.float64))
    means, deviations = values.mean(axis=(0, 2, 3)), values.std(axis=(0, 2, 3))
    return plain.model_copy(
        update={"mean": tuple(means.tolist()), "std": tuple(np.maximum(deviations, LEAST_DEVIATION).tolist())}
    )


def _turned(u: NDArray[np.float32], rotation: NDArray[np.float64] | None) -> NDArray[np.float32]:
    return u if rotation is None else np.einsum("ij,njhw->nihw", rotation, u).astype(np.float32)


def _moments(u: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Mean and variance by frequency, each (C, H, W)."""
    if u.shape[2] != u.shape[3]:
        raise ShapeMismatch(f"a spectrum needs square pictures, not {u.shape[2:]}")
    moments = Moments(u.shape[1], u.shape[2])
    for start in range(0, len(u), 512):
        moments.add(torch.from_numpy(u[start : start + 512]))
    return moments.result()
