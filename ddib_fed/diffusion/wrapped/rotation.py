"""Another basis of the channels: pictures, latents and a denoiser, rotated.

    x' = R x,    v'(x', level) = R v(R^T x', level),    R orthogonal

The ODE of v' is that of v in another basis: paths, round trips and the prior N(0, I) are the same, rotated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import Condition, Denoiser, Places
from ddib_fed.diffusion.wrapped.guidance import Wrapped


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """R x for x (N, C, ...) and R (C, C) of its dtype and device."""
    return torch.einsum("ij,nj...->ni...", rotation, x)


class Rotated(Wrapped):
    """A denoiser that works in the rotated basis.

    Args:
        denoiser: In the model's own basis, with whatever guides or clips it.
        rotation: R, (C, C), orthogonal.
    """

    def __init__(self, denoiser: Denoiser, rotation: Tensor) -> None:
        super().__init__(denoiser)
        self.rotation = rotation

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        """As `Denoiser.at`, x and v in the rotated basis."""
        rotation = self.rotation.to(x.dtype)
        return rotated(self.inner.at(rotated(x, rotation.T), places, cond), rotation)
