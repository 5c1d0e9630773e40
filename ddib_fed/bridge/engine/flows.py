"""Fair queueing of one engine between flows: jobs, and requests of peers.

Start-time fair queueing (Goyal, Vin, Cheng, 1997) of the engine's time. A flow has a virtual time, which grows with
what it was charged, divided by its weight; the flow with the least runs next. A flow that comes begins at the time of
those that are there: it neither waits for them nor has saved anything up. Within a flow the oldest trajectories run
first.

Trajectories of other flows are merged into a call while the call, for the flow whose turn it is, costs no more than the
turns of all flows would: then merging delays nobody, and equal small requests all share one call.

Where the next stage works on the first results of a stream while later ones are computed, n rows in calls of b take
about (n + b) c(b) / b, with c(b) the time of such a call: the next stage waits for the first b, or ends b after the
last. A short stream is fastest in smaller calls than a long one, and so is the rest of a long one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from ddib_fed.bridge.engine.stack import Running

Cost = Callable[[int], float]
"""Seconds, or anything in proportion to them, of a network call of so many rows."""
NEAR = 64.0
"""Short streams whose times differ by less than so many full calls, about a leg, run in the order of arrival."""
DEARER = 1.25
"""A short stream is not computed in calls that cost more than so many times the least a row."""


@dataclass(slots=True, eq=False)
class Flow:
    """What one job or request waits for, oldest first.

    Attributes:
        weight: Above 0; that of its last trajectory.
        time: Virtual time.
        waiting: Its trajectories, started and not.
        ended: Rows of those that are over, while there have been others.
    """

    weight: float
    time: float
    waiting: deque[Running] = field(default_factory=deque)
    ended: int = 0

    @property
    def stream_rows(self) -> int:
        """About how many rows of its stream are still to come or under way; 0 where no stage waits for them."""
        announced = self.waiting[0].trajectory.stream_rows
        return max(1, announced - self.ended) if announced else 0


class Flows:
    """All that waits for one engine; used by one thread.

    Args:
        rows: Most rows of several trajectories in one call.
        cost: Of a call.
        most: Flows that run at once; later ones wait until one has ended.
    """

    def __init__(self, rows: int, cost: Cost, most: int) -> None:
        self._rows, self._most = rows, most
        self._cost = lru_cache(maxsize=8_192)(cost)
        self._best = lru_cache(maxsize=1_024)(self._best_for)
        self._flows: OrderedDict[str, Flow] = OrderedDict()
        self._now = 0.0
        self._count = 0
        self._kept: Sequence[Running] | None = None
        self._owed = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Running]:
        return (running for flow in list(self._flows.values()) for running in list(flow.waiting))

    def add(self, running: Running) -> None:
        """Take a trajectory in; without a name of a flow it is one of its own."""
        self._choose_anew()
        key = running.flow
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(running.trajectory.weight, self._now)
        flow.weight = running.trajectory.weight
        flow.waiting.append(running)
        self._count += 1

    def remove(self, running: Running) -> None:
        """Let a trajectory go; a flow without any is forgotten."""
        self._choose_anew()
        key = running.flow
        flow = self._flows[key]
        flow.waiting.remove(running)
        flow.ended += running.rows
        self._count -= 1
        if not flow.waiting:
            del self._flows[key]

    def charge(self, members: Sequence[Running]) -> None:
        """Divide the cost of a call among the flows whose rows were in it."""
        if members is self._kept:
            self._owed += 1
        else:
            self._charge(members, 1)

    def choose(self) -> Sequence[Running]:
        """The trajectories of the next call, at least one, in the order in which they came.

        While nobody comes or goes and the choice could be no other, it is the same object again.
        """
        if self._kept is not None:
            return self._kept
        chosen = self._chosen()
        if self._is_the_only_one(chosen):
            self._kept = chosen
        return chosen

    def _charge(self, members: Sequence[Running], calls: int) -> None:
        rows = sum(member.cost_rows for member in members)
        each = calls * self._cost(rows) / rows
        for member in members:
            flow = self._flows[member.flow]
            flow.time += each * member.cost_rows / flow.weight

    def _is_the_only_one(self, chosen: Sequence[Running]) -> bool:
        """Whether all that wait were chosen, and would be whoever's turn it is."""
        if len(chosen) != self._count:
            return False
        if len(self._flows) == 1:
            return True
        rows = [sum(running.cost_rows for running in flow.waiting) for flow in self._flows.values()]
        return self._cost(sum(rows)) <= len(rows) * min(map(self._cost, rows))

    def _choose_anew(self) -> None:
        """Charge the calls of the choice that was kept, and forget it."""
        if self._kept is not None and self._owed:
            self._charge(self._kept, self._owed - 1)
            self._now = min(flow.time for flow in self._flows.values())  # as at the last call's choice
            self._charge(self._kept, 1)
        self._kept, self._owed = None, 0

    def _chosen(self) -> Sequence[Running]:
        turns = sorted(list(self._flows.values())[: self._most], key=lambda flow: flow.time)
        self._now = turns[0].time
        most = self._most_rows(turns)
        if most < self._rows:
            turns = self._by_arrival(turns)
        first = turns[0].waiting[0]
        chosen, rows = [first], first.cost_rows
        for running in islice(turns[0].waiting, 1, None):
            if rows + running.cost_rows > most:
                break
            if running.kind == first.kind:
                chosen.append(running)
                rows += running.cost_rows
        allowed = len(turns) * self._cost(rows)
        for flow in turns[1:]:
            # Beside a longer stream a shorter one takes the room that the call was given less.
            room = most if flow.stream_rows >= turns[0].stream_rows else self._rows
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
        near = NEAR * self._cost(self._rows)
        return sorted(turns, key=lambda flow: (int((flow.time - self._now) / near), flow.waiting[0].number))

    def _most_rows(self, turns: Sequence[Flow]) -> int:
        """Most rows of the next call: fewer than the budget while all that waits belongs to short streams."""
        streams = [flow.stream_rows for flow in turns]
        return self._best(sum(streams)) if all(streams) else self._rows

    def _best_for(self, rows: int) -> int:
        """The size of calls in which a stream of so many rows takes the least time, with the stage after it."""
        each = {size: self._cost(size) / size for size in (self._rows, *_powers_of_two_below(self._rows))}
        allowed = DEARER * min(each.values())
        return min((s for s in each if each[s] <= allowed), key=lambda size: (rows + size) * each[size])


def _powers_of_two_below(rows: int) -> list[int]:
    return [1 << n for n in range(max(rows - 1, 0).bit_length())]
