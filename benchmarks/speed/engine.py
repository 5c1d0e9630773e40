"""What the engine makes of many requests: beside one merged batch, one request at a time, and an idle engine.

python -m benchmarks.speed.engine [--short]
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.speed.shared.harness import Form, Report, interleaved, main, ratio
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.solvers import OnStep
from ddib_fed.engine.batcher import Batcher, Recipe
from ddib_fed.engine.local_party import submit_ranges
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control, Leg
from ddib_fed.engine.stack import Trajectory
from ddib_fed.models.bundle import pretrained

REQUESTERS = 16
MIXED = (*(1,) * 15, 64)
"""Rows of the requests that are handed in at once."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is asked of a model."""

    name: str
    domain: str
    sizes: tuple[int, ...]
    settings: SolverSettings
    repeats: int
    rounds: int
    mixed: SolverSettings
    large: int
    waits: int


class Engine:
    """One model on one thread: the batcher of a node, its call size measured, and the calling thread."""

    def __init__(self, kind: Kind) -> None:
        bundle = pretrained(kind.domain)
        self.kind = kind
        self.batcher = Recipe(bundle, device="cpu", threads=1, merge_rows=0, merge_pixels=0).warm()
        self.model = DomainModel(bundle)
        self._alone = Batcher(self.model, rows=1 << 20, threads=1, beside=False)

    def request(
        self, rows: int, seed: int = 0, flow: str = "", settings: SolverSettings | None = None
    ) -> Trajectory:
        noise = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, *self.model.sample_shape, generator=noise)
        return Trajectory("decode", x, Leg(settings or self.kind.settings, flow=flow))

    def alone(self, request: Trajectory) -> None:
        with self._alone.together():
            self._alone.submit(request)

    def merged_before(self, rows: int) -> float:
        """Rows a second of one batch of all requesters' rows."""
        batch = self.request(REQUESTERS * rows)
        started = time.perf_counter()
        self.alone(batch)
        return batch.rows / (time.perf_counter() - started)

    def staggered(self, rows: int) -> float:
        loop = _Loop(self, rows)
        loop.run()
        return loop.rows_a_second()

    def one_at_a_time(self) -> None:
        for request in self._mix():
            self.alone(request)

    def together(self) -> None:
        for future in [self.batcher.submit(request) for request in self._mix()]:
            future.result()

    def _mix(self) -> list[Trajectory]:
        return [self.request(rows, seed, settings=self.kind.mixed) for seed, rows in enumerate(MIXED)]

    def latency(self) -> float:
        small = self.request(1, flow="small", settings=SolverSettings())
        started = time.perf_counter()
        self.batcher.submit(small).result()
        return time.perf_counter() - started


class _Loop:
    """Sixteen requesters, each of whom asks again when it was answered; they begin evenly over the first way."""

    def __init__(self, engine: Engine, rows: int) -> None:
        self._engine, self._size = engine, rows
        # Like the merged batch, requests are made before the clock runs.
        self._requests = [
            [engine.request(rows, who) for _ in range(engine.kind.rounds)] for who in range(REQUESTERS)
        ]
        self._ended: list[float] = []
        self._begun = 1
        self._done = threading.Event()
        self._every = engine.kind.settings.evaluations / REQUESTERS

    def run(self) -> None:
        self._ask(0, self._begin_another)
        self._done.wait()

    def rows_a_second(self) -> float:
        steady = self._ended[: REQUESTERS * (self._engine.kind.rounds - 1) + 1]
        return (len(steady) - 1) * self._size / (steady[-1] - steady[0])

    def _ask(self, who: int, on_step: OnStep | None = None) -> None:
        request = self._requests[who].pop()
        self._engine.batcher.submit(request, on_step=on_step).add_done_callback(lambda _: self._answered(who))

    def _begin_another(self, step: int, of: int) -> None:
        while self._begun < REQUESTERS and (step >= self._begun * self._every or step == of):
            self._begun += 1
            self._ask(self._begun - 1)

    def _answered(self, who: int) -> None:
        self._ended.append(time.perf_counter())
        if self._requests[who]:
            self._ask(who)
        elif len(self._ended) == REQUESTERS * self._engine.kind.rounds:
            self._done.set()


class _Large:
    """A large job that never ends, as ranges of rows in flight."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._control = Control()
        self._last = threading.Event()

    def __enter__(self) -> None:
        self._submit()

    def _submit(self, _: object = None) -> None:
        if self._control.cancelled:
            self._last.set()
            return
        work = self._engine.request(self._engine.kind.large, flow="large")
        future = submit_ranges(self._engine.batcher, work, control=self._control, on_step=None)
        # On a thread of its own: a callback runs on the engine's, which has others to serve.
        future.add_done_callback(lambda done: threading.Thread(target=self._submit, args=(done,)).start())

    def __exit__(self, *exc_info: object) -> None:
        self._control.cancel()
        self._last.wait()


def measure(form: Form) -> Report:
    """Staggered requests, requests of two sizes, and a small request beside a large job."""
    report = Report(
        "One engine (a `Batcher` on one CPU thread, the size of its calls measured), decoding by the shipped models "
        "moons (points) and satellite (32 px). *Staggered*: sixteen requesters, each asking again once answered, "
        "begun evenly over the first way, so that each is at another step; rows a second while all are at work, beside "
        "one batch of the same rows, merged beforehand. *Mixes*: sixteen requests, one of them large, handed "
        "in at once, beside one after another. *Small beside large*: requests of one row and 48 evaluations, one by "
        "one, while a large job is always there, beside the same on an idle engine."
    )
    for kind in _kinds(form):
        engine = Engine(kind)
        report.add(f"{kind.name}: rows of a call, measured", [engine.batcher.rows], "rows")
        _staggered(engine, report, kind.repeats)
        _mixes(engine, report, form.pick(2, 7))
        _small_beside_large(engine, report, form.pick(2, 5))
        engine.batcher.close()
    return report


def _kinds(form: Form) -> list[Kind]:
    default = SolverSettings()
    # Fewer evaluations of pictures: ratios of throughputs do not depend on them, and 1,024 pictures take half a minute
    # at 12. Staggered, they are about as many as the requesters, so that each can be at another step.
    return [
        Kind(
            "points", "moons", (1, 8, 64), default, form.pick(25, 41), form.pick(3, 6),
            default, 20_000, form.pick(100, 200),
        ),
        Kind(
            "pictures", "satellite", form.pick((1, 8), (1, 8, 64)), SolverSettings(evaluations=12),
            form.pick(2, 7), form.pick(2, 3),
            SolverSettings(evaluations=form.pick(3, 12)), 256, form.pick(5, 40),
        ),
    ]  # fmt: skip


def _staggered(engine: Engine, report: Report, repeats: int) -> None:
    engine.staggered(engine.kind.sizes[0])  # not counted
    for rows in engine.kind.sizes:
        merged, staggered = f"{rows} rows each: one batch", f"{rows} rows each: staggered"
        found = interleaved(
            {merged: partial(engine.merged_before, rows), staggered: partial(engine.staggered, rows)}, repeats
        )
        for name, values in found.items():
            report.add(f"{engine.kind.name}, {REQUESTERS} requests of {name}", values, "rows/s")
        report.bound(
            f"{engine.kind.name}, {rows} rows each: staggered / one batch merged beforehand",
            ratio(found, staggered, merged),
            at_least=0.85,
        )


def _mixes(engine: Engine, report: Report, repeats: int) -> None:
    alone, together = "one at a time", "together"
    found = interleaved({alone: engine.one_at_a_time, together: engine.together}, repeats)
    report.add_times(
        {f"{engine.kind.name}, 15 requests of 1 row, one of 64, {how}": times for how, times in found.items()}
    )
    report.bound(
        f"{engine.kind.name}, 15 of 1, one of 64 rows: throughput together / one at a time",
        ratio(found, alone, together),
        at_least=0.95,
    )


def _small_beside_large(engine: Engine, report: Report, repeats: int) -> None:
    ratios, figures = [], {"an idle engine": [], "a large job": []}
    for _ in range(repeats):
        idle = [engine.latency() for _ in range(engine.kind.waits)]
        with _Large(engine):
            loaded = [engine.latency() for _ in range(engine.kind.waits)]
        ratios.append(_p99(loaded) / _p99(idle))
        figures["an idle engine"].append(_p99(idle))
        figures["a large job"].append(_p99(loaded))
    for beside, values in figures.items():
        report.add(
            f"{engine.kind.name}: p99 of a request of one row beside {beside}",
            [1e3 * v for v in values],
            "ms",
        )
    report.bound(f"{engine.kind.name}: p99 of a small request beside a large job / idle", ratios, at_most=3.0)


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98] if len(values) >= 100 else max(values)


if __name__ == "__main__":
    raise SystemExit(main("engine", measure))
