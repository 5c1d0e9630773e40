"""Maps of a picture's channels from the units of one model to those of another, pixel by pixel, and their inverses.

rotation    v = R u, R orthogonal: the ODE commutes with it, so a model needs no training to work in the new basis
quadratic   v = W phi(u), phi(u) = (1, u_i, u_i u_j for i <= j): 3 numbers for grey, 30 for colour
curve       grey: v is linear in u between knots; two knots at one u are a jump. No value v is met twice
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from ddib_fed.models.units.folded_maps import solve_quadratic
from ddib_fed.models.units.tone_curve import ToneCurve

Floats = npt.NDArray[np.floating]
Row = tuple[FiniteFloat, ...]
ORTHOGONAL_WITHIN = 1e-5
"""Largest deviation of R R^T from the identity."""
LARGEST_COEFFICIENT = 100.0
MOST_KNOTS = 32


class ChannelMap(BaseModel):
    """One map; exactly one of its kinds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotation: tuple[Row, ...] | None = Field(default=None, max_length=3)
    quadratic: tuple[Row, ...] | None = Field(default=None, max_length=3)
    curve: tuple[Row, ...] | None = Field(default=None, max_length=MOST_KNOTS)

    @property
    def channels(self) -> int:
        return 1 if self.curve is not None else len(self.rotation or self.quadratic or ())

    @property
    def numbers(self) -> int:
        return int(self.matrix.size)

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        return np.array(self.rotation or self.quadratic or self.curve, dtype=np.float64)

    def apply(self, u: Floats) -> Floats:
        """V (N, C, ...) of u (N, C, ...), float64."""
        values = u.astype(np.float64)
        if self.curve is not None:
            return ToneCurve(self.matrix).apply(values)
        found: Floats = np.einsum(
            "ij,nj...->ni...", self.matrix, values if self.rotation else monomials(values)
        )
        return found

    def undo(self, v: Floats) -> Floats:
        """U (N, C, ...) of v (N, C, ...), float64: where the map has no such value, the u whose value is nearest."""
        values = v.astype(np.float64)
        if self.curve is not None:
            return ToneCurve(self.matrix).undo(values)
        if self.rotation is not None:
            found: Floats = np.einsum("ji,nj...->ni...", self.matrix, values)
            return found
        first = np.moveaxis(values, 1, 0)
        solved = solve_quadratic(self.matrix, first.reshape(self.channels, -1))
        return np.moveaxis(solved.reshape(first.shape), 0, 1)

    @model_validator(mode="after")
    def _one_kind(self) -> ChannelMap:
        kinds = (self.rotation, self.quadratic, self.curve)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("a channel map is exactly one of a rotation, quadratic coefficients and a curve")
        if self.curve is not None:
            if any(len(knot) != 2 for knot in self.curve):
                raise ValueError("each knot of a curve has 2 numbers")
            ToneCurve(self.matrix).check()
        else:
            self._check_matrix()
        if np.abs(self.matrix).max() > LARGEST_COEFFICIENT:
            raise ValueError(f"a coefficient is above {LARGEST_COEFFICIENT:g}")
        return self

    def _check_matrix(self) -> None:
        channels = self.channels
        if channels not in {1, 3}:
            raise ValueError(f"a channel map is for 1 or 3 channels, not {channels}")
        width = channels if self.rotation else 1 + channels + channels * (channels + 1) // 2
        if any(len(row) != width for row in self.rotation or self.quadratic or ()):
            raise ValueError(f"each row of a map of {channels} channels has {width} numbers")
        matrix = self.matrix
        if self.rotation and np.abs(matrix @ matrix.T - np.eye(channels)).max() > ORTHOGONAL_WITHIN:
            raise ValueError("the rotation is not orthogonal")


def monomials(u: Floats) -> Floats:
    upper = [u[:, i] * u[:, j] for i in range(u.shape[1]) for j in range(i, u.shape[1])]
    return np.stack([np.ones_like(u[:, 0]), *np.moveaxis(u, 1, 0), *upper], axis=1)
