"""What every executor must do, whether this process, processes of this machine, or Ray actors carry the work out.

Of a pool further: which worker gets which work, and what becomes of it when workers end, with scripted workers.
"""

import functools
import importlib.metadata
import importlib.util
import multiprocessing.resource_tracker
import os
import queue
import re
import signal
import subprocess
import threading
import time
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine import executors
from ddib_fed.engine.batcher import Recipe
from ddib_fed.engine.executors import News, Pool, pack, process_pool, unpack
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control, Leg
from ddib_fed.engine.stack import End, Integration, Trajectory
from ddib_fed.errors import (
    BundleInvalid,
    Cancelled,
    DeadlineExceeded,
    Draining,
    InternalError,
    NotReady,
    SettingsInvalid,
)
from ddib_fed.ray_actors import ray_pool
from ddib_fed.testing import free_port
from tests.node.tiny_nodes import tiny_bundle
from tests.source_node.conftest import wait_until

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
        return recipe.warm()
    if kind == "processes":
        return process_pool(recipe, workers=workers)
    # Actors are nicer than what else runs here, and would hardly run at all.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own spelling
    return ray_pool(recipe, address="local", workers=workers, local_cpus=4)


@pytest.fixture(scope="module")
def made():
    """Executors by kind: starting one takes seconds."""
    found = {}
    yield lambda kind: found[kind] if kind in found else found.setdefault(kind, make(kind))
    for each in found.values():
        each.close()


@pytest.fixture(params=KINDS)
def executor(request, made):
    return made(request.param)


@pytest.fixture(params=KINDS[1:])
def pool(request, made):
    return made(request.param)


@dataclass(frozen=True, eq=False)
class Broken(Trajectory):
    """Fails in a way of torch's own."""

    def on(self, model: DomainModel) -> Integration:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def noise(rows, seed=0):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))


def decoding(rows, seed=0, settings=SETTINGS, kind=Trajectory, **leg):
    return kind("decode", noise(rows, seed), Leg(settings, **leg))


def check(trajectory, future, within=1e-4):
    expected = trajectory.on(DomainModel(bundle())).run()
    torch.testing.assert_close(future.result(PATIENCE_S).x, expected, atol=within, rtol=within)


def processes_of(pool):
    return [int(re.search(r"process (\d+)", name)[1]) for name in pool.workers()]


def children():
    with subprocess.Popen(["pgrep", "-P", str(os.getpid())], stdout=subprocess.PIPE, text=True) as search:
        found = [int(line) for line in search.communicate()[0].split()]
    return {process for process in found if process != search.pid}


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_results_and_progress_are_those_of_the_model_here(executor, stage):
    """Many at once, of several flows and sizes; reported steps only grow, and the last one is reported."""
    work = [
        Trajectory(stage, noise(rows, seed), Leg(SETTINGS, flow=f"job-{seed % 3}"))
        for seed, rows in enumerate([1, 7, 300, 1, 64])
    ]
    told = []
    futures = [executor.submit(each, on_step=lambda *at: told.append(at)) for each in work[:1]]
    futures += [executor.submit(each) for each in work[1:]]
    for each, future in zip(work, futures, strict=True):
        check(each, future)
        assert future.result().evaluations == 24
    assert told == sorted(told)
    assert told[-1] == (24, 24)
    wait_until(lambda: executor.counters["rows"] > 0, PATIENCE_S)


def test_cancelling_and_deadlines_reach_the_work_at_its_next_step(executor):
    """Long before its end, with the reason that was given; what else runs goes on."""
    control, begun = Control(), threading.Event()
    long = executor.submit(decoding(64, settings=LONG), control=control, on_step=lambda *_: begun.set())
    assert begun.wait(PATIENCE_S)
    control.cancel(Cancelled("the client left"))
    with pytest.raises(Cancelled, match="the client left"):
        long.result(PATIENCE_S)
    late = executor.submit(decoding(64, settings=LONG), control=Control(time.monotonic() + 0.2))
    with pytest.raises(DeadlineExceeded):
        late.result(PATIENCE_S)
    check(decoding(5), executor.submit(decoding(5)))


def test_errors_of_the_model_reach_the_caller_as_they_are(executor):
    """Ours with its facts; one of torch's as itself."""
    work = Trajectory("encode", noise(4), Leg(SolverSettings(share=0.5)))
    with pytest.raises(SettingsInvalid) as caught:
        executor.submit(work).result(PATIENCE_S)
    assert caught.value.facts == {"field": "share"}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        executor.submit(decoding(4, kind=Broken)).result(PATIENCE_S)


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_ends_or_hangs_loses_nothing_and_is_replaced(pool, fate, monkeypatch):
    monkeypatch.setattr(executors, "SILENT_S", 8.0)
    wait_until(lambda: pool.counters["ready"] == 2, PATIENCE_S)
    before = dict(pool.counters)
    settings = SolverSettings(evaluations=2_400, solver="ddim", grid="uniform-lambda")
    work = [decoding(50, n, settings, flow="job") for n in range(8)]
    victim, begun = processes_of(pool)[0], threading.Event()

    def strike(*_):
        """At the first step, on the pool's own thread: the victim is far from its end."""
        if not begun.is_set():
            begun.set()
            os.kill(victim, fate)

    futures = [pool.submit(each, on_step=strike) for each in work]
    for each, future in zip(work, futures, strict=True):
        check(each, future, within=1e-3)
    wait_until(lambda: victim not in processes_of(pool) and pool.counters["ready"] == 2, PATIENCE_S)
    assert pool.counters["replaced"] == before["replaced"] + 1
    assert pool.counters["redone"] > before["redone"]
    assert pool.problem is None


@pytest.mark.slow
def test_a_terminal_and_a_service_manager_do_not_end_a_worker(made):
    """Both signal all processes of a node that is to drain first."""
    pool = made("processes")
    there = processes_of(pool)
    for number in (signal.SIGINT, signal.SIGTERM):
        for process in there:
            os.kill(process, number)
    for future in [pool.submit(decoding(5, seed)) for seed in range(4)]:
        future.result(PATIENCE_S)
    assert processes_of(pool) == there


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_executor(kind):
    """It fails what it has, takes no more, and leaves no process."""
    multiprocessing.resource_tracker.ensure_running()  # of Python: one for all that this process spawns
    before = children()
    made = make(kind, workers=1)
    begun = threading.Event()
    future = made.submit(decoding(64, settings=LONG), on_step=lambda *_: begun.set())
    assert begun.wait(PATIENCE_S)
    made.close()
    with pytest.raises(Draining):
        future.result(PATIENCE_S)
    with pytest.raises(Draining):
        made.submit(decoding(5))
    assert children() <= before


@ray_too
@pytest.mark.slow
def test_a_head_that_does_not_answer_is_named_at_once():
    """Ray would try for a minute. The process that tried is gone."""
    before, address = children(), f"127.0.0.1:{free_port()}"
    with pytest.raises(NotReady, match="cannot be joined") as caught:
        ray_pool(Recipe(tiny_bundle()), address=address, workers=1)
    assert f"ray start --address {address}" in caught.value.hint
    assert caught.value.retry_after_s
    assert children() <= before


ROWS = 8


class Scripted:
    """A worker's process that says what the test has it say."""

    def __init__(self, name, refusal):
        self._news, self._told, self._ends, self._dead = News(name, ROWS), queue.SimpleQueue(), [], False
        self.made = Future()
        self.made.set_exception(refusal) if refusal else self.made.set_result(self._news)

    def exchange(self, begun, over):
        for number in over:
            self._told.put((number, None))
        for number, work, _ in begun:
            self._told.put((number, unpack(work).leg.flow))
        answer, (ends, self._ends) = Future(), (self._ends, [])
        if self._dead:
            answer.set_exception(BrokenExecutor())
        else:
            threading.Timer(0.01, answer.set_result, [self._news._replace(ends=ends)]).start()
        return answer

    def given(self):
        """The next trajectory, by its number and flow; of a cancelled one without a flow."""
        return self._told.get(timeout=60)

    @property
    def idle(self):
        with suppress(queue.Empty):
            self._told.get(timeout=0.1)
            return False
        return True

    def finish(self, number):
        self._ends.append((number, pack(End(torch.zeros(1, 2), 24))))

    def die(self):
        self._dead = True

    kill = die


class Scene:
    """A pool, and the workers that it started, in their order."""

    def __init__(self, count=1, refusal=None, **options):
        self.workers, self.refusal = [], refusal
        self.pool = Pool(self._launch, count, what="worker", remedy="look", **options)

    def _launch(self, number):
        self.workers.append(Scripted(f"w{number}", self.refusal))
        return self.workers[-1]

    def submit(self, rows=1, flow="", **options):
        return self.pool.submit(decoding(rows, flow=flow), **options)

    def worker(self, number):
        wait_until(lambda: len(self.workers) > number, PATIENCE_S)
        return self.workers[number]


@pytest.fixture
def scene(monkeypatch):
    monkeypatch.setattr(executors, "LOOK_S", 0.01)
    monkeypatch.setattr(executors, "FIRST_PAUSE_S", 0.01)
    made = []
    yield lambda *given, **options: made.append(Scene(*given, **options)) or made[-1]
    for each in made:
        each.pool.close()


def test_a_trajectory_that_kills_its_workers_is_given_up_and_takes_no_other_with_it(scene):
    """After two deaths each is by itself; the third gives up the one that the worker had."""
    stage = scene(1)
    futures = {flow: stage.submit(flow=flow) for flow in ("deadly", "neighbour")}
    for number in range(2):
        assert {stage.worker(number).given()[1] for _ in futures} == set(futures)
        stage.worker(number).die()
    worker = stage.worker(2)
    assert worker.given()[1] == "deadly"
    assert worker.idle
    worker.die()
    with pytest.raises(InternalError, match="3 times a worker ended"):
        futures["deadly"].result(60)
    worker = stage.worker(3)
    worker.finish(worker.given()[0])
    assert futures["neighbour"].result(60).x.shape == (1, 2)


def test_a_worker_that_cannot_start_is_told_at_once(scene):
    with pytest.raises(BundleInvalid, match="a tensor is missing"):
        scene(1, refusal=BundleInvalid("a tensor is missing"))


def test_accepted_work_waits_while_no_worker_can_be_started(scene):
    """The operator reads why; it is done when there is one, and given up at its deadline."""
    stage = scene(1)
    future = stage.submit(flow="a")
    stage.worker(0).given()
    stage.refusal = NotReady("no head answers")
    stage.worker(0).die()
    wait_until(lambda: "no head answers" in (stage.pool.problem or ""), PATIENCE_S)
    late = stage.submit(control=Control(time.monotonic() + 0.05))
    with pytest.raises(DeadlineExceeded):
        late.result(60)
    stage.refusal = None
    wait_until(lambda: stage.pool.problem is None, PATIENCE_S)
    last = stage.workers[-1]
    last.finish(last.given()[0])
    assert future.result(60).x.shape == (1, 2)


def test_noise_that_is_drawn_here_is_refused_by_a_worker(scene):
    work = Trajectory("decode", noise(4), Leg(SolverSettings(solver="ddim", eta=1.0)), draw=lambda *_: None)
    with pytest.raises(SettingsInvalid, match="draws noise"):
        scene(1).pool.submit(work).result(PATIENCE_S)
