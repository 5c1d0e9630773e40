"""Continuous batching: one worker thread steps the trajectories of all requests, merging their network calls.

Whoever waits when a turn begins may be in that turn's call: trajectories join and leave at any step, each row with its
own level, class and weights. The `Scheduler` says who runs next and who is merged with it, `stack` steps them as one.
Only the worker starts, advances or closes a trajectory. Progress, cancelling and deadlines are looked at before each
evaluation.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice, zip_longest

import torch

from ddib_fed.diffusion.bridge import OnStep
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control
from ddib_fed.engine.stack import Ending, Running, Stack, Trajectory
from ddib_fed.errors import Draining

log = logging.getLogger(__name__)

ROWS = 2_048


Cost = Callable[[int], float]
"""Seconds, or anything in proportion to them, of a network call of so many rows."""
NEAR = 64.0
"""Short streams whose times differ by less than so many full calls, about a leg, run in the order of arrival."""
DEARER = 1.25
"""A short stream is not computed in calls that cost more than so many times the least a row."""


@dataclass(slots=True, eq=False)
class Flow:
    """The trajectories of one job or request, oldest first."""

    owner: Owner
    time: float
    waiting: deque[Running] = field(default_factory=deque)
    ended: int = 0
    rows: int = 0

    @property
    def stream_rows(self) -> int:
        announced = self.waiting[0].trajectory.stream_rows
        return max(1, announced - self.ended) if announced else 0


@dataclass(slots=True, eq=False)
class Owner:
    """A peer or a client."""

    weight: float
    time: float
    number: int
    flows: OrderedDict[str, Flow] = field(default_factory=OrderedDict)

    @property
    def now(self) -> float:
        return min((flow.time for flow in self.flows.values()), default=0.0)


class Scheduler:
    """Chooses the trajectories of the next call: least-served flow of the least-served owner first."""

    def __init__(self, rows: int, cost: Cost, most: int) -> None:
        self._most = most
        self._cost = lru_cache(maxsize=8_192)(cost)
        self._best = lru_cache(maxsize=1_024)(self._best_for)
        self._owners: OrderedDict[str, Owner] = OrderedDict()
        self._resting: dict[str, float] = {}
        """Times of owners without flows that are ahead of the others."""
        self._now = 0.0
        """Time of the owner that was served last, before it was charged: another begins there."""
        self._count = 0
        self._kept: Sequence[Running] | None = None
        """The choice, while it does not depend on whose turn it is."""
        self.rows = rows

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Running]:
        return (running for flow in list(self._all()) for running in list(flow.waiting))

    def resize(self, rows: int) -> None:
        self.rows, self._kept = rows, None
        self._best.cache_clear()

    def add(self, running: Running, *, first: bool = False) -> None:
        """Take a trajectory in; without the name of a flow, or of an owner, it is one of its own."""
        self._kept = None
        owner = self._owners.get(running.owner)
        if owner is None:
            self._resting = {name: time for name, time in self._resting.items() if time > self._now}
            time = self._resting.pop(running.owner, self._now)
            owner = self._owners[running.owner] = Owner(running.trajectory.weight, time, running.number)
        owner.weight = running.trajectory.weight
        flow = owner.flows.get(running.flow)
        if flow is None:
            flow = owner.flows[running.flow] = Flow(owner, owner.now)
        if first:
            flow.waiting.appendleft(running)
        else:
            flow.waiting.append(running)
        flow.rows += running.cost_rows
        self._count += 1

    def remove(self, running: Running) -> None:
        """Let a trajectory go, with a flow that has no other, and an owner that has no other flow."""
        self._kept = None
        owner = self._owners[running.owner]
        flow = owner.flows[running.flow]
        flow.waiting.remove(running)
        flow.rows -= running.cost_rows
        flow.ended += running.rows
        self._count -= 1
        if flow.waiting:
            return
        del owner.flows[running.flow]
        if owner.flows:
            return
        del self._owners[running.owner]
        if not self._owners:
            self._resting.clear()  # nobody waited: nothing is owed
        elif running.trajectory.owner or running.trajectory.flow:
            self._resting[running.owner] = owner.time

    def charge(self, members: Sequence[Running], calls: int = 1) -> None:
        """Divide the cost of calls among the flows whose rows are in them."""
        rows = sum([member.cost_rows for member in members])
        each = calls * self._cost(rows) / rows
        for member in members:
            owner = self._owners[member.owner]
            spent = each * member.cost_rows
            owner.flows[member.flow].time += spent
            owner.time += spent / owner.weight

    def choose(self, limit: int | None = None) -> Sequence[Running]:
        """The trajectories of the next call, at least one, of at most `limit` rows, in the order in which they came."""
        if limit is not None:
            return self._chosen(limit)
        if self._kept is None:
            self._kept = self._everything()
        if self._kept is None:
            return self._chosen(self.rows)
        self._now = min([owner.time for owner in self._owners.values()])
        return self._kept

    def _all(self) -> Iterator[Flow]:
        return (flow for owner in self._owners.values() for flow in owner.flows.values())

    def _everything(self) -> Sequence[Running] | None:
        """All trajectories, if they are chosen whoever's turn it is."""
        flows = list(self._all())
        rows = sum([flow.rows for flow in flows])
        if len(flows) > self._most or (self._count > 1 and rows > self._most_rows(flows)):
            return None
        waiting = list(self)
        if any(running.kind != waiting[0].kind for running in waiting):
            return None
        together = self._cost(rows)
        if len(flows) > 1 and any(together > self._allowed(flow, flow.rows) for flow in flows):
            return None
        return sorted(waiting, key=lambda running: running.number)

    def _allowed(self, flow: Flow, rows: int) -> float:
        """What a call may cost in which a flow has so many rows: as much as the turns of all together."""
        return len(self._owners) * len(flow.owner.flows) * self._cost(rows)

    def _turns(self) -> list[Flow]:
        """The flows under way, in the order of their turns."""
        flows = list(self._all())
        if len(flows) > self._most:
            ranks = zip_longest(*(owner.flows.values() for owner in self._owners.values()))
            flows = list(islice((flow for rank in ranks for flow in rank if flow is not None), self._most))
        return sorted(flows, key=lambda flow: (flow.owner.time, flow.owner.number, flow.time))

    def _chosen(self, limit: int) -> Sequence[Running]:
        turns = self._turns()
        self._now = turns[0].owner.time
        most = min(limit, self._most_rows(turns))
        if most < limit:
            turns = self._by_arrival(turns)
        first = turns[0].waiting[0]
        chosen, rows = [first], first.cost_rows
        for running in islice(turns[0].waiting, 1, None):
            if rows + running.cost_rows > most:
                break
            if running.kind == first.kind:
                chosen.append(running)
                rows += running.cost_rows
        allowed = self._allowed(turns[0], rows)
        for flow in turns[1:]:
            # Beside a longer stream a shorter one takes the room that the call was given less.
            room = most if flow.stream_rows >= turns[0].stream_rows else limit
            for running in flow.waiting:
                total = rows + running.cost_rows
                if total > room or self._cost(total) > allowed:
                    break
                if running.kind == first.kind:
                    chosen.append(running)
                    rows = total
        return sorted(chosen, key=lambda running: running.number)

    def _by_arrival(self, turns: Sequence[Flow]) -> list[Flow]:
        """Short streams one after another, as one stream of all their rows would go, while their times are near."""
        near, now = NEAR * self._cost(self.rows), turns[0].owner.time
        owners = {id(flow.owner): flow.owner.now for flow in turns}
        return sorted(
            turns,
            key=lambda flow: (
                int((flow.owner.time - now) / near),
                int((flow.time - owners[id(flow.owner)]) / near),
                flow.waiting[0].number,
            ),
        )

    def _most_rows(self, turns: Sequence[Flow]) -> int:
        streams = [flow.stream_rows for flow in turns]
        return self._best(sum(streams)) if all(streams) else self.rows

    def _best_for(self, rows: int) -> int:
        """The size of call with which a stream of so many rows, and the stage after it, are done first."""
        sizes = [1 << n for n in range(max(self.rows - 1, 0).bit_length())]
        each = {size: self._cost(size) / size for size in (self.rows, *sizes)}
        allowed = DEARER * min(each.values())
        return min((s for s in each if each[s] <= allowed), key=lambda size: (rows + size) * each[size])


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
        self._scheduler = Scheduler(rows, cost or (lambda count: count + rows / 8), flows)
        self._inbox: deque[Running] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._submitted = self._calls = self._evaluated = 0
        self._stack: Stack | None = None
        """Of the last turn."""
        self._cancelled = False
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
        try:
            with torch.no_grad():
                while self._take_in():
                    self._sweep()
                    if len(self._scheduler):
                        self._turn(self._scheduler.choose())
        except BaseException:
            # Without this, callers would wait for their futures for ever.
            log.exception("the engine's worker failed; nothing more is computed until the node is restarted")
        finally:
            self._give_up()

    def _take_in(self) -> bool:
        """Take what was submitted; waits for something to do. False when closed."""
        if len(self._scheduler) and not self._inbox:
            return not self._closed
        with self._wake:
            while not self._closed and not self._inbox and not len(self._scheduler):
                self._stack = None
                self._wake.wait()
            fresh = list(self._inbox)
            self._inbox.clear()
        for running in fresh:
            self._scheduler.add(running)
            self._expect(running.control)
            running.watch = running.control.interrupting(self._somebody_cancelled)
            running.watch.__enter__()
        return not self._closed

    def _sweep(self) -> None:
        """Fail whoever was cancelled or is late, also those that wait."""
        if not self._cancelled and (self._due == math.inf or time.monotonic() <= self._due):
            return
        self._cancelled, self._due = False, math.inf
        for running in self._scheduler:
            if (error := running.control.error) is not None:
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
            velocity = stack.evaluate()
            self._scheduler.charge(alive)
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
        self._scheduler.remove(running)
        running.future.end(result, running.step)
        running.close()

    def _fail(self, running: Running, error: Exception) -> None:
        self._scheduler.remove(running)
        running.future.set_exception(error)
        running.close()

    def _give_up(self) -> None:
        """Fail what is unfinished, and take nothing more."""
        with self._wake:
            self._closed = True
            waiting = [*self._scheduler, *self._inbox]
        for running in waiting:
            running.future.set_exception(Draining("the engine was closed"))
            running.close()


def _stack_of(chosen: Sequence[Running]) -> Stack:
    stack = next((running.stack for running in chosen if running.stack is not None), None)
    return stack if stack is not None and stack.holds(chosen) else Stack(chosen)
