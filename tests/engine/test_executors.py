"""What every executor must do, whoever carries the work out: this process, processes of this machine, or
actors of Ray.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing.resource_tracker
import os
import re
import signal
import threading
import time

import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine import executors
from ddib_fed.engine.budget import Recipe
from ddib_fed.engine.executors import CallingThread, process_pool
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control
from ddib_fed.engine.ray_actors import ray_pool
from ddib_fed.engine.stack import Trajectory
from ddib_fed.errors import Cancelled, DeadlineExceeded, Draining, InternalError, SettingsInvalid
from tests.engine.deadly import Broken, Deadly
from tests.engine.orphans import children
from tests.node.tiny_nodes import tiny_bundle

SETTINGS = SolverSettings(evaluations=24)
LONG = SolverSettings(evaluations=9_999, solver="ddim", grid="uniform-lambda")
PATIENCE_S = 60.0
ray_too = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: `make test-ray` does both"
)
KINDS = [
    "inline",
    pytest.param("processes", marks=pytest.mark.slow),
    pytest.param("ray", marks=[ray_too, pytest.mark.slow]),
]
POOLS = KINDS[1:]


@functools.cache
def bundle():
    """A tiny model whose answers depend on what it is asked."""
    made = tiny_bundle()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.nn.init.normal_(made.state["leave.weight"], std=0.2)
    return made


def make(kind, workers=2):
    recipe = Recipe(bundle(), device="cpu", threads=1)
    if kind == "inline":
        return recipe.warm().batcher
    if kind == "processes":
        return process_pool(recipe, workers=workers)
    # Actors are nicer than what else runs here, and would hardly run at all.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own spelling
    return ray_pool(recipe, address="local", workers=workers, local_cpus=4)


@pytest.fixture(scope="module")
def made():
    """Executors by kind: starting one takes seconds."""
    found = {}
    yield found
    for each in found.values():
        each.close()


@pytest.fixture(params=KINDS)
def executor(request, made):
    return (
        made[request.param] if request.param in made else made.setdefault(request.param, make(request.param))
    )


@pytest.fixture(params=POOLS)
def pool(request, made):
    return (
        made[request.param] if request.param in made else made.setdefault(request.param, make(request.param))
    )


def noise(rows, seed=0):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))


def expected(trajectory):
    return CallingThread(DomainModel(bundle()), 10_000).submit(trajectory).result()


def until(condition, what):
    """Wait for what comes by itself."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.02)


def processes_of(pool):
    return [int(re.search(r"process (\d+)", name)[1]) for name in pool.workers()]


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_results_are_those_of_the_calling_thread(executor, stage):
    """Many at once, of several flows and sizes, in any order."""
    work = [
        Trajectory(stage, noise(rows, seed), SETTINGS, flow=f"job-{seed % 3}")
        for seed, rows in enumerate([1, 7, 300, 1, 64])
    ]
    found = [future.result(PATIENCE_S) for future in [executor.submit(each) for each in work]]
    for each, x in zip(work, found, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, expected(each), atol=1e-4, rtol=1e-4)
    assert executor.counters["rows"] > 0


def test_progress_is_told_to_the_end(executor):
    """Reported steps only grow, and the last one is reported."""
    told = []
    executor.submit(
        Trajectory("decode", noise(3), SETTINGS), on_step=lambda done, of: told.append((done, of))
    ).result(PATIENCE_S)
    assert told == sorted(told)
    assert told[-1] == (24, 24)


def test_cancelling_reaches_the_work_at_its_next_step(executor):
    """Long before its end, with the reason that was given; what else runs goes on."""
    control, begun = Control(), threading.Event()
    long = executor.submit(
        Trajectory("decode", noise(64), LONG), control=control, on_step=lambda done, of: begun.set()
    )
    other = Trajectory("decode", noise(5), SETTINGS)
    assert begun.wait(PATIENCE_S)
    control.cancel(Cancelled("the client left"))
    with pytest.raises(Cancelled, match="the client left"):
        long.result(PATIENCE_S)
    torch.testing.assert_close(
        executor.submit(other).result(PATIENCE_S), expected(other), atol=1e-4, rtol=1e-4
    )


def test_errors_of_the_model_reach_the_caller_as_they_are(executor):
    """Ours with its facts; one of torch's as itself."""
    work = Trajectory("encode", noise(4), SETTINGS, encoder="mixed")
    with pytest.raises(SettingsInvalid) as caught:
        executor.submit(work).result(PATIENCE_S)
    assert caught.value.facts == {"field": "encoder"}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        executor.submit(Broken("encode", noise(4), SETTINGS)).result(PATIENCE_S)


def lose_nothing(pool, fate):
    """Send a signal to one of two workers with work in flight: every result comes, and is right; it is replaced."""
    pool.resize(2)
    until(lambda: pool.counters["ready"] == 2, "two workers")
    work = [
        Trajectory("decode", noise(50, seed), SolverSettings(evaluations=960, solver="ddim"), flow="job")
        for seed in range(8)
    ]
    begun = threading.Event()
    futures = [pool.submit(each, on_step=lambda done, of: begun.set()) for each in work]
    assert begun.wait(PATIENCE_S)
    victim = processes_of(pool)[0]
    os.kill(victim, fate)
    for each, future in zip(work, futures, strict=True):
        torch.testing.assert_close(future.result(PATIENCE_S), expected(each), atol=1e-3, rtol=1e-3)
    return victim


def test_a_killed_worker_loses_nothing(pool):
    lose_nothing(pool, signal.SIGKILL)
    assert pool.problem is None


@pytest.mark.slow
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_process_that_ends_or_hangs_is_replaced(made, fate, monkeypatch):
    """A new process takes its place, and its work is done again."""
    monkeypatch.setattr(executors, "SILENT_S", 3.0)
    pool = made["processes"] if "processes" in made else made.setdefault("processes", make("processes"))
    before = dict(pool.counters)
    victim = lose_nothing(pool, fate)
    until(lambda: pool.counters["ready"] == 2, "the worker is replaced")
    assert victim not in processes_of(pool)
    assert pool.counters["replaced"] == before["replaced"] + 1
    assert pool.counters["redone"] > before["redone"]


@pytest.mark.slow
def test_a_terminal_and_a_service_manager_do_not_end_a_worker(made):
    """Both signal all processes of a node that is to drain first."""
    pool = made["processes"] if "processes" in made else made.setdefault("processes", make("processes"))
    there = processes_of(pool)
    for number in (signal.SIGINT, signal.SIGTERM):
        for process in there:
            os.kill(process, number)
    work = [Trajectory("decode", noise(5, seed), SETTINGS) for seed in range(4)]
    for future in [pool.submit(each) for each in work]:
        future.result(PATIENCE_S)
    assert processes_of(pool) == there


def test_work_that_kills_its_workers_is_given_up(pool):
    """The last death was of a worker that had nothing else; its neighbours come through."""
    neighbour = Trajectory("decode", noise(5), SETTINGS)
    deadly = pool.submit(Deadly("decode", noise(5), SETTINGS))
    others = [pool.submit(neighbour) for _ in range(3)]
    with pytest.raises(InternalError, match="3 times a"):
        deadly.result(2 * PATIENCE_S)
    for other in others:
        torch.testing.assert_close(other.result(PATIENCE_S), expected(neighbour), atol=1e-4, rtol=1e-4)


def test_workers_come_and_go_while_they_work(pool):
    """Three, then one: those that are too many finish what they have."""
    work = Trajectory("decode", noise(40), SolverSettings(evaluations=480, solver="ddim"), flow="job")
    futures = [pool.submit(work) for _ in range(12)]
    pool.resize(3)
    until(lambda: pool.counters["ready"] == 3, "a third worker")
    futures += [pool.submit(work) for _ in range(12)]
    pool.resize(1)
    until(lambda: pool.counters["ready"] == 1, "one worker")
    for future in futures:
        torch.testing.assert_close(future.result(PATIENCE_S), expected(work), atol=1e-3, rtol=1e-3)
    for count in (0, 257):
        with pytest.raises(SettingsInvalid):
            pool.resize(count)


def test_noise_that_is_drawn_here_is_refused_by_a_worker(pool):
    work = Trajectory(
        "decode", noise(4), SolverSettings(solver="ddim", eta=1.0), draw=lambda step, rows: noise(4).numpy()
    )
    with pytest.raises(SettingsInvalid, match="draws noise"):
        pool.submit(work).result(PATIENCE_S)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_executor(kind):
    """It fails what it has, takes no more, and leaves no process."""
    multiprocessing.resource_tracker.ensure_running()  # of Python: one for all that this process spawns
    before = set(children())
    made = make(kind, workers=1)
    begun = threading.Event()
    future = made.submit(Trajectory("decode", noise(64), LONG), on_step=lambda done, of: begun.set())
    assert begun.wait(PATIENCE_S)
    made.close()
    with pytest.raises(Draining):
        future.result(PATIENCE_S)
    with pytest.raises(Draining):
        made.submit(Trajectory("decode", noise(5), SETTINGS))
    assert set(children()) <= before


def test_a_deadline_ends_the_work(executor):
    control = Control(time.monotonic() + 0.2)
    with pytest.raises(DeadlineExceeded):
        executor.submit(Trajectory("decode", noise(64), LONG), control=control).result(PATIENCE_S)
