"""The inverse of a quadratic map of channels, which is unique only where the map does not fold.

u_0 = B^-1 (v - a)                        a + B u: the linear regression of v on u ~ N(0, I)
u  <- u - (J^T J + l I)^-1 J^T (W phi(u) - v)      Levenberg's damped Newton step, kept where it is nearer to v
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
FARTHEST = 12.0
"""No channel of a solution is farther from zero, in deviations."""
STEPS = 24
CLOSE = 1e-10
"""A squared residual at which a solution is left alone."""
MOST_DAMPING = 1e4
RIDGE = 1e-2
"""Of the regression's inverse: directions that the regression flattens start at the mean."""


def solve_quadratic(weights: Floats, v: Floats) -> Floats:
    """U (C, N) with W phi(u) nearest to v (C, N), by descent."""
    parts = constant, linear, square = _split(weights)
    u = _start(constant, linear, square, v)
    residual = _value(*parts, u) - v
    damping = np.full(v.shape[1], 1e-3)
    active = np.arange(v.shape[1])
    for _ in range(STEPS):
        active = active[((residual[:, active] ** 2).sum(0) > CLOSE) & (damping[active] < MOST_DAMPING)]
        if not len(active):
            break
        here, left = u[:, active], residual[:, active]
        there = np.clip(here - _step(linear, square, here, left, damping[active]), -FARTHEST, FARTHEST)
        found = _value(*parts, there) - v[:, active]
        better = (found**2).sum(0) < (left**2).sum(0)
        u[:, active[better]], residual[:, active[better]] = there[:, better], found[:, better]
        damping[active] *= np.where(better, 0.2, 8.0)
    return u


def _step(linear: Floats, square: Floats, u: Floats, left: Floats, damping: Floats) -> Floats:
    """(J^T J + l I)^-1 J^T r of u and r (C, N) and l (N,), J the slopes at u: (C, N)."""
    slopes = linear[:, :, None] + 2 * np.tensordot(square, u, 1)
    gradient = (slopes * left[:, None]).sum(0)
    if len(u) == 1:
        found: Floats = gradient / ((slopes**2).sum(0) + damping)
        return found
    # By cofactors, which for many systems of three are several times faster than LAPACK.
    a, b, c = ((slopes[:, i] ** 2).sum(0) + damping for i in range(3))
    d, e, f = ((slopes[:, i] * slopes[:, j]).sum(0) for i, j in ((0, 1), (0, 2), (1, 2)))
    ad, bd, cd, dd, ed, fd = (
        b * c - f * f,
        a * c - e * e,
        a * b - d * d,
        e * f - c * d,
        d * f - b * e,
        d * e - a * f,
    )
    x, y, z = gradient
    rows = (ad * x + dd * y + ed * z, dd * x + bd * y + fd * z, ed * x + fd * y + cd * z)
    solved: Floats = np.stack(rows) / (a * ad + d * dd + e * ed)
    return solved


def _split(weights: Floats) -> tuple[Floats, Floats, Floats]:
    channels = len(weights)
    square = np.zeros((channels, channels, channels))
    rows, columns = np.triu_indices(channels)
    square[:, rows, columns] = weights[:, 1 + channels :]
    return weights[:, 0], weights[:, 1 : 1 + channels], (square + square.swapaxes(1, 2)) / 2


def _start(constant: Floats, linear: Floats, square: Floats, v: Floats) -> Floats:
    """B^T (B B^T + ridge)^-1 (v - E[W phi]) for u ~ N(0, I), whose regression of v on u has the slopes B."""
    centred = v - (constant + np.trace(square, axis1=1, axis2=2))[:, None]
    products = linear @ linear.T
    ridge = RIDGE * np.trace(products) / len(linear) + 1e-12
    inverse = linear.T @ np.linalg.inv(products + ridge * np.eye(len(linear)))
    found: Floats = np.clip(inverse @ centred, -FARTHEST, FARTHEST)
    return found


def _value(constant: Floats, linear: Floats, square: Floats, u: Floats) -> Floats:
    found: Floats = constant[:, None] + linear @ u + (np.tensordot(square, u, 1) * u).sum(1)
    return found
