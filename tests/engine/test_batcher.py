"""Merging many trajectories into few network calls changes nothing but the number of calls."""

from __future__ import annotations

import math
import random
import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.solvers import integrate
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control, Leg
from ddib_fed.engine.stack import End, Trajectory
from ddib_fed.errors import Cancelled, DeadlineExceeded, Draining
from ddib_fed.models.bundle import pretrained
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
    work = trajectory.on(model)
    return integrate(work.solver, work.denoiser)


def check(model: DomainModel, trajectory: Trajectory, future: Future[End]) -> None:
    torch.testing.assert_close(future.result(20).x, alone(model, trajectory), atol=2e-5, rtol=2e-5)


class Gate:
    """Holds the worker at the first step, so that what comes meanwhile is merged."""

    def __init__(self, batcher: Batcher) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        self.held = batcher.submit(decoding(1, 99), on_step=self._hold)
        assert self._entered.wait(10)

    def _hold(self, step: int, _: int) -> None:
        if step == 1:
            self._entered.set()
            self._open.wait(10)

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
    assert bad.result(20).x.isnan().all()
    for future in later:
        check(model, decoding(2, 3), future)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_any_order_of_requests_gives_what_each_gives_alone(seed: int) -> None:
    """Pictures of several classes, sizes and lengths come at random, and each has its own class."""
    model, chance = DomainModel(tiny("north", seed=1, num_classes=3)), random.Random(seed)
    batcher = Batcher(model, rows=6)
    generator = torch.Generator().manual_seed(seed)
    work = [
        Trajectory(
            chance.choice(("encode", "decode")),
            torch.randn(rows := chance.randint(1, 4), *model.sample_shape, generator=generator),
            Leg(SolverSettings(evaluations=chance.choice((3, 6))), flow=chance.choice("abc")),
            np.full(rows, chance.randrange(3)),
        )
        for _ in range(12)
    ]
    futures = []
    for each in work:
        futures.append(batcher.submit(each))
        time.sleep(chance.choice((0.0, 0.0, 0.005)))
    for each, future in zip(work, futures, strict=True):
        torch.testing.assert_close(future.result(20).x, alone(model, each), atol=1e-4, rtol=1e-4)
    batcher.close()


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
        bad.result(10)
    parts = [alone(model, works[0].part(start, stop)) for start, stop in ((0, 2), (2, 5))]
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
        late.result(10)
    with pytest.raises(Cancelled, match="the client left"):
        over.result(10)
    check(model, decoding(2, 1), good)


def test_closing_fails_what_is_unfinished(model) -> None:
    batcher = Batcher(model, rows=1)
    gate = Gate(batcher)
    waiting = batcher.submit(decoding(1))
    threading.Timer(0.1, gate.open).start()
    batcher.close()
    for future in (gate.held, waiting):
        with pytest.raises(Draining):
            future.result(10)
    with pytest.raises(Draining):
        batcher.submit(decoding(1))


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


def test_progress_is_told_after_each_step(model, batcher) -> None:
    steps: list[tuple[int, int]] = []
    batcher.submit(decoding(1), on_step=lambda *at: steps.append(at)).result(10)
    assert steps == [(step, 12) for step in range(1, 13)]
    part = replace(decoding(5), label=np.arange(5)).part(1, 3)
    assert (part.rows, part.label.tolist()) == (2, [1, 2])
