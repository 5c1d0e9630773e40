"""Continuous batching: one worker thread merges the network calls of many solvers, with one noise level for each row.

Continuous batching at the step: whoever is active when a turn begins is merged into that turn's call, up to
`rows` samples; large trajectories run alone, by turns, because merging them further only misses caches
(docs/benchmarks.md). Only the worker advances or closes a generator, and grad mode is never open across a
yield. Progress, cancelling and deadlines are looked at before every evaluation.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.domain_model import DomainModel
from ddib_fed.bridge.engine.trajectory import Integration, Trajectory
from ddib_fed.diffusion.bridge import OnStep
from ddib_fed.diffusion.denoiser import Condition, Denoiser, Query
from ddib_fed.diffusion.solvers import Solver
from ddib_fed.errors import DdibError, Draining

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Running:
    """A trajectory on its way, and who waits for it."""

    trajectory: Trajectory
    control: Control
    on_step: OnStep | None
    future: Future[torch.Tensor] = field(default_factory=Future)
    step: int = 0
    _work: Integration | None = None
    _query: Query | None = None

    def start(self, model: DomainModel) -> None:
        """Ask for the first evaluation.

        Raises:
            StopIteration: There is none.
        """
        self._work = self.trajectory.on(model)
        self._query = next(self._work.solver)

    @property
    def solver(self) -> Solver:
        """Its generator, once it was started."""
        assert self._work is not None
        return self._work.solver

    @property
    def denoiser(self) -> Denoiser:
        """What answers it."""
        assert self._work is not None
        return self._work.denoiser

    @property
    def evaluations(self) -> int:
        """How many there will be."""
        assert self._work is not None
        return self._work.evaluations

    def close(self) -> None:
        """Let its generator go."""
        if self._work is not None:
            self._work.solver.close()

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
        return self.trajectory.rows


class Batcher:
    """Integrates trajectories on one thread, merging their network calls.

    Args:
        model: The model.
        rows: Most samples of several trajectories in one call; a single larger trajectory runs alone.
        max_trajectories: Most trajectories under way; more wait their turn.
        threads: CPU threads of the network on the worker; None leaves them as they are.
    """

    width = 1
    beside = True

    def __init__(
        self,
        model: DomainModel,
        *,
        rows: int = 2_048,
        max_trajectories: int = 64,
        threads: int | None = None,
    ) -> None:
        self._model = model
        self.rows = rows
        self._max = max_trajectories
        self.threads = threads
        self._waiting: deque[_Running] = deque()
        self._active: deque[_Running] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._calls = self._evaluated = 0
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def counters(self) -> Mapping[str, int]:
        """See `Executor`."""
        return {"calls": self._calls, "rows": self._evaluated}

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Future[torch.Tensor]:
        """See `Executor`; `on_step` is called on the worker and must not raise."""
        running = _Running(trajectory, control or Control(), on_step)
        with self._wake:
            if self._closed:
                raise Draining("the engine is closed")
            self._waiting.append(running)
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
                trajectory.start(self._model)
            except StopIteration as stop:
                trajectory.future.set_result(stop.value)
            except Exception as error:  # noqa: BLE001 - whatever it is belongs to who waits
                trajectory.close()
                trajectory.future.set_exception(error)
            else:
                self._active.append(trajectory)
        return True

    def _choose(self) -> list[_Running]:
        """The next trajectories by turns: the first, and those after it that fit into one call with it."""
        chosen: list[_Running] = []
        rows = 0
        for trajectory in list(self._active):
            alike = not chosen or _alike(trajectory, chosen[0])
            if alike and (not chosen or rows + trajectory.rows <= self.rows):
                chosen.append(trajectory)
                rows += trajectory.rows
        for trajectory in chosen:
            self._active.remove(trajectory)
            self._active.append(trajectory)
        return chosen

    def _turn(self, chosen: list[_Running]) -> None:
        """Evaluate the network once for all chosen and advance each by one step."""
        alive = [trajectory for trajectory in chosen if self._may_go_on(trajectory)]
        if not alive:
            return
        try:
            velocities = self._evaluate(alive[0].denoiser, [trajectory.query for trajectory in alive])
        except Exception as error:  # noqa: BLE001 - out of memory, a broken device: the waiting calls must hear
            self._fail(alive, error)
            return
        self._calls += 1
        for trajectory, velocity in zip(alive, velocities, strict=True):
            self._advance(trajectory, velocity)

    def _may_go_on(self, trajectory: _Running) -> bool:
        try:
            trajectory.control.check()
        except DdibError as error:
            self._fail([trajectory], error)
            return False
        return True

    def _evaluate(self, denoiser: Denoiser, queries: Sequence[Query]) -> Sequence[torch.Tensor]:
        """dx/dphi for each query, from one network call."""
        self._evaluated += sum(query.x.shape[0] for query in queries)
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

    def _advance(self, trajectory: _Running, velocity: torch.Tensor) -> None:
        trajectory.step += 1
        try:
            if trajectory.on_step is not None:
                trajectory.on_step(trajectory.step, trajectory.evaluations)
            trajectory.query = trajectory.solver.send(velocity)
        except StopIteration as stop:
            self._active.remove(trajectory)
            trajectory.future.set_result(stop.value)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail([trajectory], error)

    def _fail(self, trajectories: Sequence[_Running], error: Exception, *, keep: bool = False) -> None:
        for trajectory in trajectories:
            if not keep:
                self._active.remove(trajectory)
            trajectory.future.set_exception(error)
            trajectory.close()


def _alike(one: _Running, other: _Running) -> bool:
    """Whether one network call can answer both."""
    keys = [frozenset(trajectory.query.cond or ()) for trajectory in (one, other)]
    return one.denoiser is other.denoiser and keys[0] == keys[1]


def merge_conditions(conditions: Sequence[Condition]) -> Condition:
    """Conditions one under the other; all have the same keys."""
    if not conditions[0]:
        return None
    return {key: torch.cat([cond[key] for cond in conditions if cond]) for key in conditions[0]}
