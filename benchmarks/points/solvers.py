"""Solvers side by side on three pairs of domains: cost, cycle error, error against a converged reference.

    python -m benchmarks.points.solvers      80 minutes of one core

10,000 points there and back, one thread, float32. The reference is the Runge-Kutta rule of order 4 with states in
float64, 1,600 evaluations a leg, held against 800.
"""

from __future__ import annotations

import math
import sys
import time
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import Rows, Run, command
from ddib_fed import Model, Settings, datasets
from ddib_fed.metrics import cycle_error

PAIRS = (
    ("moons", "checkerboards"),
    ("concentric-rings", "parallel-squares"),
    ("concentric-squares", "parallel-rings"),
)
UNIPC = tuple(Settings(order=3, evaluations=evaluations) for evaluations in (24, 48, 100))
PUBLIC = Settings("ddim", 1, 4_000, "integer")
"""The public code's number of steps on its grid."""
POINTS, INTERVALS = 10_000, (400, 200)
Points = NDArray[Any]


def measure(run: Run) -> Rows:
    """Measure each solver on each pair."""
    count, intervals = run.pick(smoke=(200, (20, 10)), long=(POINTS, INTERVALS))
    for names in PAIRS[: run.pick(smoke=1, long=len(PAIRS))]:
        source, target = (Model.open(name, threads=1) for name in names)
        x = datasets.sample(names[0], count, 0)
        fine, coarse = (reference(source, target, x, number) for number in intervals)
        gap = cycle_error(fine[1], coarse[1])
        for settings in run.pick(smoke=UNIPC[:1], long=(PUBLIC, *UNIPC)):
            began = time.process_time()
            latent = source.integrate(x, settings)
            translated = target.integrate(latent, settings, back=True)
            back = source.integrate(target.integrate(translated, settings), settings, back=True)
            yield {
                "source": names[0],
                "target": names[1],
                "solver": settings.solver,
                "grid": settings.grid,
                "evaluations": settings.evaluations,
                "points": count,
                "cpu_seconds": round(time.process_time() - began, 2),
                "cycle": cycle_error(x, back),
                "latent_error": cycle_error(fine[0], latent),
                "target_error": cycle_error(fine[1], translated),
                "reference_gap": gap,
            }


def reference(source: Model, target: Model, x: Points, intervals: int) -> tuple[Points, Points]:
    """Return latents and translations of points by so many intervals of the Runge-Kutta rule."""
    latent = runge_kutta(source, x, intervals, back=False)
    return latent, runge_kutta(target, latent, intervals, back=True)


def runge_kutta(model: Model, x: Points, intervals: int, *, back: bool) -> Points:
    """Follow dx / dphi = v of one leg, where alpha is cos phi and sigma sin phi, four evaluations an interval."""
    schedule, x = model.bundle.schedule, x.astype(np.float64)
    lams = np.linspace(schedule.lambda_max, schedule.lambda_min, intervals + 1)
    angles = [math.atan(math.exp(-lam)) for lam in (lams[::-1] if back else lams)]

    def velocity(points: Points, angle: float) -> Points:
        return model.velocity(points, -math.log(math.tan(angle)))

    for here, following in pairwise(angles):
        step = following - here
        middle = here + step / 2
        first = velocity(x, here)
        second = velocity(x + first * (step / 2), middle)
        third = velocity(x + second * (step / 2), middle)
        last = velocity(x + third * step, following)
        x = x + (first + 2 * second + 2 * third + last) * (step / 6)
    return x


if __name__ == "__main__":
    sys.exit(command(measure, "points/solvers"))
