"""Fair queueing of one engine between owners, which are peers and clients, and between the flows of each: its jobs.

Start-time fair queueing (Goyal, Vin, Cheng, 1997) of the engine's time, on two levels. An owner has a virtual time,
which grows with what its flows were charged, divided by its weight; the owner with the least runs next, and of its
flows the one that was charged least. Who comes begins at the time of those that are there: it neither waits for them
nor has saved anything up. An owner whose flows have all ended keeps its time until the others have reached it: ending a
request and sending the next one pays no debts. Within a flow the oldest trajectories run first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice, zip_longest

from ddib_fed.bridge.engine.stack import Running

Cost = Callable[[int], float]
"""Seconds, or anything in proportion to them, of a network call of so many rows."""
NEAR = 64.0
"""Short streams whose times differ by less than so many full calls, about a leg, run in the order of arrival."""
DEARER = 1.25
"""A short stream is not computed in calls that cost more than so many times the least a row."""


@dataclass(slots=True, eq=False)
class Flow:
    """What one job or request waits for, oldest first."""

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


class Flows:
    """All that waits for one engine; used by one thread."""

    def __init__(self, rows: int, cost: Cost, most: int) -> None:
        self._rows, self._most = rows, most
        self._cost = lru_cache(maxsize=8_192)(cost)
        self._best = lru_cache(maxsize=1_024)(self._best_for)
        self._owners: OrderedDict[str, Owner] = OrderedDict()
        self._resting: dict[str, float] = {}
        """Times of owners without flows that are ahead of the others."""
        self._now = 0.0
        """Time of the owner who had the last turn, before it was charged: another begins there."""
        self._count = 0
        self._kept: Sequence[Running] | None = None
        self._owed = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Running]:
        return (running for flow in list(self._all()) for running in list(flow.waiting))

    def resize(self, rows: int) -> None:
        """Have calls of up to so many rows."""
        self._rows = rows
        self._best.cache_clear()
        self._choose_anew()

    def add(self, running: Running, *, first: bool = False) -> None:
        """Take a trajectory in; without a name of a flow, or of an owner, it is one of its own."""
        self._choose_anew()
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
        """Let a trajectory go; a flow without any is forgotten, and an owner without flows once others caught up."""
        self._choose_anew()
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
        if members is self._kept:
            self._owed += calls
        else:
            self._charge(members, calls)

    def choose(self, limit: int | None = None) -> Sequence[Running]:
        """The trajectories of the next call, at least one, of at most `limit` rows, in the order in which they came."""
        if limit is not None:
            return self._chosen(limit)
        if self._kept is None:
            self._kept = self._everything()
        return self._kept or self._chosen(self._rows)

    def _all(self) -> Iterator[Flow]:
        return (flow for owner in self._owners.values() for flow in owner.flows.values())

    def _charge(self, members: Sequence[Running], calls: int) -> None:
        rows = sum(member.cost_rows for member in members)
        each = calls * self._cost(rows) / rows
        for member in members:
            owner = self._owners[member.owner]
            spent = each * member.cost_rows
            owner.flows[member.flow].time += spent
            owner.time += spent / owner.weight

    def _everything(self) -> Sequence[Running] | None:
        """All that wait, if they are chosen whoever's turn it is; None where it depends on that."""
        flows = list(self._all())
        rows = sum([flow.rows for flow in flows])
        if len(flows) > self._most or (self._count > 1 and rows > self._most_rows(flows)):
            return None
        waiting = list(self)
        kind = waiting[0].kind
        if any(running.kind != kind for running in waiting):
            return None
        together = self._cost(rows)
        if len(flows) > 1 and any(
            together > self._turns_of(flow.owner) * self._cost(flow.rows) for flow in flows
        ):
            return None
        self._now = min([owner.time for owner in self._owners.values()])
        return sorted(waiting, key=lambda running: running.number)

    def _turns_of(self, owner: Owner) -> int:
        return len(self._owners) * len(owner.flows)

    def _choose_anew(self) -> None:
        if self._kept is not None and self._owed:
            self._charge(self._kept, self._owed - 1)
            self._now = min(owner.time for owner in self._owners.values())  # as at the last call's choice
            self._charge(self._kept, 1)
        self._kept, self._owed = None, 0

    def _under_way(self) -> list[Flow]:
        flows = list(self._all())
        if len(flows) > self._most:
            ranks = zip_longest(*(owner.flows.values() for owner in self._owners.values()))
            flows = list(islice((flow for rank in ranks for flow in rank if flow is not None), self._most))
        return sorted(flows, key=lambda flow: (flow.owner.time, flow.owner.number, flow.time))

    def _chosen(self, limit: int) -> Sequence[Running]:
        turns = self._under_way()
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
        allowed = self._turns_of(turns[0].owner) * self._cost(rows)
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
        near, now = NEAR * self._cost(self._rows), turns[0].owner.time
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
        return self._best(sum(streams)) if all(streams) else self._rows

    def _best_for(self, rows: int) -> int:
        each = {size: self._cost(size) / size for size in (self._rows, *_powers_of_two_below(self._rows))}
        allowed = DEARER * min(each.values())
        return min((s for s in each if each[s] <= allowed), key=lambda size: (rows + size) * each[size])


def _powers_of_two_below(rows: int) -> list[int]:
    return [1 << n for n in range(max(rows - 1, 0).bit_length())]
