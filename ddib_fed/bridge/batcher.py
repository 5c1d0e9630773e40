"""Continuous batching: one worker thread merges the network calls of many solvers, with one noise level for each row.

Continuous batching at the step: whoever is active when a turn begins is merged into that turn's call, up to
`merge_rows` samples; large trajectories run alone, by turns, because merging them further only misses caches
(docs/benchmarks.md). Only the worker advances or closes a generator, and grad mode is never open across a
yield. Progress, cancelling and deadlines are looked at before every evaluation.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from ddib_fed.bridge.control import Control
from ddib_fed.diffusion.denoiser import Condition, Denoiser, Query
from ddib_fed.diffusion.solvers import Solver
from ddib_fed.errors import DdibError, Draining

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]


@dataclass(slots=True, eq=False)
class _Trajectory:
    """One generator on its way, and who waits for it."""

    solver: Solver
    denoiser: Denoiser
    control: Control
    on_step: OnStep | None
    steps: int
    future: Future[torch.Tensor] = field(default_factory=Future)
    step: int = 0
    _query: Query | None = None

    @property
    def query(self) -> Query:
        """What it waits for; there is one once it was started."""
        assert self._query is not None
        return self._query

    @query.setter
    def query(self, query: Query) -> None:
        self._query = query

    @property
    def rows(self) -> int:
        return self.query.x.shape[0]


class Batcher:
    """Drives solver generators on one thread, merging their queries.

    Args:
        merge_rows: Most samples of several trajectories in one call; a single larger trajectory runs alone.
        max_trajectories: Most generators in flight; more wait their turn.
        threads: CPU threads of the network on the worker; None leaves them as they are.
    """

    def __init__(
        self,
        *,
        merge_rows: int = 2_048,
        max_trajectories: int = 16,
        threads: int | None = None,
    ) -> None:
        self._merge_rows = merge_rows
        self._max = max_trajectories
        self.threads = threads
        self._waiting: deque[_Trajectory] = deque()
        self._active: deque[_Trajectory] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self.calls = 0
        self.rows = 0
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    # A trajectory may be larger than any number of others that are merged with it.
    together = 0

    def submit(
        self,
        solver: Solver,
        denoiser: Denoiser,
        *,
        steps: int,
        control: Control | None = None,
        on_step: OnStep | None = None,
    ) -> Future[torch.Tensor]:
        """Queue one generator; the future gives what it returns, or the error that ended it.

        Args:
            solver: A generator that nobody has advanced yet.
            denoiser: Answers its queries; those of the same object are merged.
            steps: How many evaluations it will ask for; only reported.
            control: Cancelling and deadline.
            on_step: Called on the worker with (evaluations done, steps); must be quick and must not raise.
        """
        trajectory = _Trajectory(solver, denoiser, control or Control(), on_step, steps)
        with self._wake:
            if self._closed:
                solver.close()
                raise Draining("the engine is closed")
            self._waiting.append(trajectory)
            self._wake.notify()
        return trajectory.future

    def drive(
        self,
        solver: Solver,
        denoiser: Denoiser,
        *,
        steps: int,
        control: Control | None = None,
        on_step: OnStep | None = None,
    ) -> torch.Tensor:
        """As `submit`, and wait for what the generator returns."""
        return self.submit(solver, denoiser, steps=steps, control=control, on_step=on_step).result()

    def close(self) -> None:
        """Stop after the current turn; what is unfinished fails with `Draining`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            while self._admit():
                self._turn(self._choose())
        except BaseException:
            # Whoever waits for a future would wait for ever: nobody else sets it.
            log.exception("the engine's worker failed; nothing more is computed until the node is restarted")
        finally:
            self._give_up()

    def _give_up(self) -> None:
        """Fail what is unfinished, and take nothing more."""
        with self._wake:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for trajectory in self._active:
            self._fail([trajectory], Draining("the engine was closed"), keep=True)
        for trajectory in waiting:
            trajectory.future.set_exception(Draining("the engine was closed"))
            trajectory.solver.close()

    def _admit(self) -> bool:
        """Start waiting generators while there is room; False when closed."""
        with self._wake:
            while not self._closed and not self._active and not self._waiting:
                self._wake.wait()
            if self._closed:
                return False
            overdue = [entry for entry in self._waiting if entry.control.over]
            for entry in overdue:
                self._waiting.remove(entry)
            fresh = [
                self._waiting.popleft() for _ in range(min(len(self._waiting), self._max - len(self._active)))
            ]
        for trajectory in (*overdue, *fresh):
            try:
                trajectory.control.check()
                trajectory.query = next(trajectory.solver)
            except StopIteration as stop:
                trajectory.future.set_result(stop.value)
            except Exception as error:  # noqa: BLE001 - whatever it is belongs to who waits
                trajectory.solver.close()
                trajectory.future.set_exception(error)
            else:
                self._active.append(trajectory)
        return True

    def _choose(self) -> list[_Trajectory]:
        """The next trajectories by turns: the first, and those after it that fit into one call with it."""
        chosen: list[_Trajectory] = []
        rows = 0
        for trajectory in list(self._active):
            alike = not chosen or _alike(trajectory, chosen[0])
            if alike and (not chosen or rows + trajectory.rows <= self._merge_rows):
                chosen.append(trajectory)
                rows += trajectory.rows
        for trajectory in chosen:
            self._active.remove(trajectory)
            self._active.append(trajectory)
        return chosen

    def _turn(self, chosen: list[_Trajectory]) -> None:
        """Evaluate the network once for all chosen and advance each by one step."""
        alive = [trajectory for trajectory in chosen if self._may_go_on(trajectory)]
        if not alive:
            return
        try:
            velocities = self._evaluate(alive[0].denoiser, [trajectory.query for trajectory in alive])
        except Exception as error:  # noqa: BLE001 - out of memory, a broken device: the waiting calls must hear
            self._fail(alive, error)
            return
        self.calls += 1
        for trajectory, velocity in zip(alive, velocities, strict=True):
            self._advance(trajectory, velocity)

    def _may_go_on(self, trajectory: _Trajectory) -> bool:
        try:
            trajectory.control.check()
        except DdibError as error:
            self._fail([trajectory], error)
            return False
        return True

    def _evaluate(self, denoiser: Denoiser, queries: Sequence[Query]) -> Sequence[torch.Tensor]:
        """dx/dphi for each query, from one network call."""
        self.rows += sum(query.x.shape[0] for query in queries)
        with torch.no_grad():
            if len(queries) == 1:
                query = queries[0]
                return [denoiser(query.x, query.level, query.cond, query.to)]
            counts = [query.x.shape[0] for query in queries]
            merged = denoiser.evaluate_merged(
                torch.cat([query.x for query in queries]),
                [query.level for query in queries],
                counts,
                merge_conditions([query.cond for query in queries]),
                [query.to for query in queries],
            )
            return torch.split(merged, counts)

    def _advance(self, trajectory: _Trajectory, velocity: torch.Tensor) -> None:
        trajectory.step += 1
        try:
            if trajectory.on_step is not None:
                trajectory.on_step(trajectory.step, trajectory.steps)
            trajectory.query = trajectory.solver.send(velocity)
        except StopIteration as stop:
            self._active.remove(trajectory)
            trajectory.future.set_result(stop.value)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail([trajectory], error)

    def _fail(self, trajectories: Sequence[_Trajectory], error: Exception, *, keep: bool = False) -> None:
        for trajectory in trajectories:
            if not keep:
                self._active.remove(trajectory)
            trajectory.future.set_exception(error)
            trajectory.solver.close()


def _alike(one: _Trajectory, other: _Trajectory) -> bool:
    """Whether one network call can answer both."""
    keys = [frozenset(trajectory.query.cond or ()) for trajectory in (one, other)]
    return one.denoiser is other.denoiser and keys[0] == keys[1]


def merge_conditions(conditions: Sequence[Condition]) -> Condition:
    """Conditions one under the other; all have the same keys."""
    if not conditions[0]:
        return None
    return {key: torch.cat([cond[key] for cond in conditions if cond]) for key in conditions[0]}
