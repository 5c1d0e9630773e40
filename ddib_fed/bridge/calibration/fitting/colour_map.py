"""Fits a smooth map of colours between two clouds without pairs, by optimal transport from a rotation that was found.

    coupling   P = argmin sum P_ij |R u_i - v_j|^2 - e H(P), by Sinkhorn (POT), both marginals uniform
    drawn to   t_i = sum_j P_ij v_j / sum_j P_ij
    map        W = argmin mean_i |t_i - W phi(u_i)|^2 + r |W - (0, R, 0)|^2, r the least with which it does not fold

The rotation says which hues belong together; transport alone would pair light with light.
"""

from __future__ import annotations

import numpy as np

from ddib_fed.bridge.calibration.aggregates import Numbers
from ddib_fed.extras import extra
from ddib_fed.models.units.channel_map import ChannelMap, monomials

COUPLED = 1500
"""Colours of each side that are coupled."""
ENTROPY = 0.3
"""e: in squared units of the target's model."""
RIDGES = 10.0 ** np.arange(-3, 3.01, 0.5)
LEAST_SLOPE, FOLDED = 0.2, 0.02
"""A map is taken where no larger share of colours has a direction with a smaller slope, or is folded."""


def transported(source: Numbers, target: Numbers, rotation: Numbers) -> Numbers:
    """What each of the source's colours (N, C) is drawn to among the target's (M, C): (N, C), in the target's units."""
    with extra("colours", "POT", "optimal transport of colours needs POT, which is not installed"):
        import ot
    shares = [np.full(len(side), 1 / len(side)) for side in (source, target)]
    cost = ot.dist(source @ rotation.T, target)
    # A row's scale is free, so that its nearest colour may cost nothing: no row underflows to 0.
    cost -= cost.min(axis=1, keepdims=True)
    plan = ot.sinkhorn(*shares, cost, ENTROPY, numItermax=200, stopThr=1e-5, warn=False)
    found: Numbers = plan @ target / plan.sum(axis=1, keepdims=True)
    return found


def fit_colour_map(source: Numbers, target: Numbers, rotation: Numbers) -> ChannelMap:
    coupled = source[:COUPLED]
    return unfolded_fit(coupled, transported(coupled, target[:COUPLED], rotation), rotation)


def unfolded_fit(u: Numbers, v: Numbers, rotation: Numbers) -> ChannelMap:
    """The quadratic map of u (N, 3) to v (N, 3), row by row, drawn to a rotation until it does not fold at the u."""
    rows = monomials(u)
    prior = np.concatenate([np.zeros((3, 1)), rotation, np.zeros((3, 6))], axis=1)
    gram, right = rows.T @ rows / len(rows), rows.T @ v / len(rows)
    way = np.sign(np.linalg.det(rotation))
    for ridge in RIDGES:
        weights = np.linalg.solve(gram + ridge * np.eye(10), right + ridge * prior.T).T
        if (way * least_slopes(weights, u) < LEAST_SLOPE).mean() <= FOLDED:
            break
    return ChannelMap(quadratic=tuple(tuple(float(f"{number:.6g}") for number in row) for row in weights))


def least_slopes(weights: Numbers, u: Numbers) -> Numbers:
    """The map's least singular value at each u (N, 3), with the sign of its determinant there: (N,)."""
    square = np.zeros((3, 3, 3))
    rows, columns = np.triu_indices(3)
    square[:, rows, columns] = weights[:, 4:]
    slopes = weights[:, 1:4] + np.einsum("cij,nj->nci", square + square.swapaxes(1, 2), u)
    found: Numbers = np.sign(np.linalg.det(slopes)) * np.linalg.svd(slopes, compute_uv=False)[:, -1]
    return found
