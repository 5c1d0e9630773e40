"""Trajectories that are stepped together: one state for all their rows, one network call, one update.

Rows keep their own level, class and weights. While the same trajectories are stepped again, their state stays in one
piece; who joins or leaves costs one copy. A trajectory whose solver follows no recurrence has its rows written into
the state by its generator.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.engine.trajectory import Integration, Trajectory
from ddib_fed.diffusion.bridge import OnStep
from ddib_fed.diffusion.denoiser import Condition, Denoiser, Places, Query
from ddib_fed.diffusion.recurrence import Recurrence
from ddib_fed.diffusion.schedule import Level
from ddib_fed.diffusion.transfers import on_device


@dataclass(slots=True, eq=False)
class Running:
    """A trajectory on its way, and who waits for it.

    Attributes:
        trajectory: The work.
        control: Whether to go on.
        on_step: Told of each evaluation.
        number: Its turn among all that were submitted.
        future: Of who waits.
        step: Evaluations done.
        work: On the model, once it was started.
        stack: With whom it was stepped last; it holds the state. None before the first step.
        start: Its first row there.
        kind: Of its trajectory.
        watch: Is left at its end.
    """

    trajectory: Trajectory
    control: Control
    on_step: OnStep | None
    number: int = 0
    future: Future[Tensor] = field(default_factory=Future)
    step: int = 0
    work: Integration | None = None
    _query: Query | None = None
    stack: Stack | None = None
    start: int = 0
    kind: Hashable = None
    watch: AbstractContextManager[None] = field(default_factory=nullcontext)

    def __post_init__(self) -> None:
        self.kind = self.trajectory.kind

    @property
    def rows(self) -> int:
        """Of the state."""
        return self.trajectory.rows

    @property
    def cost_rows(self) -> int:
        """Of the network call."""
        return self.trajectory.rows * self.trajectory.doubled

    @property
    def begun(self) -> Integration:
        """The work, of one that was started."""
        assert self.work is not None
        return self.work

    @property
    def recurrence(self) -> Recurrence | None:
        """What its solver follows; None for a generator that is driven."""
        return self.begun.recurrence

    @property
    def place(self) -> tuple[Level, Level | None]:
        """The level at which the network is asked next, and the one that is asked to."""
        if self._query is not None:
            return self._query.level, self._query.to
        recurrence = self.recurrence
        assert recurrence is not None
        return recurrence.levels[self.step], recurrence.to[self.step]

    def begin(self, work: Integration) -> None:
        """Take the work up.

        Raises:
            StopIteration: It asks nothing of the network; the value is its end.
        """
        self.work = work
        if work.recurrence is None:
            self._query = next(work.solver)

    def state(self) -> Tensor:
        """Where it is, (rows, *sample_shape)."""
        if self.stack is not None:
            return self.stack.rows_of(self.stack.x, self)
        return self.begun.x if self._query is None else self._query.x

    def velocity(self, age: int) -> Tensor | None:
        """A velocity that it was answered: the last one's age is 0; None for one that it has not, or not any more."""
        if self.stack is None or age >= len(self.stack.velocities):
            return None
        return self.stack.rows_of(self.stack.velocities[age], self)

    def drive(self, v: Tensor) -> Tensor:
        """Send the generator its answer; where it asks next.

        Raises:
            StopIteration: It has ended.
        """
        self._query = self.begun.solver.send(v)
        return self._query.x

    def close(self) -> None:
        """Let its generator and its rows go."""
        self.watch.__exit__(None, None, None)
        self.stack = None
        if self.work is not None:
            self.work.solver.close()


class Stack:
    """Some trajectories, stepped together.

    Args:
        members: At least one, started, of one `kind`.

    Attributes:
        members: As given.
        x: The state of all, one under the other: (N, *sample_shape).
        velocities: The last answers of the network, like x, newest first; 0 where a member has none.
    """

    def __init__(self, members: Sequence[Running]) -> None:
        self.members = tuple(members)
        states = [member.state() for member in members]
        # A copy in any case: a trajectory's start is its caller's, and a slice would hold the rows of all.
        self.x = torch.cat(states) if len(states) > 1 else states[0].clone()
        window = max(0 if m.recurrence is None else m.recurrence.window for m in members)
        self._window = window
        self.velocities = self._merged_velocities(states)
        self._cond = merge_conditions([member.begun.cond for member in members])
        self._counts = [member.rows for member in members]
        self._rows: Tensor | None = None
        self._columns: Tensor | None = None
        start = 0
        for member in members:
            member.stack, member.start = self, start
            start += member.rows

    def _merged_velocities(self, states: Sequence[Tensor]) -> list[Tensor]:
        """What the members were answered, as far back as the next step needs it."""
        merged = []
        for age in range(self._window - 1):
            kept = [member.velocity(age) for member in self.members]
            if all(v is None for v in kept):
                break
            merged.append(
                torch.cat(
                    [torch.zeros_like(x) if v is None else v for v, x in zip(kept, states, strict=True)]
                )
            )
        return merged

    def rows_of(self, tensor: Tensor, member: Running) -> Tensor:
        """A member's part of x or of a velocity."""
        return tensor[member.start : member.start + member.rows]

    def evaluate(self) -> Tensor:
        """The velocity of all rows, from one network call: like x, a fresh tensor."""
        denoiser: Denoiser = self.members[0].begun.denoiser
        places = [member.place for member in self.members]
        level, to = places[0]
        with torch.no_grad():
            if all(place == places[0] for place in places):
                return denoiser(self.x, level, self._cond, to)
            levels, tos = zip(*places, strict=True)
            merged = Places.of_requests(self.x, levels, self._each_row(), tos)
            return denoiser.at(self.x, merged, self._cond)

    def advance(self, v: Tensor) -> None:
        """Take the step of every member that follows a recurrence; v like x, nobody else's."""
        if self._window:
            self.velocities.insert(0, v)
            del self.velocities[self._window :]
        first = self.members[0]
        recurrence, step = first.recurrence, first.step
        if recurrence is not None and all(
            member.recurrence is recurrence and member.step == step for member in self.members
        ):
            scale = recurrence.scales[step]
            if scale != 1.0:
                self.x.mul_(scale)
            for weight, velocity in zip(recurrence.weights[step], self.velocities, strict=False):
                if weight != 0.0:
                    self.x.add_(velocity, alpha=weight)
        elif self._window:
            self._advance_each()

    def _advance_each(self) -> None:
        """The same with weights for each member."""
        width = 1 + len(self.velocities)
        table = torch.tensor([_padded(member, width) for member in self.members], dtype=self.x.dtype)
        table = on_device(table.T.contiguous(), self.x.device)
        if len(self.x) > len(self.members):
            table = table.index_select(1, self._each_row())
        scale, *weights = table.reshape(width, -1, *(1,) * (self.x.ndim - 1))
        self.x.mul_(scale)
        for weight, velocity in zip(weights, self.velocities, strict=True):
            self.x.addcmul_(weight, velocity)

    def _each_row(self) -> Tensor:
        """The member's index of each row, (N,) on the device of x."""
        if self._rows is None:
            counts = torch.tensor(self._counts)
            rows = torch.repeat_interleave(torch.arange(len(self.members)), counts)
            self._rows = on_device(rows, self.x.device)
        return self._rows


def _padded(member: Running, width: int) -> list[float]:
    """Scale and weights of a member's step, with zeros to `width`."""
    recurrence = member.recurrence
    if recurrence is None:
        return [1.0, *(0.0,) * (width - 1)]
    found = [recurrence.scales[member.step], *recurrence.weights[member.step][: width - 1]]
    return [*found, *(0.0,) * (width - len(found))]


def merge_conditions(conditions: Sequence[Condition]) -> Condition:
    """Conditions one under the other; all have the same keys."""
    if not conditions[0]:
        return None
    if len(conditions) == 1:
        return conditions[0]
    return {key: torch.cat([cond[key] for cond in conditions if cond]) for key in conditions[0]}
