"""Maps of a picture's channels from the units of one model to those of another, pixel by pixel.

    rotation    v = R u, R orthogonal: the ODE commutes with it, so a model needs no training to work in the new basis
    quadratic   v = W phi(u), phi(u) = (1, u_i, u_i u_j for i <= j): 3 numbers for grey, 30 for colour

u are channels in the units of the source's model, v in those of the target's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Floats = npt.NDArray[np.floating]
Row = tuple[FiniteFloat, ...]
ORTHOGONAL_WITHIN = 1e-5
"""Largest deviation of R R^T from the identity."""
LARGEST_COEFFICIENT = 100.0


class ChannelMap(BaseModel):
    """One map; exactly one of its kinds.

    Attributes:
        rotation: R, (C, C); the determinant is 1 or -1.
        quadratic: W, (C, 1 + C + C (C + 1) / 2).

    Raises:
        ValidationError: Neither or both kinds, no square matrix of 1 or 3 channels, one that is not orthogonal, or
            coefficients of another shape or above 100.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotation: tuple[Row, ...] | None = Field(default=None, max_length=3)
    quadratic: tuple[Row, ...] | None = Field(default=None, max_length=3)

    @property
    def channels(self) -> int:
        """C."""
        return len(self.rotation or self.quadratic or ())

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """R or W."""
        return np.array(self.rotation or self.quadratic, dtype=np.float64)

    def apply(self, u: Floats) -> Floats:
        """V (N, C, ...) of u (N, C, ...), float64."""
        values = u.astype(np.float64)
        found: Floats = np.einsum(
            "ij,nj...->ni...", self.matrix, values if self.rotation else monomials(values)
        )
        return found

    @model_validator(mode="after")
    def _one_kind(self) -> ChannelMap:
        if (self.rotation is None) == (self.quadratic is None):
            raise ValueError("a channel map has either a rotation or quadratic coefficients")
        channels = self.channels
        if channels not in {1, 3}:
            raise ValueError(f"a channel map is for 1 or 3 channels, not {channels}")
        width = channels if self.rotation else 1 + channels + channels * (channels + 1) // 2
        if any(len(row) != width for row in self.rotation or self.quadratic or ()):
            raise ValueError(f"each row of a map of {channels} channels has {width} numbers")
        matrix = self.matrix
        if self.rotation and np.abs(matrix @ matrix.T - np.eye(channels)).max() > ORTHOGONAL_WITHIN:
            raise ValueError("the rotation is not orthogonal")
        if np.abs(matrix).max() > LARGEST_COEFFICIENT:
            raise ValueError(f"a coefficient is above {LARGEST_COEFFICIENT:g}")
        return self


def monomials(u: Floats) -> Floats:
    """(1, u_i, u_i u_j for i <= j) of u (N, C, ...): (N, 1 + C + C (C + 1) / 2, ...)."""
    upper = [u[:, i] * u[:, j] for i in range(u.shape[1]) for j in range(i, u.shape[1])]
    return np.stack([np.ones_like(u[:, 0]), *np.moveaxis(u, 1, 0), *upper], axis=1)
