"""Merging many trajectories into few network calls changes nothing but the number of calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch

from ddib_fed.diffusion.denoiser import Denoiser, Query
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.schedule import LinearSchedule
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control
from ddib_fed.engine.stack import Integration, Trajectory
from ddib_fed.errors import Cancelled, DeadlineExceeded, Draining
from ddib_fed.networks.mlp import ResidualMLP
from tests.node.tiny_nodes import tiny_bundle
from tests.source_node.conftest import wait_until

SETTINGS = SolverSettings(evaluations=12)
PLAN = plan(SETTINGS, LinearSchedule())
PLAN_LEVEL = next(PLAN.encoder(torch.zeros(1, 2))).level


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    network = ResidualMLP(width=32, blocks=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Denoiser(network)


@dataclass(frozen=True, eq=False)
class Given(Trajectory):
    """A trajectory whose solver and network are the test's."""

    work: Integration | None = None

    @property
    def kind(self):
        return self.work.denoiser, self.work.cond is None

    def on(self, model: DomainModel) -> Integration:
        return self.work


def submit(
    batcher: Batcher,
    denoiser: Denoiser,
    x: torch.Tensor,
    *,
    solver=None,
    cond=None,
    flow="",
    weight=1.0,
    recurrence=None,
    **options,
) -> Future[torch.Tensor]:
    work = Integration(x, solver or PLAN.encoder(x, cond), denoiser, 12, cond, recurrence)
    return batcher.submit(Given("encode", x, SETTINGS, flow=flow, weight=weight, work=work), **options)


def make_batcher(**options) -> Batcher:
    return Batcher(DomainModel(tiny_bundle()), **options)


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    made = make_batcher(rows=64)
    yield made
    made.close()


def points(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))


def alone(denoiser: Denoiser, x: torch.Tensor) -> torch.Tensor:
    solver = PLAN.encoder(x)
    query = next(solver)
    try:
        while True:
            with torch.no_grad():
                answer = denoiser(query.x, query.level)
            query = solver.send(answer)
    except StopIteration as stop:
        return stop.value


class Gate:
    """Holds the worker at the first step, so that what comes meanwhile is merged."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, step: int, steps: int) -> None:
        if step == 1:
            self.entered.set()
            self.open.wait(10)


@pytest.mark.slow
def test_merged_trajectories_give_what_each_gives_alone(batcher: Batcher, denoiser: Denoiser) -> None:
    """Requests of several sizes, in different steps of their way, agree with one-at-a-time to 1e-5."""
    gate = Gate()
    clouds = [points(rows, rows) for rows in (1, 3, 8, 20, 50)]
    first = submit(batcher, denoiser, points(1, 99), on_step=gate)
    assert gate.entered.wait(10)
    futures = [submit(batcher, denoiser, cloud) for cloud in clouds]
    gate.open.set()
    for future, cloud in zip(futures, clouds, strict=True):
        torch.testing.assert_close(future.result(10), alone(denoiser, cloud), atol=1e-5, rtol=1e-5)
    first.result(10)
    assert batcher.counters["calls"] < 12 * (1 + len(clouds))


def test_one_failing_trajectory_leaves_the_others_alone(batcher: Batcher, denoiser: Denoiser) -> None:
    """A callback that raises ends its own trajectory only."""

    def fail(step: int, steps: int) -> None:
        raise RuntimeError("boom")

    bad = submit(batcher, denoiser, points(4, 1), on_step=fail)
    good = submit(batcher, denoiser, points(4, 2))
    with pytest.raises(RuntimeError, match="boom"):
        bad.result(10)
    assert good.result(10).shape == (4, 2)


def test_a_deadline_that_passes_on_the_way_ends_that_trajectory_only(
    batcher: Batcher, denoiser: Denoiser
) -> None:
    """At the next step, beside one that goes on; so do later deadlines."""
    soon, late = Control(time.monotonic() + 1.5), Control(time.monotonic() + 3.0)
    gate, steps = Gate(), []

    def pass_a_deadline(step: int, _: int) -> None:
        if step in {3, 6}:
            wait_until(lambda: (soon if step == 3 else late).over)

    first = submit(batcher, denoiser, points(1, 0), on_step=gate)
    assert gate.entered.wait(10)
    good = submit(batcher, denoiser, points(2, 1), on_step=pass_a_deadline)
    ended = [
        submit(batcher, denoiser, points(2, 2), control=control, on_step=lambda *at: steps.append(at))
        for control in (soon, late)
    ]
    gate.open.set()
    for future in ended:
        with pytest.raises(DeadlineExceeded):
            future.result(10)
    torch.testing.assert_close(good.result(10), alone(denoiser, points(2, 1)), atol=1e-5, rtol=1e-5)
    first.result(10)
    assert [[step for step, _ in steps].count(number) for number in (3, 4)] == [2, 1]
    assert max(step for step, _ in steps) == 6


def test_generators_are_closed_when_the_batcher_is(denoiser: Denoiser) -> None:
    """Closing fails what is unfinished with `Draining` and closes its generators."""
    gate = Gate()
    batcher = make_batcher()
    running = submit(batcher, denoiser, points(1, 0), on_step=gate)
    assert gate.entered.wait(10)
    waiting = submit(batcher, denoiser, points(1, 0))
    threading.Timer(0.1, gate.open.set).start()
    batcher.close()
    for future in (running, waiting):
        with pytest.raises(Draining):
            future.result(10)
    with pytest.raises(Draining):
        submit(batcher, denoiser, points(1, 0))


def test_a_worker_that_dies_leaves_nobody_waiting(denoiser: Denoiser, caplog) -> None:
    """A generator that breaks the worker itself ends every future, and nothing more is taken."""

    def stubborn():  # refuses to be closed
        for _ in range(2):
            with suppress(GeneratorExit):
                while True:
                    yield Query(points(1, 0), PLAN_LEVEL, None)

    gate, control = Gate(), Control()
    batcher = make_batcher(rows=1)
    bystander = submit(batcher, denoiser, points(1, 0), on_step=gate)
    assert gate.entered.wait(10)
    bad = submit(
        batcher,
        denoiser,
        points(1, 0),
        solver=stubborn(),
        control=control,
        on_step=lambda *_: control.cancel(),
    )
    gate.open.set()
    for future in (bad, bystander):
        with pytest.raises((Cancelled, Draining)):
            future.result(10)
    with pytest.raises(Draining):
        submit(batcher, denoiser, points(1, 0)).result(10)
    assert "worker failed" in caplog.text


class Told(torch.nn.Module):
    """Answers each row with the number in its condition."""

    def forward(self, x, times, rows=None, y=None):
        return x * 0 if y is None else torch.full_like(x, 0) + y.float()[:, None] / 100


@pytest.mark.slow
def test_each_row_is_told_its_own_class_in_a_merged_call() -> None:
    """Rows without a class and rows with one are never in one call."""
    batcher, told = make_batcher(rows=64), Denoiser(Told(), parameterisation="v")
    gate = Gate()

    def ask(label: int | None, **options):
        cond = None if label is None else {"y": torch.full((3,), label)}
        return submit(batcher, told, points(3, 0), cond=cond, **options)

    gated = ask(None, on_step=gate)
    assert gate.entered.wait(10)
    merged = [ask(label) for label in (1, 2, None)]
    gate.open.set()
    first, second, none = (future.result(10) for future in merged)
    calls = batcher.counters["calls"]
    for label, found in ((1, first), (2, second), (None, none)):
        torch.testing.assert_close(ask(label).result(10), found, atol=1e-5, rtol=0)
    batcher.close()
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, none)
    assert calls <= 12 * 2 + 1
    gated.result(10)
