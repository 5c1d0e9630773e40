"""Whitened pictures: coordinates in which the ODE of Gaussian pictures of the network's mean and spectrum stands still.

w = U^T (R^T x - alpha m) / sqrt(S),   S = alpha^2 D + sigma^2,   dphi/dlambda = -alpha sigma
dw/dlambda = -alpha sigma U^T (R^T v - v_lin) / sqrt(S),   v_lin = E[v | x] of such pictures
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddib_fed.diffusion.levels.learned import Scale
from ddib_fed.diffusion.wrapped.rotation import rotated
from ddib_fed.networks.spectrum import Spectrum, cosines, pictures


class SpectralFrame:
    def __init__(self, spectrum: Spectrum, rotation: Tensor | None = None) -> None:
        self._mean = cosines(spectrum.mean.float())
        self._variance = spectrum.log_variance.float().exp()
        self._rotation = rotation

    def enter(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        spread = self._spread(alpha, sigma, x.dtype)
        return (self._found(x) - alpha * self._mean.to(x.dtype)) * spread.rsqrt()

    def leave(self, state: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """The x of w."""
        spread = self._spread(alpha, sigma, state.dtype)
        x = pictures(state * spread.sqrt() + alpha * self._mean.to(state.dtype))
        return x if self._rotation is None else rotated(x, self._rotation.to(x.dtype))

    def slope(self, v: Tensor, state: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """dw/dlambda."""
        spread = self._spread(alpha, sigma, v.dtype)
        linear = alpha * sigma * (1.0 - self._variance.to(v.dtype)) / spread
        found = (self._found(v) + sigma * self._mean.to(v.dtype)) * spread.rsqrt()
        return (found - linear * state) * (-alpha * sigma)

    def _found(self, x: Tensor) -> Tensor:
        return cosines(x if self._rotation is None else rotated(x, self._rotation.to(x.dtype).T))

    def _spread(self, alpha: Scale, sigma: Scale, dtype: torch.dtype) -> Tensor:
        return alpha**2 * self._variance.to(dtype) + sigma**2
