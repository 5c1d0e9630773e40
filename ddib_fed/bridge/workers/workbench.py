"""What runs in a worker: a model and a batcher of its own, which do whole trajectories and tell of their steps.

How messages get here and answers away is the caller's: a pipe (`processes`), or the calls of an actor (`ray_actors`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.engine.trajectory import Ending, Trajectory
from ddib_fed.bridge.engine.warm import Recipe
from ddib_fed.bridge.workers.process import portable

TELL_EVERY_S: Final = 0.1
"""Steps of one trajectory are reported at most so often, and the last one always."""


@dataclass(frozen=True, slots=True, eq=False)
class Do:
    """Do a trajectory, within `remaining_s` if that is a number."""

    number: int
    trajectory: Trajectory
    remaining_s: float | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give a trajectory up at its next step."""

    number: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Give a sign of life."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a `Ping`."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is warm; `rows` is how many one network call takes best."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Broken:
    """The worker could not start."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Step:
    """So many evaluations of a trajectory are done."""

    number: int
    done: int
    of: int


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """Where a trajectory ends (N, *sample_shape), after so many evaluations of it."""

    number: int
    x: Tensor
    evaluations: int
    calls: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """Why a trajectory did not come to its end; figures as in `Done`."""

    number: int
    error: Exception
    calls: int
    rows: int


class Workbench:
    """A model that does what messages ask."""

    def __init__(self, recipe: Recipe, name: str, tell: Callable[[Any], object]) -> None:
        self._executor = recipe.warm().batcher
        self._tell = tell
        self._lock = threading.Lock()
        self._controls: dict[int, Control] = {}
        self._told = {"calls": 0, "rows": 0}
        self._figures()  # the warm-up is nobody's
        tell(Ready(name, self._executor.rows))

    def take(self, message: Do | Cancel | Ping) -> None:
        """Begin or give up a trajectory; returns at once, and reports what goes wrong."""
        if isinstance(message, Ping):
            self._tell(Pong())
            return
        if isinstance(message, Cancel):
            control = self._controls.get(message.number)
            if control is not None:
                control.cancel()
            return
        try:
            self._begin(message)
        except Exception as error:  # noqa: BLE001 - the error belongs to the caller
            self._tell(Failed(message.number, portable(error), 0, 0))

    def _begin(self, message: Do) -> None:
        deadline = None if message.remaining_s is None else time.monotonic() + message.remaining_s
        control = self._controls[message.number] = Control(deadline)
        future = self._executor.submit(
            message.trajectory, control=control, on_step=self._teller(message.number)
        )
        future.add_done_callback(lambda _: self._answer(message.number, future))

    def close(self) -> None:
        """Give everything up."""
        for control in list(self._controls.values()):
            control.cancel()
        self._executor.close()

    def _answer(self, number: int, done: Ending) -> None:
        """Tell how it ended; called back by the future, which would swallow an error of this."""
        self._controls.pop(number, None)
        error = done.exception()
        calls, rows = self._figures()
        if error is None:
            try:
                self._tell(Done(number, done.result().cpu(), done.evaluations, calls, rows))
            except OSError:
                raise  # whoever asked is gone
            except Exception as untold:  # noqa: BLE001 - out of memory: whoever asked must hear
                error = untold
        if isinstance(error, Exception):
            self._tell(Failed(number, portable(error), calls, rows))

    def _figures(self) -> tuple[int, int]:
        with self._lock:
            now, before = self._executor.counters, self._told
            self._told = {key: now[key] for key in before}
            return now["calls"] - before["calls"], now["rows"] - before["rows"]

    def _teller(self, number: int) -> Callable[[int, int], None]:
        last = 0.0

        def tell(done: int, of: int) -> None:
            nonlocal last
            now = time.monotonic()
            if done == of or now - last >= TELL_EVERY_S:
                last = now
                self._tell(Step(number, done, of))

        return tell
