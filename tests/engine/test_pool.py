"""Who gets which work, and what becomes of it when workers end: with workers that answer when the test has them."""

from __future__ import annotations

import threading

import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine import executors
from ddib_fed.engine.executors import Answer, Pool, WorkerLost, unpack
from ddib_fed.engine.party import Control
from ddib_fed.engine.stack import Trajectory
from ddib_fed.errors import BundleInvalid, Cancelled, DeadlineExceeded, InternalError, NotReady

SETTINGS = SolverSettings(evaluations=10)
ROWS = 8


class Scripted:
    """A worker that does nothing by itself."""

    rows = ROWS

    def __init__(self, name, refusal):
        self.name, self.refusal, self.closed = name, refusal, False
        self.batches, self.over = [], ()
        self._said = None
        self._spoke = threading.Event()

    def ready(self):
        if self.refusal is not None:
            raise self.refusal

    def begin(self, batch):
        self.batches.append([each.flow for each in unpack(batch)])

    def look(self, over):
        self.over = over
        self._spoke.wait(0.01)
        said, self._said = self._said, None
        self._spoke.clear()
        if isinstance(said, Exception):
            raise said
        return said or {}

    def say(self, said):
        self._said = said
        self._spoke.set()

    def finish(self):
        self.say(Answer([(torch.zeros(1, 2), 10)] * len(self.batches[-1]), {}, 10, 10))

    def die(self, *, blame=True):
        self.say(WorkerLost("was killed", blame=blame))

    def kill(self):
        self.closed = True

    close = kill


class Scene:
    """A pool, and the workers that it started, in their order."""

    def __init__(self, count=1, refusal=None):
        self.workers: list[Scripted] = []
        self.refusal = refusal
        self.pool = Pool(self._launch, count, what="worker", remedy="look")

    def _launch(self, number):
        self.workers.append(Scripted(f"w{number}", self.refusal))
        return self.workers[-1]

    def submit(self, rows=1, flow="", owner="", **options):
        work = Trajectory("decode", torch.zeros(rows, 2), SETTINGS, flow=flow, owner=owner)
        return self.pool.submit(work, **options)

    def wait_for(self, condition):
        for _ in range(1000):
            if condition():
                return
            threading.Event().wait(0.01)
        pytest.fail("it did not come")

    def batch(self, number, worker=0):
        """The flows of a worker's batch, once it has it."""
        self.wait_for(lambda: len(self.workers) > worker and len(self.workers[worker].batches) > number)
        return self.workers[worker].batches[number]


@pytest.fixture
def scene(monkeypatch):
    monkeypatch.setattr(executors, "LOOK_S", 0.01)
    monkeypatch.setattr(executors, "FIRST_PAUSE_S", 0.01)
    made = []

    def make(*given, **options):
        made.append(Scene(*given, **options))
        return made[-1]

    yield make
    for each in made:
        each.pool.close()


def test_what_waits_is_shared_by_the_workers_and_has_no_more_rows_than_a_call(scene):
    stage = scene(2)
    first = [stage.submit(flow="first") for _ in range(2)]
    stage.wait_for(lambda: sum(len(worker.batches) for worker in stage.workers) == 2)
    later = [stage.submit(flow="job") for _ in range(40)]
    stage.workers[0].finish()
    assert len(stage.batch(1)) == ROWS
    for _ in range(20):
        for worker in stage.workers:
            worker.finish()
        threading.Event().wait(0.02)
    for future in (*first, *later):
        assert future.result(10).shape == (1, 2)


def test_a_trajectory_that_kills_its_workers_is_given_up_and_takes_no_other_with_it(scene):
    """After two deaths each of the batch is by itself; the third gives up the one that the worker had."""
    stage = scene(1)
    stage.submit(ROWS, flow="first")
    stage.batch(0)
    deadly, neighbour = stage.submit(flow="deadly"), stage.submit(flow="neighbour")
    stage.workers[0].finish()
    assert sorted(stage.batch(1)) == ["deadly", "neighbour"]
    stage.workers[0].die()
    assert sorted(stage.batch(0, worker=1)) == ["deadly", "neighbour"]
    stage.workers[1].die()
    (alone,) = stage.batch(0, worker=2)
    stage.workers[2].die() if alone == "deadly" else stage.workers[2].finish()
    last, number = (3, 0) if alone == "deadly" else (2, 1)
    (other,) = stage.batch(number, worker=last)
    stage.workers[last].die() if other == "deadly" else stage.workers[last].finish()
    with pytest.raises(InternalError, match="3 times a worker was killed"):
        deadly.result(10)
    assert neighbour.result(10).shape == (1, 2)


def test_the_loss_of_a_cluster_is_nobodys_fault(scene):
    """However often its head is killed, work is not given up for it."""
    stage = scene(1)
    future = stage.submit()
    for number in range(5):
        stage.batch(0, worker=number)
        stage.workers[number].die(blame=False)
    stage.batch(0, worker=5)
    stage.workers[5].finish()
    assert future.result(10).shape == (1, 2)


def test_a_worker_that_cannot_start_is_told_at_once(scene):
    with pytest.raises(BundleInvalid, match="a tensor is missing"):
        scene(1, refusal=BundleInvalid("a tensor is missing"))


def test_accepted_work_waits_while_no_worker_can_be_started(scene):
    """The operator reads why; it is done when there is one, and given up at its deadline."""
    stage = scene(1)
    future = stage.submit(flow="a")
    stage.batch(0)
    stage.refusal = NotReady("no head answers")
    stage.workers[0].die(blame=False)
    stage.wait_for(lambda: "no head answers" in (stage.pool.problem or ""))
    late = stage.submit(control=Control(0.0))
    with pytest.raises(DeadlineExceeded):
        late.result(10)
    stage.refusal = None
    stage.wait_for(lambda: stage.pool.problem is None)
    assert stage.batch(0, worker=len(stage.workers) - 1) == ["a"]
    stage.workers[-1].finish()
    assert future.result(10).shape == (1, 2)


def test_whoever_cancels_waits_for_no_worker(scene):
    """Queued and running work delays no cancellation; the worker ends it by itself."""
    stage = scene(1)
    controls = [Control() for _ in range(3)]
    futures = [stage.submit(ROWS, flow="job", control=control) for control in controls]
    stage.batch(0)
    controls[0].cancel()
    controls[2].cancel()
    for future in (futures[0], futures[2]):
        with pytest.raises(Cancelled):
            future.result(10)
    stage.wait_for(lambda: list(stage.workers[0].over) == [0])
    stage.workers[0].finish()
    stage.batch(1)
    stage.workers[0].finish()
    assert futures[1].result(10).shape == (1, 2)
    assert len(stage.workers[0].batches) == 2
