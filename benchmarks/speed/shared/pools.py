"""What `workers` and `ray` measure alike: work on pools of one and of two workers, and a worker that is killed."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from benchmarks.speed.shared.harness import Form, Report, interleaved, ratio
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Batcher, Recipe
from ddib_fed.engine.executors import Pool
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Leg
from ddib_fed.engine.stack import Trajectory
from ddib_fed.models.bundle import pretrained

DOMAIN = "relief"
TOGETHER = 16
"""Pictures of a trajectory: what one network call takes well at 32 px."""
LEAST_SPEEDUP = 1.7
MOST_LOST = 0


def recipe() -> Recipe:
    return Recipe(pretrained(DOMAIN), device="cpu", threads=1, merge_pixels=TOGETHER * 32 * 32)


def work(pictures: int) -> list[Trajectory]:
    noise = torch.randn(pictures, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [Trajectory("decode", each, Leg(SolverSettings(), flow="job")) for each in noise.split(TOGETHER)]


def run(executor: Batcher | Pool, trajectories: Sequence[Trajectory]) -> list[Tensor]:
    with executor.together():
        futures = [executor.submit(each) for each in trajectories]
    return [future.result().x for future in futures]


def measure_pools(form: Form, report: Report, what: str, plural: str, make: Callable[[int], Pool]) -> None:
    """Two workers beside one and beside the calling thread; then one of two is killed."""
    trajectories = work(form.pick(32, 192))
    with ExitStack() as after:
        one, two = make(1), make(2)
        for pool in (one, two):
            after.callback(pool.close)
            wait_for(pool)
        own = Batcher(DomainModel(pretrained(DOMAIN)), rows=TOGETHER, threads=1, beside=False)
        times = interleaved(
            {
                "the calling thread": lambda: _seconds(own, trajectories),
                f"one {what}": lambda: _seconds(one, trajectories),
                f"two {plural}": lambda: _seconds(two, trajectories),
            },
            form.pick(3, 5),
        )
        report.add_times(times)
        report.bound(
            f"one {what} / two {plural}", ratio(times, f"one {what}", f"two {plural}"), at_least=LEAST_SPEEDUP
        )
        report.add(f"one {what} / the calling thread", ratio(times, f"one {what}", "the calling thread"), "x")
        lost, redone = _killed(two, trajectories, run(own, trajectories))
        report.add("trajectories that were done again after SIGKILL of a worker", [redone], "")
        report.bound("trajectories lost by SIGKILL of a worker", [lost], at_most=MOST_LOST)


def wait_for(pool: Pool) -> None:
    while pool.counters["ready"] < pool.counters["wanted"]:
        time.sleep(0.05)


def _seconds(executor: Batcher | Pool, trajectories: Sequence[Trajectory]) -> float:
    started = time.perf_counter()
    run(executor, trajectories)
    return time.perf_counter() - started


def _killed(pool: Pool, trajectories: Sequence[Trajectory], expected: Sequence[Tensor]) -> tuple[int, int]:
    """Kill a worker in the middle of the work; trajectories lost or wrong, and those that were done again."""
    before = pool.counters["redone"]
    under_way = threading.Event()
    futures = [pool.submit(each, on_step=lambda *_: under_way.set()) for each in trajectories]
    under_way.wait()
    found = re.search(r"process (\d+)", pool.workers()[0])
    assert found is not None
    os.kill(int(found[1]), signal.SIGKILL)
    lost = 0
    for future, want in zip(futures, expected, strict=True):
        try:
            lost += not torch.allclose(future.result().x, want, atol=1e-3)
        except Exception as error:  # noqa: BLE001 - it is counted
            print(f"lost: {error}")
            lost += 1
    return lost, pool.counters["redone"] - before
