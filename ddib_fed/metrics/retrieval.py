"""Retrieval: how often the true partner is among a translation's nearest pictures.

A translation may be sharp, plausible and of another place; retrieval detects this. Each translation is a query,
all true pictures are candidates, and chance is k / N.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch
from ddib_fed.metrics.pictures import Pictures, check_pair

NEAREST = 5
_EPSILON = 1e-12


class Retrieval(TypedDict):
    """How often the partner was found."""

    found: float
    chance: float
    nearest: int
    count: int


def by_pixels(translated: Pictures, truth: Pictures, *, nearest: int = NEAREST) -> Retrieval:
    return share(hits_by_pixels(translated, truth, nearest=nearest), nearest)


def by_features(
    translated: NDArray[np.floating], truth: NDArray[np.floating], *, nearest: int = NEAREST
) -> Retrieval:
    return share(hits_by_features(translated, truth, nearest=nearest), nearest)


def hits_by_pixels(translated: Pictures, truth: Pictures, *, nearest: int = NEAREST) -> NDArray[np.bool_]:
    check_pair(translated, truth)
    return ranks(_flat(translated), _flat(truth)) < nearest


def hits_by_features(
    translated: NDArray[np.floating], truth: NDArray[np.floating], *, nearest: int = NEAREST
) -> NDArray[np.bool_]:
    """Of each picture whether `by_features` finds its partner, (N,); errors as there."""
    if translated.shape != truth.shape or translated.ndim != 2 or 0 in translated.shape:
        raise ShapeMismatch(
            f"features (N, D) of one shape are expected, not {translated.shape} and {truth.shape}"
        )
    centre, scale = truth.mean(axis=0), truth.std(axis=0) + _EPSILON
    return ranks((translated - centre) / scale, (truth - centre) / scale) < nearest


def share(hits: NDArray[np.bool_], nearest: int = NEAREST) -> Retrieval:
    """The share of hits (N,), N at least 1, beside that by chance."""
    return Retrieval(
        found=float(hits.mean()), chance=min(1.0, nearest / len(hits)), nearest=nearest, count=len(hits)
    )


def ranks(asked: NDArray[np.floating], answers: NDArray[np.floating]) -> NDArray[np.int64]:
    """Number of candidates (N, D) at least as near to query i (N, D) as candidate i, without itself; (N,)."""
    a, b = np.asarray(asked, np.float64), np.asarray(answers, np.float64)
    distances = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2.0 * (a @ b.T)
    own = np.diagonal(distances)[:, None]
    slack = _EPSILON * np.maximum(1.0, np.abs(own))
    closer: NDArray[np.int64] = (distances <= own + slack).sum(axis=1) - 1
    return closer


def _flat(pictures: Pictures) -> NDArray[np.float64]:
    wide = np.asarray(pictures, np.float64)
    flat: NDArray[np.float64] = (wide - wide.mean(axis=(2, 3), keepdims=True)).reshape(len(pictures), -1)
    return flat
