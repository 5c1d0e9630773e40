"""How many rows one network call takes best, and what calls of other sizes cost: measured at start, and remembered.

The budget is the smallest batch whose cost per row is within 1 % of the best: larger ones only make others wait. The
measured seconds are the cost model of fair queueing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter, ValidationError

from ddib_fed.bridge.model.domain_model import DomainModel, pixels
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.files import read_json, write_json

log = logging.getLogger(__name__)

OWN_S = 1e-4
"""What the engine takes for a call beside the network."""
WITHIN = 1.01
"""A cost per row of so many times the best is as good as the best."""
FLAT = 1.05
"""Once two doublings brought less than so much a row, no larger batch is tried."""
SWEEP_S = 1.2
"""After which no larger batch is tried."""
REPEATS = 3
LONG_S = 0.25
"""A call that takes so long is measured once: of shorter ones a single time is too uncertain to choose a size by."""
MOST_POINTS, MOST_PIXELS = 4_096, 1 << 18
"""The largest batch that is tried on a CPU; a GPU's is `ON_GPU` times as large."""
ON_GPU = 16
MOST_REMEMBERED = 64
_Rows = Annotated[int, Field(ge=1, le=MOST_PIXELS * ON_GPU)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_COSTS = TypeAdapter(Annotated[dict[_Rows, _Seconds], Field(min_length=1)])
_WRITING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Budget:
    """What was measured of one model in one place."""

    rows: int
    seconds: Mapping[int, float]

    def cost(self, rows: int) -> float:
        return OWN_S + self._of_the_network(rows)

    def _of_the_network(self, rows: int) -> float:
        sizes = sorted(self.seconds)
        at = bisect_left(sizes, rows)
        if at == 0:
            return self.seconds[sizes[0]]
        if at == len(sizes):
            return self.seconds[sizes[-1]] * rows / sizes[-1]
        low, high = sizes[at - 1], sizes[at]
        part = (rows - low) / (high - low)
        return (1.0 - part) * self.seconds[low] + part * self.seconds[high]


def budget_of(seconds: Mapping[int, float]) -> Budget:
    """The smallest size within 1 % of the best cost per row, the engine's own part included."""
    each = {rows: (OWN_S + cost) / rows for rows, cost in seconds.items()}
    best = min(each.values())
    return Budget(min(rows for rows, cost in each.items() if cost <= WITHIN * best), dict(seconds))


def sweep(
    sizes: Iterator[int],
    call: Callable[[int], Callable[[], None]],
    *,
    limit_s: float = SWEEP_S,
    clock: Callable[[], float],
) -> dict[int, float]:
    """Seconds of a call by its rows: the least of a few calls after one that is not counted."""
    found: dict[int, float] = {}
    started = clock()
    for rows in sizes:
        try:
            found[rows] = _least(call(rows), clock)
        except (torch.OutOfMemoryError, MemoryError):
            if not found:
                raise
            break
        spent = clock() - started
        per_row = [cost / size for size, cost in found.items()]
        flat = len(per_row) > 2 and min(per_row[-2:]) > min(per_row[:-2]) / FLAT
        # The next one costs at most twice as much: one that would end far beyond the limit is not begun.
        if flat or spent + 2 * found[rows] > limit_s:
            break
    return found


def measured(model: DomainModel, threads: int, *, limit_s: float = SWEEP_S) -> Budget:
    """The budget of a model, by a sweep on its device."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    # Of one thread its own time: a machine that is busy at this start would be remembered as a slow one.
    clock = time.thread_time if model.device.type == "cpu" and threads == 1 else time.perf_counter
    try:
        return budget_of(sweep(_sizes(model), lambda rows: _call(model, rows), limit_s=limit_s, clock=clock))
    finally:
        torch.set_num_threads(before)


def remembered(path: Path | None, key: str, measure: Callable[[], Budget]) -> Budget:
    """The budget that a file holds under a key, or else a measured one, which is written there."""
    if path is None:
        return measure()
    with suppress(ValidationError):
        return budget_of(_COSTS.validate_python((read_json(path) or {}).get(key)))
    found = measure()
    with _WRITING:
        every = {**(read_json(path) or {}), key: {str(rows): cost for rows, cost in found.seconds.items()}}
        try:
            write_json(path, dict(list(every.items())[-MOST_REMEMBERED:]))
        except OSError as error:
            log.warning("what network calls cost is measured again at the next start: %s", error)
    return found


def key_of(model: DomainModel, *, dtype: str, threads: int, compiling: bool) -> str:
    """Names what a budget depends on."""
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    used = threads if device.type == "cpu" else 0
    parts = [model.bundle.digest, name, dtype, f"{used} threads", f"torch {torch.__version__}"]
    parts += ["compiled"] * compiling
    return ", ".join([*parts, *(f"{side}" for side in model.sample_shape[1:])])


def _sizes(model: DomainModel) -> Iterator[int]:
    """Sizes to try: powers of two."""
    most = MOST_PIXELS // pixels(model) if model.is_picture else MOST_POINTS
    most = max(1, most * (ON_GPU if model.device.type == "cuda" else 1))
    rows = 1
    while rows <= most:
        yield rows
        # A small call of points costs what one point costs.
        rows *= 4 if not model.is_picture and rows < 64 else 2


def _call(model: DomainModel, rows: int) -> Callable[[], None]:
    """A call of the plain network on noise."""
    laid = model.plan(SolverSettings(evaluations=8))
    x = torch.randn(rows, *model.sample_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    cond = model.condition(0 if model.manifest.num_classes else None, rows)
    level = laid.decode_grid.levels[4]
    denoiser = model.denoiser()

    def call() -> None:
        with torch.no_grad():
            denoiser(x, level, cond)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)

    return call


def _least(call: Callable[[], None], clock: Callable[[], float]) -> float:
    """The least of some calls."""
    call()
    least = math.inf
    for _ in range(REPEATS):
        started = clock()
        call()
        least = min(least, clock() - started)
        if least > LONG_S:
            break
    return least
