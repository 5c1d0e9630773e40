"""Merging trajectories into few network calls changes nothing but their number; whose rows run next, and how many.

Fair between flows by cost and weight, the oldest first, merged where nobody waits for it.
"""

import math
import threading
import time
from collections import Counter
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Batcher, Recipe, Scheduler, measured, sweep
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control, Leg
from ddib_fed.engine.stack import End, Member, Trajectory
from ddib_fed.errors import Cancelled, DeadlineExceeded, Draining
from ddib_fed.models.bundle import pretrained
from ddib_fed.record import Guidance
from tests.node.tiny_nodes import tiny_bundle
from tests.runs.tiny_models import tiny

SETTINGS = SolverSettings(evaluations=12)


@pytest.fixture(scope="module")
def model() -> DomainModel:
    return DomainModel(pretrained("moons"))


@pytest.fixture
def batcher(model):
    made = Batcher(model, rows=64)
    yield made
    made.close()


def points(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))


def decoding(rows: int, seed: int = 0, settings: SolverSettings = SETTINGS, **leg) -> Trajectory:
    return Trajectory("decode", points(rows, seed), Leg(settings, **leg))


def alone(model: DomainModel, trajectory: Trajectory) -> torch.Tensor:
    return trajectory.on(model).run()


def check(model: DomainModel, trajectory: Trajectory, future: Future[End]) -> None:
    torch.testing.assert_close(future.result(60).x, alone(model, trajectory), atol=2e-5, rtol=2e-5)


class Gate:
    """Holds the worker at the first step, so that what comes meanwhile is merged."""

    def __init__(self, batcher: Batcher) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        self.held = batcher.submit(decoding(1, 99), on_step=self._hold)
        assert self._entered.wait(60)

    def _hold(self, step: int, _: int) -> None:
        if step == 1:
            self._entered.set()
            self._open.wait(60)

    def open(self) -> None:
        self._open.set()


def test_requests_that_join_at_any_step_with_any_solver_give_what_each_gives_alone(model, batcher) -> None:
    """Recurrences of several windows, both ways, in one state: each within rounding."""
    asked = [
        ("encode", SolverSettings(evaluations=12), 1),
        ("decode", SolverSettings(evaluations=9), 3),
        ("decode", SolverSettings(order=2, evaluations=7), 2),
        ("encode", SolverSettings(evaluations=8), 5),
        ("decode", SolverSettings("ddim", evaluations=6), 1),
    ]
    work = [Trajectory(stage, points(rows, rows), Leg(settings)) for stage, settings, rows in asked]
    found: dict[int, Future[End]] = {}

    def another_joins(step: int, _: int) -> None:
        if 0 < step < len(work):
            found[step] = batcher.submit(work[step])

    check(model, work[0], batcher.submit(work[0], on_step=another_joins))
    for number in range(1, len(work)):
        check(model, work[number], found[number])
    assert batcher.counters["calls"] <= 20


def test_a_request_beside_one_that_is_spoilt_gets_what_it_gets_alone(model, batcher) -> None:
    """It gets none of the other's velocities: not even those that no weight makes harmless, NaN."""
    spoilt = Trajectory("decode", torch.full((2, 2), math.nan), Leg(SETTINGS))
    later: list[Future[End]] = []
    good = batcher.submit(decoding(2, 1), on_step=lambda *_: later.append(batcher.submit(decoding(2, 3))))
    bad = batcher.submit(spoilt)
    check(model, decoding(2, 1), good)
    assert bad.result(60).x.isnan().all()
    for future in later:
        check(model, decoding(2, 3), future)


def test_solvers_that_draw_noise_are_merged_too_and_an_error_of_one_is_its_own(model, batcher) -> None:
    settings = SolverSettings("ddim", evaluations=6, eta=0.5)
    noise = np.random.default_rng(0).standard_normal((6, 5, 2)).astype(np.float32)

    def broken(step: int, rows: slice) -> np.ndarray:
        raise RuntimeError("no noise")

    gate = Gate(batcher)
    works = [
        Trajectory("decode", points(5, 1), Leg(settings), draw=lambda step, rows: noise[step][rows]),
        Trajectory("decode", points(5, 1), Leg(settings), draw=broken),
    ]
    good, bad = (batcher.submit(each) for each in works)
    gate.open()
    check(model, works[0], good)
    with pytest.raises(RuntimeError, match="no noise"):
        bad.result(60)
    parts = [alone(model, works[0].part(rows)) for rows in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat(parts), good.result().x, atol=1e-5, rtol=1e-5)


def test_a_deadline_or_cancelling_ends_that_trajectory_only(model, batcher) -> None:
    """At the next step, also of one that only waits."""
    gate = Gate(batcher)
    soon, cancelled = Control(time.monotonic() + 0.05), Control()
    late, over = (batcher.submit(decoding(2, 2), control=control) for control in (soon, cancelled))
    good = batcher.submit(decoding(2, 1))
    cancelled.cancel(Cancelled("the client left"))
    time.sleep(0.06)
    gate.open()
    with pytest.raises(DeadlineExceeded):
        late.result(60)
    with pytest.raises(Cancelled, match="the client left"):
        over.result(60)
    check(model, decoding(2, 1), good)


def test_a_calling_thread_computes_at_the_end_of_what_it_does_together(model) -> None:
    """In merged calls, and nothing of what broke off."""
    batcher = Batcher(model, rows=64, beside=False)
    with batcher.together():
        futures = [batcher.submit(decoding(2, seed)) for seed in range(3)]
        assert not any(future.done() for future in futures)
    assert batcher.counters == {"calls": 12, "rows": 72}
    for seed, future in enumerate(futures):
        check(model, decoding(2, seed), future)
    futures = []

    def broken_off() -> None:
        with batcher.together():
            futures.append(batcher.submit(decoding(2)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    with pytest.raises(Draining):
        futures[0].result()
    assert batcher.counters["calls"] == 12


# Whose rows run next

numbers = iter(range(1_000_000))


def running(rows, flow="", weight=1.0, stage="decode", label=None, **leg):
    leg = Leg(leg.pop("settings", SolverSettings()), flow=flow, weight=weight, **leg)
    return Member(Trajectory(stage, torch.zeros(rows, 2), leg, label), Control(), None, next(numbers))


def flows(*waiting: Member, rows: int = 64, overhead: float = 8.0) -> Scheduler:
    made = Scheduler(rows, lambda count: count + overhead)
    for each in waiting:
        made.add(each)
    return made


def turn(queue: Scheduler) -> list[Member]:
    chosen = queue.choose()
    queue.charge(chosen)
    return chosen


def test_a_call_has_no_more_rows_than_the_budget() -> None:
    """Nor does a flow of its own take more; guided rows count twice."""
    assert len(turn(flows(*[running(30) for _ in range(5)]))) == 2
    assert len(turn(flows(*[running(1, "job") for _ in range(100)]))) == 64
    guided = {"guidance": Guidance(guidance=3.0), "label": np.zeros(1, np.int64)}
    assert len(turn(flows(*[running(1, "job", **guided) for _ in range(100)]))) == 32
    weighed = {"guidance": Guidance(guidance=1.0), "label": np.zeros(1, np.int64)}
    assert len(turn(flows(*[running(1, "job", **weighed) for _ in range(100)]))) == 64


def test_who_needs_another_network_is_not_merged() -> None:
    """Another guidance, another calibration, or classes where the first has none."""
    plain = [running(1) for _ in range(2)]
    others = [
        running(1, guidance=Guidance(guidance=2.0), label=np.zeros(1, np.int64)),
        running(1, stage="encode", settings=SolverSettings(share=0.5)),
    ]
    assert turn(flows(plain[0], *others, plain[1])) == plain


def spent_by(queue: Scheduler, turns: int, *, overhead: float = 8.0) -> Counter[str]:
    """What each owner was given of so many turns."""
    spent: Counter[str] = Counter()
    for _ in range(turns):
        members = turn(queue)
        cost = sum(each.rows for each in members) + overhead
        for each in members:
            spent[each.owner] += cost * each.rows / sum(each.rows for each in members)
    return spent


def test_many_requests_of_one_peer_get_no_more_than_one_of_another() -> None:
    """Half of the time each, however many there are."""
    many = [running(64, f"r{n}", owner="west") for n in range(40)]
    queue = flows(*many, running(50, "job", owner="north"))
    spent = spent_by(queue, 400)
    assert spent["north"] == pytest.approx(spent["west"], rel=0.05)


def test_requests_of_one_call_each_that_follow_one_another_get_no_more_either() -> None:
    """A request that ends leaves its owner's debts: the next one begins with them."""
    queue = flows(running(50, "job", owner="north"))
    west = [running(64, f"r{n}", owner="west") for n in range(38)]
    for each in west:
        queue.add(each)
    spent: Counter[str] = Counter()
    for number in range(600):
        members = turn(queue)
        for each in members:
            spent[each.owner] += each.rows + 8
        for each in [each for each in members if each.owner == "west"]:
            queue.remove(each)
            west.remove(each)
            west.append(running(64, f"s{number}", owner="west"))
            queue.add(west[-1])
    assert spent["north"] == pytest.approx(spent["west"], rel=0.05)


# The size of a network call: the smallest that costs little more a row than the best, measured


class Machine:
    """A clock that a call of so many rows moves on by overhead and rows; memory ends somewhere."""

    def __init__(self, overhead: float, row: float, most: int = 1 << 20) -> None:
        self.now, self.overhead, self.row, self.most = 0.0, overhead, row, most

    def call(self, rows: int):
        def run() -> None:
            if rows > self.most:
                raise torch.OutOfMemoryError
            self.now += self.overhead + rows * self.row

        return run

    def sweep(self, limit_s: float = 100.0) -> dict[int, float]:
        sizes = (1 << n for n in range(20))
        return sweep(sizes, self.call, limit_s=limit_s, clock=lambda: self.now)


def test_a_sweep_ends_in_time_and_before_memory_does() -> None:
    """One size is measured at least, and what does not fit is no error."""
    machine = Machine(0.01, 0.05)
    assert max(machine.sweep(limit_s=1.0)) <= 8
    assert machine.now < 2.0
    assert list(Machine(100.0, 0.0).sweep(limit_s=1.0)) == [1]
    assert max(Machine(1e-4, 1e-6, most=8).sweep()) == 8
    with pytest.raises(torch.OutOfMemoryError):
        Machine(0.1, 0.1, most=0).sweep()


@pytest.mark.parametrize("bundle", [tiny_bundle(), tiny(num_classes=3)], ids=["points", "pictures"])
def test_a_model_is_measured_where_it_works(bundle) -> None:
    """A recipe without a size measures one, and the batcher uses it."""
    budget = measured(DomainModel(bundle), 1, limit_s=0.05)
    assert budget.rows in budget.seconds
    assert all(cost > 0 for cost in budget.seconds.values())
    warm = Recipe(bundle, merge_rows=0, merge_pixels=0, device="cpu", threads=1).warm()
    warm.close()
    assert warm.rows >= 1
