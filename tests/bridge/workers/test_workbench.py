"""A worker answers for each piece of work that it was given, whatever happens to the answer."""

from __future__ import annotations

import queue

import torch

from ddib_fed.bridge.engine.trajectory import Trajectory
from ddib_fed.bridge.engine.warm import Recipe
from ddib_fed.bridge.workers.workbench import Do, Done, Failed, Ready, Workbench
from ddib_fed.diffusion.plans import SolverSettings
from tests.node.tiny_nodes import tiny_bundle


def test_a_result_that_cannot_be_told_is_told_as_a_failure() -> None:
    """There was no memory to send it; whoever waits for it would wait for ever."""
    told: queue.SimpleQueue[object] = queue.SimpleQueue()
    sent: list[Done] = []

    def tell(message: object) -> None:
        if isinstance(message, Done) and not sent:
            sent.append(message)
            raise MemoryError
        told.put(message)

    bench = Workbench(Recipe(tiny_bundle(), device="cpu", threads=1), "one", tell)
    assert isinstance(told.get(timeout=20), Ready)
    answers = []
    for number in (1, 2):
        bench.take(Do(number, Trajectory("decode", torch.ones(3, 2), SolverSettings(evaluations=1)), None))
        answers.append(_answer(told))
    bench.close()
    failed, done = answers
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, MemoryError)
    assert (failed.number, failed.rows) == (1, 3)
    assert isinstance(done, Done)
    assert done.number == 2


def _answer(told: queue.SimpleQueue[object]) -> object:
    while not isinstance(message := told.get(timeout=20), Done | Failed):
        pass
    return message
