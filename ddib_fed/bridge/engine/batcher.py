"""Continuous batching: one worker thread steps the trajectories of all requests, merging their network calls.

Whoever waits when a turn begins may be in that turn's call: trajectories join and leave at any step, each row with its
own level, class and weights. `flows` says who runs next and who is merged with it, `stack` steps them as one. Only the
worker starts, advances or closes a trajectory. Progress, cancelling and deadlines are looked at before each evaluation.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import torch

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.engine.flows import Cost, Flows
from ddib_fed.bridge.engine.stack import Running, Stack
from ddib_fed.bridge.engine.trajectory import Ending, Trajectory
from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.bridge.threads import runs_in_real_time
from ddib_fed.diffusion.bridge import OnStep
from ddib_fed.errors import DdibError, Draining

log = logging.getLogger(__name__)

ROWS = 2_048
LONG_S = 0.002
"""A call after which, under a real-time policy, other threads are let run."""
REST = 0.03
"""For how long, as a part of the call."""
LATELY = 10
"""Calls for which work is taken to be arriving after the last that came, and results to be leaving."""


class Batcher:
    """Integrates trajectories on one thread, merging their network calls."""

    width = 1
    beside = True

    def __init__(
        self,
        model: DomainModel,
        *,
        rows: int = ROWS,
        cost: Cost | None = None,
        flows: int = 64,
        threads: int | None = None,
    ) -> None:
        self._model = model
        self.rows = rows
        self.threads = threads
        self._flows = Flows(rows, cost or (lambda count: count + rows / 8), flows)
        self._inbox: deque[Running] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._submitted = self._calls = self._evaluated = 0
        self._took = 0.0
        self._arrived = self._ended = self._filled = 0
        self._stack: Stack | None = None
        """Of the last turn."""
        self._cancelled = self._real_time = False
        self._due = math.inf
        """When the first deadline passes."""
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def counters(self) -> Mapping[str, int]:
        return {"calls": self._calls, "rows": self._evaluated}

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Ending:
        with self._wake:
            if self._closed:
                raise Draining("the engine is closed")
            self._submitted += 1
            running = Running(trajectory, control or Control(), on_step, self._submitted)
            self._inbox.append(running)
            self._wake.notify()
        return running.future

    def close(self) -> None:
        """Stop after the current turn; what is unfinished fails with `Draining`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        self._real_time = runs_in_real_time()
        try:
            with torch.no_grad():
                while self._take_in():
                    self._sweep()
                    if len(self._flows):
                        self._turn(self._flows.choose())
                        self._give_way()
        except BaseException:
            # Without this, callers would wait for their futures for ever.
            log.exception("the engine's worker failed; nothing more is computed until the node is restarted")
        finally:
            self._give_up()

    def _take_in(self) -> bool:
        """Take what was submitted; waits for something to do. False when closed."""
        if len(self._flows) and not self._inbox:
            return not self._closed
        with self._wake:
            while not self._closed and not self._inbox and not len(self._flows):
                self._stack = None
                self._wake.wait()
            fresh = list(self._inbox)
            self._inbox.clear()
        if fresh:
            self._arrived = self._calls
        for running in fresh:
            self._flows.add(running)
            self._expect(running.control)
            running.watch = running.control.interrupting(self._somebody_cancelled)
            running.watch.__enter__()
        return not self._closed

    def _give_way(self) -> None:
        """Under a real-time policy, let those threads run that bring work and take results away."""
        calls = self._calls
        if self._took < LONG_S or not self._real_time:
            return
        if calls - self._ended < LATELY or (self._filled < self.rows and calls - self._arrived < LATELY):
            with self._wake:
                if not self._inbox and not self._closed:
                    self._wake.wait(REST * self._took)
        else:
            os.sched_yield()

    def _sweep(self) -> None:
        """Fail whoever was cancelled or is late, also those that wait."""
        if not self._cancelled and (self._due == math.inf or time.monotonic() <= self._due):
            return
        self._cancelled, self._due = False, math.inf
        for running in self._flows:
            try:
                running.control.check()
            except DdibError as error:
                self._fail(running, error)
            else:
                self._expect(running.control)

    def _expect(self, control: Control) -> None:
        if control.deadline is not None:
            self._due = min(self._due, control.deadline)

    def _somebody_cancelled(self) -> None:
        self._cancelled = True

    def _turn(self, chosen: Sequence[Running]) -> None:
        """Evaluate the network once for all chosen and advance each by one step."""
        alive, stack = chosen, self._stack
        if stack is None or chosen is not stack.chosen:
            begun = [running for running in chosen if running.work is not None or self._has_begun(running)]
            if not begun:
                return
            alive = chosen if len(begun) == len(chosen) else begun
            stack = None
        try:
            stack = stack or _stack_of(alive)
            started = time.monotonic()
            velocity = stack.evaluate()
            self._took, self._filled = time.monotonic() - started, len(stack.x)
            self._flows.charge(alive)
            stack.advance(velocity)
        except Exception as error:  # noqa: BLE001 - out of memory, a broken device: the waiting calls must hear
            for running in alive:
                self._fail(running, error)
            return
        self._stack = stack
        self._calls += 1
        self._evaluated += len(stack.x)
        for running in alive:
            running.step += 1
            if running.on_step is not None or running.step == running.evaluations:
                self._advance(running)
        for running in stack.driven:
            self._drive(running, stack, velocity)

    def _has_begun(self, running: Running) -> bool:
        """Begin a trajectory whose first turn it is; False when it ended at once, or cannot be done."""
        try:
            running.begin(running.trajectory.on(self._model))
        except StopIteration as stop:
            self._end(running, stop.value)
        except Exception as error:  # noqa: BLE001 - any failure goes to the caller's future
            self._fail(running, error)
        else:
            return True
        return False

    def _advance(self, running: Running) -> None:
        """Tell of a step that was taken, and end a trajectory whose last it was."""
        try:
            if running.on_step is not None:
                running.on_step(running.step, running.evaluations)
            if running.recurrence is not None and running.step == running.evaluations:
                # Not a view: it would hold the rows of all.
                self._end(running, running.state().clone())
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(running, error)

    def _drive(self, running: Running, stack: Stack, velocity: torch.Tensor) -> None:
        """Send a generator its answer, and lay its rows where it asks next."""
        if running.future.done():
            return
        try:
            stack.rows_of(stack.x, running).copy_(running.drive(stack.rows_of(velocity, running)))
        except StopIteration as stop:
            self._end(running, stop.value)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(running, error)

    def _end(self, running: Running, result: torch.Tensor) -> None:
        self._flows.remove(running)
        self._ended = self._calls
        running.future.end(result, running.step)
        running.close()

    def _fail(self, running: Running, error: Exception) -> None:
        self._flows.remove(running)
        running.future.set_exception(error)
        running.close()

    def _give_up(self) -> None:
        """Fail what is unfinished, and take nothing more."""
        with self._wake:
            self._closed = True
            waiting: Iterable[Running] = [*self._flows, *self._inbox]
        for running in waiting:
            running.future.set_exception(Draining("the engine was closed"))
            running.close()


def _stack_of(chosen: Sequence[Running]) -> Stack:
    stack = next((running.stack for running in chosen if running.stack is not None), None)
    return stack if stack is not None and stack.holds(chosen) else Stack(chosen)
