"""What benchmarks of speed measure and write: interleaved runs, and rows with a median, its spread and its bound."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import Run

Times = dict[str, list[float]]
Row = dict[str, Any]


def figure(what: str, values: Sequence[float], unit: str = "s") -> Row:
    """Return the row of one measured thing: median, smallest and largest value."""
    middle = statistics.median(values)
    return {
        "what": what, "unit": unit, "median": middle, "low": min(values), "high": max(values), "runs": len(values)
    }  # fmt: skip


def figures(times: Times, unit: str = "s") -> list[Row]:
    return [figure(what, values, unit) for what, values in times.items()]


def bound(
    run: Run,
    what: str,
    values: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    always: bool = False,
) -> Row:
    """Return the row of what must be; a smoke is too short for it to hold, unless it must `always`."""
    row = {**figure(what, values, ""), "at_most": at_most, "at_least": at_least}
    middle = row["median"]
    held = (at_most is None or middle <= at_most) and (at_least is None or middle >= at_least)
    return row if run.smoke and not always else {**row, "held": held}


def interleaved(candidates: Mapping[str, Callable[[], float | None]], repeats: int) -> Times:
    """Run all candidates by turns, `repeats` times, in alternating order; the seconds of each, or what it returns."""
    times: Times = {name: [] for name in candidates}
    for turn in range(repeats):
        names = list(candidates)
        for name in names if turn % 2 == 0 else reversed(names):
            started = time.perf_counter()
            value = candidates[name]()
            times[name].append(time.perf_counter() - started if value is None else value)
            sys.stderr.write(f"{name}: {times[name][-1]:.4g}\n")
    return times


def ratio(times: Times, candidate: str, baseline: str) -> list[float]:
    return [a / b for a, b in zip(times[candidate], times[baseline], strict=True)]


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the median of the slopes between all pairs of samples: single peaks and one step hardly move it."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))
