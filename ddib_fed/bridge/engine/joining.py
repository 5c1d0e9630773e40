"""Futures of work in several pieces: row ranges that are joined, and a second leg that follows a first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.engine.executors import Executor
from ddib_fed.bridge.engine.trajectory import Ending, Trajectory
from ddib_fed.diffusion.bridge import OnStep

_First = TypeVar("_First")
_Second = TypeVar("_Second")


def submit_ranges(
    executor: Executor, trajectory: Trajectory, *, control: Control | None, on_step: OnStep | None
) -> Ending:
    """Submit a trajectory as ranges of rows that a call takes; the future gives all rows, in their order."""
    most = max(1, executor.rows // trajectory.doubled) if executor.beside else executor.rows
    starts = range(0, trajectory.rows, most)
    if len(starts) == 1:
        return executor.submit(trajectory, control=control, on_step=on_step)
    tell = None if on_step is None else _Together(on_step, len(starts))
    futures: list[Ending] = []
    for start in starts:
        part = trajectory.part(start, min(start + most, trajectory.rows))
        futures.append(executor.submit(part, control=control, on_step=tell))
        if futures[-1].done() and futures[-1].exception() is not None:
            return futures[-1]
    return _joined(futures)


def then(first: Future[_First], following: Callable[[_First], Future[_Second]]) -> Future[_Second]:
    """What `following` makes of the first's result; no thread waits for it. An error of either is the future's."""
    whole: Future[_Second] = Future()

    def hand_over(second: Future[_Second]) -> None:
        error = second.exception()
        if error is None:
            whole.set_result(second.result())
        else:
            whole.set_exception(error)

    def go_on(done: Future[_First]) -> None:
        try:
            following(done.result()).add_done_callback(hand_over)
        except BaseException as error:  # noqa: BLE001 - only the future can carry it to its caller
            whole.set_exception(error)

    first.add_done_callback(go_on)
    return whole


def done(result: _First) -> Future[_First]:
    """A future that has its result."""
    future: Future[_First] = Future()
    future.set_result(result)
    return future


class _Together:
    """Evaluations of several ranges as one count."""

    def __init__(self, on_step: OnStep, ranges: int) -> None:
        self._on_step, self._ranges = on_step, ranges
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, done: int, of: int) -> None:  # noqa: ARG002 - of one range
        with self._lock:
            self._done += 1
            self._on_step(self._done, self._ranges * of)


def _joined(futures: Sequence[Ending]) -> Ending:
    """All rows, after the fewest evaluations of any, or the first error there is."""
    whole = Ending()
    left = len(futures)
    failed = False
    lock = threading.Lock()

    def one_done(future: Future[Tensor]) -> None:
        nonlocal left, failed
        error = future.exception()
        with lock:
            left -= 1
            last = left == 0 and not failed
            first = error is not None and not failed
            failed = failed or error is not None
        if first:
            whole.set_exception(error)
        elif last:
            try:
                rows = torch.cat([each.result() for each in futures])
            except Exception as error:  # noqa: BLE001 - out of memory: a callback's error is only logged, and this is the only answer
                whole.set_exception(error)
            else:
                whole.end(rows, min(each.evaluations for each in futures))

    for future in futures:
        future.add_done_callback(one_done)
    return whole
