"""What can be known of a map of colours without pairs: its distance to the target's colours, and the next optimum's.

    distance    sliced W2 between the source's mapped colours and the target's pseudo-colours, in the target's units
    margin      (distance of the next optimum - distance of the best) / distance without a map, of the rotations

Intervals are bootstrapped over the source's pictures; both clouds are drawn anew from them each time. Overlapping
pictures make them too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ddib_fed.bridge.calibration.aggregates import Floats, Numbers
from ddib_fed.bridge.calibration.fitting.rotation import Search, directions, quantiles
from ddib_fed.bridge.calibration.record import Effect, Figure
from ddib_fed.models.units.channel_map import ChannelMap

Rows = npt.NDArray[np.int64]
RESAMPLES = 100
COVERED = 0.95
COMPARED = 8000
"""Colours of each side in each resample."""


def colour_distance(source: Floats, target: Floats) -> float:
    """Sliced W2 of colours (N, C) and (M, C)."""
    return _apart(_along(source), _along(target))


def _along(colours: Floats) -> Numbers:
    found: Numbers = quantiles(colours @ directions(colours.shape[1]).T) * np.sqrt(colours.shape[1])
    return found


def _apart(source: Numbers, target: Numbers) -> float:
    return float(np.sqrt(np.square(source - target).mean()))


def effect_of(found: Search, mapped: ChannelMap, own: Numbers, target: Numbers, *, seed: int = 0) -> Effect:
    """The figures of a map with their intervals."""
    maps: tuple[Callable[[Numbers], Floats], ...] = (
        lambda u: u,
        mapped.apply,
        lambda u: u @ found.best.matrix.T,
        lambda u: u @ found.other.matrix.T,
    )
    clouds = [each(own.reshape(-1, own.shape[2])).reshape(own.shape) for each in maps]
    generator = np.random.default_rng(seed)
    drawn = np.array([_distances(clouds, target, *_rows(own, target, generator)) for _ in range(RESAMPLES)])
    value = _distances(clouds, target, _all(own), _all(target))
    return Effect(
        distance_before=_figure(value[0], drawn[:, 0]),
        distance=_figure(value[1], drawn[:, 1]),
        margin=_figure(_margin(value), _margin(drawn.T)),
    )


def _all(values: Numbers) -> Rows:
    return np.arange(len(values), dtype=np.int64)


def _rows(own: Numbers, target: Numbers, generator: np.random.Generator) -> tuple[Rows, Rows]:
    pictures = generator.integers(0, len(own), min(len(own), max(1, COMPARED // own.shape[1])))
    return pictures, generator.integers(0, len(target), min(len(target), COMPARED))


def _distances(clouds: Sequence[Floats], target: Numbers, rows: Rows, theirs: Rows) -> Numbers:
    other = _along(target[theirs])
    return np.array([_apart(_along(cloud[rows].reshape(-1, cloud.shape[2])), other) for cloud in clouds])


def _margin(distances: Numbers) -> Numbers:
    before, _, best, other = distances
    found: Numbers = (other - best) / np.maximum(before, 1e-12)
    return found


def _figure(value: float | Numbers, drawn: Numbers) -> Figure:
    low, high = np.quantile(drawn - drawn.mean(), [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Figure(value=float(value), low=float(value + low), high=float(value + high))
