"""Who gets which work, and what becomes of it when workers end: with workers that say what the test has them say."""

from __future__ import annotations

import threading

import pytest
import torch

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.engine.trajectory import Trajectory
from ddib_fed.bridge.workers import books, hanging, pool, starts
from ddib_fed.bridge.workers.books import FLOWS_BESIDE
from ddib_fed.bridge.workers.pool import Pool
from ddib_fed.bridge.workers.workbench import Broken, Cancel, Do, Done, Ping, Pong, Ready, Step
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import BundleInvalid, Cancelled, InternalError, NotReady

SETTINGS = SolverSettings(evaluations=10)
ROWS = 8


class Scripted:
    """A worker that does nothing by itself, but gives signs of life where it is said to."""

    answers = False

    def __init__(self, listener, first):
        self.listener, self.sent, self.ended = listener, [], False
        if first is not None:
            listener.heard(first)

    def send(self, message):
        self.sent.append(message)
        if isinstance(message, Ping) and self.answers:
            threading.Thread(target=self.listener.heard, args=(Pong(),)).start()

    def end(self):
        self.ended = True

    @property
    def has(self):
        return [message.number for message in self.sent if isinstance(message, Do)]

    def finish(self, number):
        self.listener.heard(Done(number, torch.zeros(1, 2), evaluations=1, calls=1, rows=1))

    def die(self, *, blame=True):
        self.listener.ended("was killed by SIGKILL", blame=blame)


class Scene:
    """A pool, and the workers that it started, in their order."""

    def __init__(self, count=1, first="ready"):
        self.workers: list[Scripted] = []
        self.first, self.refusal = first, None
        self.pool = Pool(self._launch, count, what="worker", remedy="look")

    def _launch(self, listener):
        if self.refusal is not None:
            raise self.refusal
        first = Ready(f"w{len(self.workers)}", ROWS) if self.first == "ready" else self.first
        self.workers.append(Scripted(listener, first))
        return self.workers[-1]

    def submit(self, rows=1, flow="", weight=1.0, owner="", **options):
        return self.pool.submit(
            Trajectory("decode", torch.zeros(rows, 2), SETTINGS, flow=flow, weight=weight, owner=owner),
            **options,
        )

    def wait_for(self, condition):
        for _ in range(1000):
            if condition():
                return
            threading.Event().wait(0.01)
        pytest.fail("it did not come")

    def started(self, count):
        self.wait_for(lambda: len(self.workers) >= count and len(self.pool.workers()) >= 1)
        return self.workers[count - 1]


@pytest.fixture
def scene():
    made = []

    def make(*given, **options):
        made.append(Scene(*given, **options))
        return made[-1]

    yield make
    for each in made:
        each.pool.close()


def test_work_goes_to_whoever_has_fewest_rows(scene):
    """So a batch fills on each, and none waits behind a full one."""
    stage = scene(2)
    for rows in (4, 1, 1, 1):
        stage.submit(rows, flow="job")
    first, second = sorted((worker.has for worker in stage.workers), key=len)
    assert (first, second) == ([1], [2, 3, 4])


def test_a_worker_is_given_two_budgets_of_rows_and_the_rest_waits(scene):
    """What was given to one cannot be done by another; what waits can."""
    stage = scene(1)
    for _ in range(5):
        stage.submit(ROWS // 2, flow="job")
    (worker,) = stage.workers
    assert worker.has == [1, 2, 3, 4]
    worker.finish(1)
    assert worker.has == [1, 2, 3, 4, 5]


def test_a_small_flow_does_not_wait_for_a_large_one(scene):
    """A worker's own batcher shares its calls: it only has to be there."""
    stage = scene(1)
    for _ in range(9):
        stage.submit(ROWS, flow="large")
    stage.submit(1, flow="small")
    assert 10 in stage.workers[0].has


def test_many_requests_of_one_owner_take_turns_with_one_of_another(scene):
    """Nor do they fill the worker because each has nothing there yet: only the first few need not wait for room."""
    stage = scene(1)
    for number in range(20):
        stage.submit(ROWS, flow=f"r{number}", owner="west")
    (worker,) = stage.workers
    assert len(worker.has) == FLOWS_BESIDE
    for _ in range(6):
        stage.submit(ROWS, flow="job", owner="north")
    assert 21 in worker.has
    for place in range(11):
        worker.finish(worker.has[place])
    since = worker.has[FLOWS_BESIDE:]
    assert sum(number > 20 for number in since) == pytest.approx(len(since) / 2, abs=1)


def test_flows_take_turns_by_their_weight(scene):
    """The heavier gets twice as much of what waits."""
    stage = scene(1)
    for _ in range(12):
        stage.submit(ROWS, flow="one")
        stage.submit(ROWS, flow="two", weight=2.0)
    (worker,) = stage.workers
    for _ in range(9):
        worker.finish(worker.has[len(worker.has) - 2])
    waiting = worker.has[3:]
    heavy = sum(number % 2 == 0 for number in waiting)
    assert heavy == pytest.approx(2 / 3 * len(waiting), abs=1)


def test_what_a_dead_worker_had_is_given_to_another(scene):
    """In the order in which it came, and once."""
    stage = scene(2)
    future = stage.submit(flow="a")
    owner = next(worker for worker in stage.workers if worker.has)
    other = next(worker for worker in stage.workers if worker is not owner)
    owner.die()
    assert other.has == [1]
    owner.finish(1)  # a message that was still on its way
    assert not future.done()
    other.finish(1)
    assert future.done()
    assert stage.pool.counters["redone"] == 1
    stage.wait_for(lambda: len(stage.workers) == 3)


def test_what_a_dead_worker_had_is_done_before_what_came_later(scene):
    """A batch that waits behind it, however long, does not come first: its job would not end."""
    stage = scene(1)
    for _ in range(6):
        stage.submit(ROWS, flow="job")
    (first,) = stage.workers
    assert first.has == [1, 2]
    first.die()
    second = stage.started(2)
    stage.wait_for(lambda: len(second.has) == 2)
    assert second.has == [1, 2]


def test_work_that_was_there_at_two_deaths_runs_alone_and_after_three_is_given_up(scene):
    """The neighbour is not blamed: alone, it comes through."""
    stage = scene(1)
    deadly, neighbour = stage.submit(flow="a"), stage.submit(flow="b")
    for count in (1, 2):
        worker = stage.started(count)
        stage.wait_for(lambda worker=worker: len(worker.has) == 2)
        worker.die()
    third = stage.started(3)
    stage.wait_for(lambda: third.has == [1])
    third.die()
    with pytest.raises(InternalError, match="3 times a worker was killed by SIGKILL"):
        deadly.result(0)
    fourth = stage.started(4)
    stage.wait_for(lambda: fourth.has == [2])
    fourth.finish(2)
    assert neighbour.done()


def test_work_that_was_there_at_two_deaths_waits_for_a_worker_of_its_own(scene):
    """What a worker has already must not die with it."""
    stage = scene(1)
    stage.submit(flow="a")
    for count in (1, 2):
        worker = stage.started(count)
        stage.wait_for(lambda worker=worker: worker.has == [1])
        stage.first = None if count == 2 else "ready"
        worker.die()
    stage.wait_for(lambda: len(stage.workers) == 3)
    stage.submit(flow="b")
    third = stage.workers[2]
    third.listener.heard(Ready("third", ROWS))
    assert third.has == [2]
    third.finish(2)
    assert third.has == [2, 1]


def test_the_loss_of_a_cluster_is_nobodys_fault(scene):
    """However often its head is killed, work is not given up for it."""
    stage = scene(1)
    stage.submit()
    for count in range(1, 6):
        worker = stage.started(count)
        stage.wait_for(lambda worker=worker: worker.has == [1])
        worker.die(blame=False)
    last = stage.started(6)
    stage.wait_for(lambda: last.has == [1])


def test_a_worker_that_cannot_start_is_told_at_once(scene):
    """By its own error."""
    with pytest.raises(BundleInvalid, match="a tensor is missing"):
        scene(1, first=Broken(BundleInvalid("a tensor is missing")))


def test_accepted_work_waits_for_a_while_and_may_then_be_tried_again(scene, monkeypatch):
    """No worker can be started: the operator reads why, and the caller gets an error that asks for another try."""
    stage = scene(1)
    future = stage.submit()
    stage.refusal = NotReady("no head answers")
    monkeypatch.setattr(starts, "PATIENCE_S", 0.2)
    stage.workers[0].die(blame=False)
    with pytest.raises(NotReady, match="no head answers") as caught:
        future.result(10)
    assert caught.value.retry_after_s
    assert "no head answers" in stage.pool.problem
    with pytest.raises(NotReady):
        stage.submit().result(0)
    stage.refusal = None
    stage.started(2)
    assert stage.pool.problem is None
    stage.submit()
    assert stage.workers[1].has == [3]


def test_work_waits_longer_for_a_worker_that_is_on_its_way(scene, monkeypatch):
    """A model may take a while to load: nothing is wrong yet."""
    stage = scene(1)
    future = stage.submit()
    monkeypatch.setattr(starts, "PATIENCE_S", 0.0)
    stage.first = None  # it says nothing for now
    stage.workers[0].die()
    stage.wait_for(lambda: len(stage.workers) == 2)
    threading.Event().wait(0.3)
    assert not future.done()
    stage.workers[1].listener.heard(Ready("late", ROWS))
    assert stage.workers[1].has == [1]


def test_cancelling_is_sent_to_who_has_the_work_and_ends_what_waits(scene):
    stage = scene(1)
    controls = [Control() for _ in range(3)]
    futures = [stage.submit(2 * ROWS, flow="job", control=control) for control in controls]
    (worker,) = stage.workers
    assert worker.has == [1]
    controls[0].cancel()
    controls[2].cancel()
    assert worker.sent[-1] == Cancel(1)
    with pytest.raises(Cancelled):
        futures[2].result(10)
    assert not futures[1].done()


def test_a_retiring_worker_finishes_and_is_ended(scene):
    """It is given nothing more."""
    stage = scene(2)
    for _ in range(2):
        stage.submit()
    stage.pool.resize(1)
    stage.wait_for(lambda: len(stage.pool.workers()) == 1)
    stage.submit()
    leaving = next(worker for worker in stage.workers if len(worker.has) == 1)
    assert not leaving.ended
    leaving.finish(leaving.has[0])
    stage.wait_for(lambda: leaving.ended)


def test_steps_are_told_until_the_work_is_over(scene):
    stage, told, control = scene(1), [], Control()
    stage.submit(on_step=lambda done, of: told.append((done, of)), control=control)
    listener = stage.workers[0].listener
    listener.heard(Step(1, 3, 10))
    control.cancel()
    listener.heard(Step(1, 4, 10))
    assert told == [(3, 10)]


def test_what_is_raised_when_a_step_is_told_ends_that_work_alone(scene):
    """As in a batcher; the worker gives it up and continues with the others."""
    stage = scene(1)

    def fail(done, of):
        raise OSError("the disk failed")

    failing, other = stage.submit(on_step=fail), stage.submit()
    (worker,) = stage.workers
    worker.listener.heard(Step(1, 3, 10))
    with pytest.raises(OSError, match="the disk failed"):
        failing.result(0)
    assert worker.sent[-1] == Cancel(1)
    worker.finish(1)  # it had ended before it was told
    worker.finish(2)
    assert other.result(0).shape == (1, 2)


def test_a_busy_worker_is_asked_for_a_sign_of_life_and_ended_without_one(scene, monkeypatch):
    """An idle one is not asked; one that answers keeps its work, however long that takes."""
    monkeypatch.setattr(hanging, "ASK_EVERY_S", 0.02)
    monkeypatch.setattr(hanging, "SILENT_S", 2.0)  # a busy machine is no worker that hangs
    monkeypatch.setattr(pool, "LOOK_EVERY_S", 0.02)
    stage = scene(2)
    future = stage.submit()
    busy, idle = sorted(stage.workers, key=lambda worker: -len(worker.has))
    busy.answers = True
    stage.wait_for(lambda: len([each for each in busy.sent if isinstance(each, Ping)]) > 40)
    assert not busy.ended
    busy.answers = False
    stage.wait_for(lambda: busy.ended)
    assert not [each for each in idle.sent if isinstance(each, Ping)]
    busy.die()
    assert idle.has == [1]
    idle.finish(1)
    assert future.result(1).shape == (1, 2)


def test_a_caller_does_not_wait_for_a_worker_that_does_not_end_cancelled_work(scene, monkeypatch):
    """Its rows stay the worker's: it is given no more until it lets go, and what it says later is nobody's."""
    monkeypatch.setattr(books, "GRACE_S", 0.05)
    stage = scene(1)
    control = Control()
    future = stage.submit(2 * ROWS, flow="a", control=control)
    control.cancel()
    with pytest.raises(Cancelled):
        future.result(5)
    (worker,) = stage.workers
    waiting = stage.submit(ROWS, flow="a")
    assert worker.has == [1]
    worker.finish(1)
    assert worker.has == [1, 2]
    worker.finish(2)
    assert waiting.result(1).shape == (1, 2)
