"""The books of a pool: which trajectories wait, for whom and since when, and which worker has which."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import InvalidStateError
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from torch import Tensor

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.engine.trajectory import Ending, Trajectory
from ddib_fed.bridge.workers.hanging import GRACE_S, Pulse
from ddib_fed.bridge.workers.workbench import Done, Failed, Step
from ddib_fed.diffusion.bridge import OnStep
from ddib_fed.errors import DdibError

ROWS_AHEAD: Final = 2
"""Budgets of rows that a worker may have in flight: one in its network call, one to follow at once."""
FLOWS_BESIDE: Final = 4
"""Trajectories of an owner up to which one more flow of it need not wait for room."""
SUSPECT_AFTER: Final = 2
"""Deaths of workers after which a trajectory runs alone on one, so that it takes no others with it."""
MOST_DEATHS: Final = 3
"""Deaths after which a trajectory is given up, if the last worker had nothing else to do."""


class Remote(Protocol):
    """A worker elsewhere."""

    def send(self, message: Any) -> None:
        """Send `workbench.Do`, `Cancel` or `Ping`, in order; never waits, and says nothing when the worker is gone."""

    def end(self) -> None:
        """End it, whatever it does; returns when it has ended."""


@dataclass(slots=True, eq=False)
class Member:
    """A worker of the pool, from when it is to be started until it has ended."""

    name: str = ""
    ready: bool = False
    retiring: bool = False
    entries: dict[int, Entry] = field(default_factory=dict)
    remote: Remote | None = None
    gone: bool = False
    reported: bool = False
    """Whether it said why it could not start."""

    rows: int = 0
    """In flight."""

    pulse: Pulse = field(default_factory=Pulse)

    @property
    def takes(self) -> bool:
        return self.remote is not None and self.ready and not self.retiring and not self.gone

    @property
    def has_suspect(self) -> bool:
        return any(entry.suspect for entry in itertools.islice(self.entries.values(), 1))

    def give(self, entry: Entry) -> None:
        """It has this now."""
        entry.member = self
        self.entries[entry.number] = entry
        self.rows += entry.rows

    def take(self, entry: Entry) -> None:
        """It does not have it any more."""
        entry.member = None
        del self.entries[entry.number]
        self.rows -= entry.rows

    def begin(self, remote: Remote) -> bool:
        self.remote = remote
        return not self.gone

    def send(self, message: Any) -> None:
        if self.remote is not None:
            self.remote.send(message)

    def end(self) -> None:
        if self.remote is not None:
            self.remote.end()


@dataclass(slots=True, eq=False)
class Entry:
    """A trajectory that was taken, and its caller's future; the first answer counts."""

    number: int
    trajectory: Trajectory
    control: Control
    on_step: OnStep | None
    future: Ending = field(default_factory=Ending)
    watched: ExitStack = field(default_factory=ExitStack)
    member: Member | None = None
    deaths: int = 0
    alone: bool = False
    """Whether the last worker that died with it had nothing else."""

    over_since: float | None = None
    """When its control was first seen to be over, of work under way."""

    @property
    def rows(self) -> int:
        return self.trajectory.rows

    @property
    def flow(self) -> str:
        return self.trajectory.flow or f"\0{self.number}"

    @property
    def owner(self) -> str:
        return self.trajectory.owner or self.flow

    @property
    def cost(self) -> float:
        return float(self.rows * self.trajectory.doubled * self.trajectory.settings.evaluations)

    @property
    def suspect(self) -> bool:
        return self.deaths >= SUSPECT_AFTER

    @property
    def hopeless(self) -> bool:
        return self.deaths >= MOST_DEATHS and self.alone

    @property
    def verdict(self) -> DdibError | None:
        """Why its control says that it is over; None when it does not."""
        try:
            self.control.check()
        except DdibError as error:
            return error
        return None

    def overdue(self, now: float) -> bool:
        """Whether its worker did not end it although its control has been over for `GRACE_S`; asked now and then."""
        if not self.control.over or self.future.done():
            return False
        self.over_since = self.over_since or now
        return now - self.over_since > GRACE_S

    def finish(self, x: Tensor, evaluations: int) -> None:
        """It came to its end, after so many evaluations."""
        self.watched.close()
        with suppress(InvalidStateError):
            self.future.end(x, evaluations)

    def fail(self, error: Exception) -> None:
        """It did not."""
        self.watched.close()
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def give_up(self, error: Exception) -> None:
        self.fail(self.verdict or error)


@dataclass(slots=True, eq=False)
class _Flow:
    """What belongs together; shares what its owner gets with the owner's other flows."""

    owner: _Owner
    spent: float
    """What it was given, as virtual time of the owner."""
    waiting: deque[Entry] = field(default_factory=deque)
    under_way: int = 0


@dataclass(slots=True, eq=False)
class _Owner:
    """Who has a share; see `engine.flows`."""

    spent: float
    """What it was given, as virtual time."""
    now: float = 0.0
    flows: dict[str, _Flow] = field(default_factory=dict)

    @property
    def under_way(self) -> int:
        return sum(flow.under_way for flow in self.flows.values())


@dataclass(slots=True)
class Books:
    """Guarded by the lock of the pool."""

    members: list[Member] = field(default_factory=list)
    entries: dict[int, Entry] = field(default_factory=dict)
    rows: int = 1
    calls: int = 0
    evaluated: int = 0
    _owners: dict[str, _Owner] = field(default_factory=dict)
    _resting: dict[str, float] = field(default_factory=dict)
    """What owners without flows were given that had more than the others."""
    _now: float = 0.0

    @property
    def ready(self) -> list[Member]:
        return [member for member in self.members if member.takes]

    @property
    def stay(self) -> list[Member]:
        return [member for member in self.members if not member.retiring]

    @property
    def waiting(self) -> list[Entry]:
        return [entry for flow in self._all() for entry in flow.waiting]

    def _all(self) -> Iterator[_Flow]:
        return (flow for owner in self._owners.values() for flow in owner.flows.values())

    def _flow(self, entry: Entry) -> _Flow:
        return self._owners[entry.owner].flows[entry.flow]

    def add(self, entry: Entry) -> None:
        """Take it; who had nothing here begins where the others are, neither with time saved up nor without debts."""
        self.entries[entry.number] = entry
        owner = self._owners.get(entry.owner)
        if owner is None:
            self._resting = {name: spent for name, spent in self._resting.items() if spent > self._now}
            spent = max(self._now, self._resting.pop(entry.owner, self._now))
            owner = self._owners[entry.owner] = _Owner(spent)
        owner.flows.setdefault(entry.flow, _Flow(owner, owner.now)).waiting.append(entry)

    def placed(self) -> Iterator[tuple[Entry, Member]]:
        """Give what waits to workers, as far as they have room: the flow that had least first."""
        while (flow := self._first()) is not None:
            member = self._room(flow)
            if member is None:
                return
            entry = flow.waiting.popleft()
            owner = flow.owner
            self._now, owner.now = max(self._now, owner.spent), max(owner.now, flow.spent)
            flow.spent += entry.cost
            owner.spent += entry.cost / entry.trajectory.weight
            flow.under_way += 1
            member.give(entry)
            yield entry, member

    def _first(self) -> _Flow | None:
        some = (flow for flow in self._all() if flow.waiting)
        return min(
            some, key=lambda flow: (flow.owner.spent, flow.spent, flow.waiting[0].number), default=None
        )

    def _room(self, flow: _Flow) -> Member | None:
        """The worker with fewest rows, if it has room; a flow that has nothing under way need not wait for room."""
        entry = flow.waiting[0]
        free = [member for member in self.ready if not member.has_suspect]
        if not free:
            return None
        member = min(free, key=lambda each: each.rows)
        if not member.entries:
            return member
        if entry.suspect:
            return None
        fits = member.rows + entry.rows <= ROWS_AHEAD * self.rows
        beside = not flow.under_way and flow.owner.under_way < FLOWS_BESIDE
        return member if fits or beside else None

    def step(self, member: Member, message: Step) -> tuple[Entry, OnStep] | None:
        """The work that a step belongs to, and its progress callback; None if it has none or has ended."""
        entry = member.entries.get(message.number)
        if entry is None or entry.on_step is None or entry.control.over:
            return None
        return entry, entry.on_step

    def overdue(self, now: float) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.member and entry.overdue(now)]

    @property
    def busy(self) -> list[Member]:
        return [member for member in self.members if member.entries]

    def answered(self, member: Member, message: Done | Failed) -> Callable[[], object] | None:
        """What answers whoever waits; None for work that is not there any more."""
        self.calls += message.calls
        self.evaluated += message.rows
        entry = member.entries.get(message.number)
        if entry is None:
            return None
        self.finish([entry])
        if isinstance(message, Done):
            x, evaluations = message.x, message.evaluations
            return lambda: entry.finish(x, evaluations)
        error = message.error
        return lambda: entry.give_up(error)

    def finish(self, entries: Iterable[Entry]) -> None:
        """They are done: strike them off."""
        for entry in entries:
            flow = self._flow(entry)
            del self.entries[entry.number]
            if entry.member is not None:
                entry.member.take(entry)
                flow.under_way -= 1
            else:
                flow.waiting.remove(entry)
            if not flow.waiting and not flow.under_way:
                self._forget_flow(entry, flow.owner)

    def _forget_flow(self, entry: Entry, owner: _Owner) -> None:
        """Its flow has nothing left here; an owner without flows keeps what it was given until others had as much."""
        del owner.flows[entry.flow]
        if owner.flows:
            return
        del self._owners[entry.owner]
        if not self._owners:
            self._resting.clear()  # nobody waited: nothing is owed
        elif entry.trajectory.owner or entry.trajectory.flow:
            self._resting[entry.owner] = owner.spent

    def forget(self, member: Member) -> bool:
        """It is gone, or is to go; False when that was known."""
        if member not in self.members:
            return False
        self.members.remove(member)
        member.gone = True
        return True

    def lost(self, member: Member, *, blame: bool) -> list[Entry]:
        """What it had waits again, before what came later."""
        lost = list(member.entries.values())
        for entry in reversed(lost):
            member.take(entry)
            entry.deaths += blame
            entry.alone = len(lost) == 1
            flow = self._flow(entry)
            flow.under_way -= 1
            flow.waiting.appendleft(entry)
        return lost

    def clear(self) -> tuple[list[Entry], list[Member]]:
        """Strike everything off; what there was."""
        entries, members = list(self.entries.values()), list(self.members)
        self.finish(entries)
        for member in members:
            self.forget(member)
        return entries, members
