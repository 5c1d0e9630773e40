"""Which pixels of translations are wrong, and how well a mark finds bad pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.directed import Directed
from ddib_fed.datasets import WATER
from ddib_fed.metrics import Figures, Interval, Pictures, Resamples

Flags = NDArray[np.bool_]
LEAST = 1e-9


def mean(drawn: Resamples, values: Figures) -> dict[str, float]:
    """Return the mean, with its interval where there is more than one cluster."""
    interval = drawn.mean(values)
    return interval if drawn.counts.shape[1] > 1 else {"value": interval["value"]}


def hits(drawn: Resamples, marked: Flags, bad: Flags) -> dict[str, Any]:
    """Return how many pictures are marked, and precision and recall where there are any."""
    both, ratios = (marked & bad).astype(float), {"precision": marked, "recall": bad}

    def ratio(whole: Flags) -> Interval:
        return drawn.of(lambda weights: float(weights @ both / max(weights @ whole, LEAST)))

    return {
        "marked": int(marked.sum()),
        **{name: ratio(whole) for name, whole in ratios.items() if whole.any()},
    }


def area(drawn: Resamples, scores: Figures, bad: Flags, used: Flags | None = None) -> Interval | None:
    """Return the area under the curve of true against false positives; None with fewer than two bad pictures."""
    used = np.ones(len(bad), bool) if used is None else used
    if (bad & used).sum() < 2 or not (~bad & used).any():
        return None
    pairs = np.sign(scores[bad][:, None] - scores[~bad][None]) / 2 + 0.5

    def of(weights: Figures) -> float:
        one, other = (weights * used)[bad], (weights * used)[~bad]
        every = one.sum() * other.sum()
        return float(one @ pairs @ other / every) if every else float("nan")

    return drawn.of(of)


def wrong_of(directed: Directed) -> Callable[[Pictures], Flags]:
    """Return what says which pixels (N, H, W) of translations of all test pictures are wrong."""
    source, truth = directed.test
    units = directed.models[1].manifest.normalisation.plain
    if directed.target_name == "relief":
        sea = water(truth)
        return lambda pictures: water(pictures) != sea
    sea, pixels = water(source), np.moveaxis(units.apply(truth), 1, -1)  # from relief to satellite
    centres = np.stack([pixels[sea].mean(0), pixels[~sea].mean(0)])
    return lambda pictures: (nearest(units.apply(pictures), centres) == 0) != sea


def water(pictures: Pictures) -> Flags:
    """Return which pixels (N, H, W) of relief maps show water."""
    red, green, blue = np.moveaxis((pictures + 1.0) * 127.5, 1, 0)
    return np.asarray((blue - red >= WATER[0]) & (blue - green >= WATER[1]))


def nearest(values: Pictures, centres: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return which of the centres (K, C) is nearest to each pixel."""
    gaps = [np.square(values - centre[:, None, None]).sum(1) for centre in centres]
    return np.asarray(np.argmin(np.stack(gaps), axis=0))
