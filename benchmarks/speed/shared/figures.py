"""What benchmarks of speed measure and write: interleaved runs, and rows with a median, its spread and its bound."""

from __future__ import annotations

import math
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
Candidates = Mapping[str, Callable[[], float | None]]


def figure(what: str, values: Sequence[float], unit: str = "s") -> Row:
    """Return the row of one measured thing: median, smallest and largest value."""
    spread = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {"what": what, "unit": unit, **spread, "runs": len(values)}


def figures(times: Times, unit: str = "s") -> list[Row]:
    return [figure(what, values, unit) for what, values in times.items()]


def bound(run: Run, what: str, values: Sequence[float], *, always: bool = False, **limits: float) -> Row:
    """Return the row of what must be `at_most`, or `at_least`; in a smoke that decides only if it is so `always`."""
    row = {**figure(what, values, ""), **limits}
    held = limits.get("at_least", -math.inf) <= row["median"] <= limits.get("at_most", math.inf)
    return row if run.smoke and not always else {**row, "held": held}


def interleaved(candidates: Candidates, repeats: int) -> Times:
    """Run all candidates by turns, in alternating order; return the seconds of each, or what it returns."""
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


def compared(
    run: Run, what: str, candidates: Candidates, *, repeats: int = 5, unit: str = "s", **limits: float
) -> list[Row]:
    """Run two by turns; return the figures of both, and the bound of the first over the second."""
    times = interleaved(candidates, run.pick(smoke=1, long=repeats))
    return [*figures(times, unit), bound(run, what, ratio(times, *candidates), always=False, **limits)]


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the median of the slopes between all pairs of samples: single peaks and one step hardly move it."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))
