"""What a model is made of, and its warming up: the model on its device, with a batcher that knows what calls cost.

How many rows one network call takes best, and what calls of other sizes cost, is measured at each start. The budget is
the smallest batch whose cost per row is within 1 % of the best: larger ones only make others wait. The measured seconds
are the cost model of fair queueing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.model import DTYPES, DomainModel, pixels
from ddib_fed.engine.party import Leg
from ddib_fed.engine.record import UNGUIDED, Guidance
from ddib_fed.engine.stack import Trajectory
from ddib_fed.errors import ConfigError, NotReady
from ddib_fed.models.bundle import Bundle, device_problem
from ddib_fed.networks.placement import torch_threads

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
WARM_UP_ROWS = 4_096
"""Samples of the call with which threads are measured: large enough that a second thread could pay off."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What a node, or each of its workers, makes the model of: the weights themselves, not their folder."""

    bundle: Bundle
    classifier: Bundle | None = None
    device: str = "auto"
    threads: int = 0
    dtype: str = "float32"
    merge_rows: int = 2_048
    merge_pixels: int = 65_536

    def warm(self) -> Batcher:
        dtype, classifier = DTYPES[self.dtype], self.classifier
        model = DomainModel(self.bundle, device=_device(self.device), dtype=dtype, classifier=classifier)
        threads = self.threads or _fastest_threads(model)
        rows, cost = self.merge_rows, None
        if model.is_picture:
            rows = self.merge_pixels and max(1, self.merge_pixels // pixels(model))
        if not rows:
            budget = measured(model, threads)
            rows, cost = budget.rows, budget.cost
            log.info("a network call takes %d rows, %.3g s", rows, cost(rows))
        batcher = Batcher(
            model, rows=rows, cost=cost, threads=threads if model.device.type == "cpu" else None
        )
        try:
            _warm_up(model, batcher)
        except BaseException:
            batcher.close()
            raise
        return batcher


def _warm_up(model: DomainModel, executor: Batcher) -> None:
    """Run short legs of two sizes, and one guided by the classifier, so that the first request pays for nothing."""
    settings = SolverSettings(evaluations=2 if model.is_picture else 8)
    legs = [(UNGUIDED, 1), (UNGUIDED, min(2, executor.rows) if model.is_picture else 64)]
    if model.classifier is not None:
        legs.append((Guidance(classifier_scale=1.0), 1))
    for guidance, rows in legs:
        label = 0 if model.classes(guidance) else None
        classes = model.class_rows(label, rows, guidance)
        noise = Trajectory("decode", _noise(model, rows), Leg(settings, guidance), classes)
        if not torch.isfinite(executor.submit(noise).result().x).all():
            raise NotReady(
                "the model answers with NaN or infinity to noise",
                hint="ddib model show BUNDLE; train it again",
            )


def _fastest_threads(model: DomainModel) -> int:
    """1 or all cores, whichever evaluates a large batch faster now (a busy second core makes OpenMP crawl)."""
    cores = torch.get_num_threads()
    if model.device.type != "cpu" or cores == 1:
        return 1
    call = _call(model, 1 if model.is_picture else WARM_UP_ROWS)
    seconds = {}
    for count in (1, cores):
        torch.set_num_threads(count)
        seconds[count] = _least(call, time.perf_counter)
    # A second thread must pay clearly: it is taken from gRPC and from the other node on a small machine.
    return cores if seconds[cores] < 0.7 * seconds[1] else 1


def _noise(model: DomainModel, rows: int) -> torch.Tensor:
    noise = torch.randn(rows, *model.sample_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(model.device)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if problem := device_problem(name):
        raise ConfigError(
            f"engine.device = {name!a} cannot be used: {problem}",
            hint='engine.device = "auto" takes a GPU where there is one, "cpu" works everywhere',
        )
    return torch.device(name)


@dataclass(frozen=True, slots=True)
class Budget:
    rows: int
    seconds: Mapping[int, float]

    def cost(self, rows: int) -> float:
        sizes = sorted(self.seconds)
        beyond = max(1.0, rows / sizes[-1])
        return OWN_S + beyond * float(np.interp(rows, sizes, [self.seconds[size] for size in sizes]))


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
    # Of one thread its own time: a machine may be busy at this start.
    clock = time.thread_time if model.device.type == "cpu" and threads == 1 else time.perf_counter
    with torch_threads(threads):
        return budget_of(sweep(_sizes(model), lambda rows: _call(model, rows), limit_s=limit_s, clock=clock))


def _sizes(model: DomainModel) -> Iterator[int]:
    most = MOST_PIXELS // pixels(model) if model.is_picture else MOST_POINTS
    most = max(1, most * (ON_GPU if model.device.type == "cuda" else 1))
    rows = 1
    while rows <= most:
        yield rows
        # A small call of points costs what one point costs.
        rows *= 4 if not model.is_picture and rows < 64 else 2


def _call(model: DomainModel, rows: int) -> Callable[[], None]:
    """A call of the plain network on noise."""
    x, level = _noise(model, rows), model.bundle.schedule.level(0.0)
    cond = model.condition(model.class_rows(0 if model.manifest.num_classes else None, rows))
    denoiser = model.denoiser()

    def call() -> None:
        with torch.no_grad():
            denoiser(x, level, cond)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)

    return call


def _least(call: Callable[[], None], clock: Callable[[], float]) -> float:
    call()
    least = math.inf
    for _ in range(REPEATS):
        started = clock()
        call()
        least = min(least, clock() - started)
        if least > LONG_S:
            break
    return least
