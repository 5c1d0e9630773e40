"""Attacks on a published mean of histograms: was this picture among those that were averaged, and which of many was it?

residual   r = published - what the attacker expects without the picture
score      <r, d_i> - |d_i|^2 / 2,   d_i = (h_i - h) / M
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch

Numbers = NDArray[np.floating]


def scores(
    residuals: Numbers, candidates: Numbers, population: Numbers, pictures: int
) -> NDArray[np.float64]:
    """The score of each candidate for each published histogram."""
    if not candidates.shape[-1] == population.shape[-1] == residuals.shape[-1]:
        raise ShapeMismatch(
            f"cells of {residuals.shape}, {candidates.shape} and {population.shape} do not agree"
        )
    steps = (candidates - population).astype(np.float64) / pictures
    found: NDArray[np.float64] = residuals @ steps.T - np.square(steps).sum(1) / 2
    return found


def area(inside: Numbers, outside: Numbers) -> float:
    """Area under the curve of hits over false alarms: how often a member's score is above a stranger's, ties half."""
    if 0 in (inside.size, outside.size):
        raise ShapeMismatch("an area needs scores of members and of strangers")
    ordered = np.sort(outside.ravel())
    below, upto = (np.searchsorted(ordered, inside.ravel(), side=side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / ordered.size)


def first(found: Numbers, own: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether the candidate `own` (R,) has the best score of all in each row of (R, N); a tie counts against it."""
    mine = np.take_along_axis(found, own[:, None], axis=1)
    hits: NDArray[np.bool_] = (found >= mine).sum(axis=1) == 1
    return hits
