"""The order in which pages and sheets list pictures: worst first.

A picture is as bad as its worst figure. A good round trip does not compensate for lost structure, nor
a preserved outline for a failed round trip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FIGURES = ("cycle_psnr", "psnr", "ssim", "edge_correlation", "mutual_information")
"""For all of them, more is better."""


def worst_first(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of pictures: those marked as doubtful first, then by each one's worst rank in any of its figures."""
    if not rows:
        return []
    known = [key for key in FIGURES if all(row.get(key) is not None for row in rows)]
    # With equal figures equal ranks: the share of pictures that are worse.
    ranks = [_ranks(np.array([float(row[key]) for row in rows])) for key in known] or [
        np.zeros(len(rows), np.int64)
    ]
    worst, mean = np.min(ranks, axis=0), np.mean(ranks, axis=0)
    return sorted(range(len(rows)), key=lambda i: (not rows[i].get("doubtful"), worst[i], mean[i], i))


def _ranks(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    values = np.where(np.isnan(values), -np.inf, values)  # a missing measurement ranks as bad
    return np.searchsorted(np.sort(values), values)
