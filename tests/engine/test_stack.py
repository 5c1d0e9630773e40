"""Whoever is stepped with whom, in whatever order, ends where it would end alone."""

from __future__ import annotations

import random

import pytest
import torch

from ddib_fed.diffusion.denoiser import Condition, Denoiser
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.schedule import LinearSchedule
from ddib_fed.diffusion.solvers import recurrence_of
from ddib_fed.engine.batcher import _stack_of
from ddib_fed.engine.party import Control
from ddib_fed.engine.stack import Integration, Running, Trajectory
from ddib_fed.networks.mlp import ResidualMLP

STEPS = 6
SETTINGS = SolverSettings(evaluations=STEPS)
PLAN = plan(SETTINGS, LinearSchedule())
RECURRENCE = recurrence_of(PLAN.encoder, STEPS)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    network = ResidualMLP(width=16, blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Denoiser(network)


class Member(Running):
    """A trajectory under way, with where it has to end."""

    def __init__(self, denoiser: Denoiser, rows: int, seed: int, cond: Condition = None) -> None:
        x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))
        super().__init__(Trajectory("encode", x, SETTINGS), Control(), None, seed)
        self.begin(Integration(x, PLAN.encoder(x), denoiser, STEPS, cond, RECURRENCE))
        self.expected = alone(denoiser, x, cond)
        self.end: torch.Tensor | None = None


class Told(torch.nn.Module):
    """Answers each row with its class."""

    def forward(self, x, times, rows=None, y=None):
        return torch.zeros_like(x) + y.float()[:, None]


def alone(denoiser: Denoiser, x: torch.Tensor, cond: Condition = None) -> torch.Tensor:
    solver = PLAN.encoder(x.clone())
    query = next(solver)
    with torch.no_grad():
        try:
            while True:
                query = solver.send(denoiser(query.x, query.level, cond))
        except StopIteration as stop:
            return stop.value


def turn(*members: Member) -> None:
    """One step of these together, as the engine takes it."""
    stack = _stack_of(list(members))
    with torch.no_grad():
        stack.advance(stack.evaluate())
    for member in members:
        member.step += 1
        if member.step == STEPS:
            member.end = member.state().clone()
            member.close()


def check(*members: Member) -> None:
    for member in members:
        torch.testing.assert_close(member.end, member.expected, atol=1e-5, rtol=1e-5)


def test_who_takes_the_rows_of_one_that_ended_is_told_its_own_class() -> None:
    """A job's class is never another job's."""
    told = Denoiser(Told(), parameterisation="v")
    first, second, late = (Member(told, 2, n, {"y": torch.full((2,), n + 1)}) for n in range(3))
    turn(first)
    while first.end is None:
        turn(first, second)
    kept = second.stack
    turn(second, late)
    assert late.stack is kept
    while late.end is None:
        turn(late)
    check(first, second, late)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_turns_gives_what_each_gives_alone(denoiser: Denoiser, seed: int) -> None:
    """Members come, wait, are stepped with ever others, and end; the rest of an earlier group often goes on."""
    chance = random.Random(seed)
    waiting = [Member(denoiser, 2, 100 * seed + number) for number in range(12)]
    everyone, there = list(waiting), []
    while waiting or there:
        while waiting and len(there) < 5:
            there.append(waiting.pop())
        group = chance.sample(there, chance.randint(1, min(3, len(there))))
        for _ in range(chance.randint(1, 4)):
            turn(*group)
            there = [member for member in there if member.end is None]
            fresh = [member for member in there if member.step == 0 and member not in group]
            group = [member for member in group if member.end is None] + fresh[: chance.randint(0, 1)]
            if not group:
                break
    check(*everyone)
